"""Sweeps: each configuration against itself alone, their telemetry, mini-batches and evaluations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.reference import augmented
from helpers.small_sweeps import LAYOUTS, Probe, collect, network

from periodic_jax import Batch, ConfigError, SweepGrid, create_train_state, dynamics, models, train_step
from periodic_jax.landscape import fixed_batches
from periodic_jax.landscape.sharpness import largest_eigenvalue
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training import input_pipeline
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.vectorize import lay_out

ALONE = ("loss", "weight_norm", "angular_step", "accuracy")
GRID = SweepGrid.product(lr=[0.05, 1.0], weight_decay=[1e-3, 1e-2], seed=[4, 0])


@pytest.fixture(scope="module")
def alone(tiny):
    """A configuration of `GRID` trained by itself for 20 steps of 12 images, with the public functions only; once."""

    @functools.cache
    def trained(model, i):
        on_device = input_pipeline.to_device(tiny, model.param_dtype)
        images = jnp.zeros((12, *tiny.image_shape), model.param_dtype)
        seed = jnp.uint32(GRID.seeds[i])
        key = input_pipeline.purpose_key(seed, input_pipeline.INITIALISATION)
        state = create_train_state(model, model.labels(), key, images)
        rows = input_pipeline.batch_indices(seed, jnp.int32(0), 20, capacity=20, count=len(tiny.images), batch_size=12)
        hparams = jax.tree.map(lambda h: h[i], GRID.hparams())
        step, history = jax.jit(train_step), []
        for row in rows:
            batch = Batch(
                input_pipeline.normalise(on_device.images[row], on_device.mean, on_device.std), on_device.labels[row]
            )
            state, metrics = step(state, hparams, batch)
            history.append(metrics)
        return {name: np.array([m[name] for m in history]) for name in ALONE}

    return trained


@pytest.mark.parametrize(
    ("layout", "devices"),
    [
        ("map", 2),
        ("map:2", 2),
        pytest.param("vmap", 2, marks=pytest.mark.slow),
        pytest.param("unroll", 2, marks=pytest.mark.slow),
        pytest.param("map", 1, marks=pytest.mark.slow),
    ],
)
def test_a_configuration_in_a_grid_equals_the_same_alone(float64, tiny, alone, layout, devices):
    if len(jax.devices()) < devices:
        pytest.skip("one device")
    model = network()
    sweep = Sweep(model, tiny, GRID, TrainingSpec(12), layout=layout, devices=jax.devices()[:devices])
    assert len(sweep.placement.devices) == devices
    telemetry, _ = collect(sweep, 20)
    for i in (0, 3, 6):
        for name, values in alone(model, i).items():
            np.testing.assert_allclose(telemetry[name][i], values, rtol=1e-7, atol=1e-10, err_msg=f"{name} of {i}")


@pytest.mark.slow
def test_in_float32_too(tiny, model, alone):
    telemetry, _ = collect(Sweep(model, tiny, GRID, TrainingSpec(12), layout="map"), 20)
    for i in (0, 7):
        expected = alone(model, i)
        np.testing.assert_allclose(telemetry["loss"][i], expected["loss"], rtol=2e-3)
        np.testing.assert_allclose(telemetry["weight_norm"][i], expected["weight_norm"], rtol=1e-4)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), None])
def test_one_compilation_serves_chunks_of_every_length(tiny, model, devices, caplog):
    with jax.log_compiles():
        sweep = Sweep(model, tiny, GRID, TrainingSpec(12), capacity=9, devices=jax.devices()[:devices])
        lengths = [chunk.steps for chunk in sweep.chunks(50, eval_every=11)]
        list(sweep.chunks(5, eval_every=100))
    assert sum(lengths) == 50
    assert len(set(lengths)) > 2
    assert sweep.compilations == 1
    compiled = [line for line in caplog.messages if line.startswith("Finished XLA compilation of ")]
    for program in ("chunk", "evaluation"):
        assert sum(f"jit({program})" in line for line in compiled) == 1


@pytest.mark.parametrize("capacity", [4])
def test_results_do_not_depend_on_the_chunks_by_one_bit(tiny, model, capacity):
    whole, evaluations = collect(Sweep(model, tiny, GRID, TrainingSpec(12), capacity=20), 20)
    cut, again = collect(Sweep(model, tiny, GRID, TrainingSpec(12), capacity=capacity), 20)
    for name in whole:
        assert np.array_equal(whole[name], cut[name]), name
    for name in evaluations:
        assert np.array_equal(evaluations[name], again[name]), name


def test_evaluations_come_before_the_first_step_every_so_often_and_at_the_end(tiny, model):
    chunks = list(Sweep(model, tiny, GRID, TrainingSpec(12)).chunks(17, eval_every=7))
    assert [c.first_step + c.steps for c in chunks if c.evaluation] == [0, 7, 14, 17]


@pytest.mark.parametrize("batch_size", [12, 40])
def test_evaluation_counts_every_image_once(float64, tiny, batch_size):
    """40 = 3 x 12 + 4 training images and 11 test images, fewer than a mini-batch."""
    model = network()
    sweep = Sweep(model, tiny, GRID, TrainingSpec(batch_size))
    first = next(iter(sweep.chunks(1, eval_every=1))).evaluation
    on_device = input_pipeline.to_device(tiny, jnp.float64)
    variables = jax.tree.map(
        lambda leaf: leaf[0, 0], {"params": sweep.states.params, "batch_stats": sweep.states.batch_stats}
    )

    @functools.partial(jax.jit, static_argnums=2)
    def loss(images, labels, train):
        logits, _ = model.apply(
            variables,
            input_pipeline.normalise(images, on_device.mean, on_device.std),
            train=train,
            mutable=["batch_stats"],
        )
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels], logits.argmax(1) != labels

    config = int(sweep.placement.arrangement.source[0, 0])
    losses, errors = np.full(40, np.nan), np.full(40, np.nan)
    for stop in (*range(batch_size, 40, batch_size), 40):
        whole = slice(stop - batch_size, stop)  # the last mini-batch is filled up with images from before it
        new = slice(stop - (batch_size if stop < 40 else 40 - (40 - 1) // batch_size * batch_size), stop)
        for total, part in zip((losses, errors), loss(tiny.images[whole], tiny.labels[whole], True), strict=True):
            total[new] = part[new.start - whole.start :]
    assert first["train_loss"][config] == pytest.approx(float(losses.mean()), rel=1e-9)
    assert first["train_error"][config] == pytest.approx(float(errors.mean()), rel=1e-12)
    test_loss, wrong = loss(tiny.test_images, tiny.test_labels, False)
    assert first["test_loss"][config] == pytest.approx(float(test_loss.mean()), rel=1e-9)
    assert first["test_error"][config] == pytest.approx(np.asarray(wrong).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float64", 1e-9), pytest.param("float32", 1e-4, marks=pytest.mark.slow)]
)
def test_recorded_neighbours_obey_pythagoras_and_the_rotation_budget(tiny, precision, tolerance):
    """ρ_{t+1}² = a²ρ_t² + η²g̃_t²/ρ_t² and Σ -ln cos θ = -T ln a + ln(ρ_T/ρ_0), of what was recorded; batch norm with
    ε = 0."""
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        dtype = jnp.dtype(precision)
        model = models.ConvNet(width=2, num_classes=3, eps=0.0, param_dtype=dtype)
        telemetry, _ = collect(Sweep(model, tiny, GRID, TrainingSpec(12)), 200)
    seen = {name: values.astype(np.float64) for name, values in telemetry.items()}
    assert all(np.isfinite(values).all() for values in seen.values())
    lr, decay = (GRID.coords[n][:, None] for n in ("lr", "weight_decay"))
    rho, grad = seen["weight_norm"], seen["effective_grad_norm"]
    predicted = dynamics.next_weight_norm(rho, grad, lr, decay)
    np.testing.assert_allclose(predicted[:, :-1] ** 2, rho[:, 1:] ** 2, rtol=tolerance)
    np.testing.assert_allclose(seen["effective_lr"], lr / rho**2, rtol=tolerance)
    spent = dynamics.rotation_spent(seen["angular_step"])[:, :-1].sum(1)
    budget = dynamics.rotation_budget(199, rho[:, 0], rho[:, -1], lr[:, 0], decay[:, 0])
    np.testing.assert_allclose(spent, budget, rtol=tolerance)
    assert seen["radial_leak"].max() < (1e-9 if precision == "float64" else 1e-3)


def test_per_layer_telemetry_adds_up(tiny, model):
    sweep = Sweep(model, tiny, GRID, TrainingSpec(12, per_layer=True))
    telemetry, _ = collect(sweep, 5)
    assert sweep.layer_names() == ["conv0/kernel", "conv1/kernel"]
    assert telemetry["layer_weight_norm"].shape == (8, 5, 2)
    total = np.sqrt((telemetry["layer_weight_norm"] ** 2).sum(-1))
    np.testing.assert_allclose(total, telemetry["weight_norm"], rtol=1e-5)


def test_a_grid_with_ragged_seeds_is_padded_and_unpadded(float64, tiny):
    model = network()
    grid = SweepGrid.of(
        [{"lr": 0.1, "seed": 2}, {"lr": 0.2, "seed": 1}, {"lr": 0.3, "seed": 2}, {"lr": 0.4, "seed": 2}]
    )
    ragged, _ = collect(Sweep(model, tiny, grid, TrainingSpec(12)), 6)
    for i in (0, 1, 3):
        single = SweepGrid.of([{name: grid.coords[name][i] for name in ("lr", "seed")}])
        one, _ = collect(Sweep(model, tiny, single, TrainingSpec(12)), 6)
        np.testing.assert_allclose(ragged["loss"][i], one["loss"][0], rtol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lay_out_stacks_a_function_of_several_trees(layout):
    double = lay_out(lambda a, b: {"sum": a["x"] + b, "product": a["x"] * b, "empty": a["empty"]}, layout)
    out = double({"x": jnp.arange(5.0), "empty": jnp.zeros((5, 0))}, jnp.full(5, 2.0))
    assert out["empty"].shape == (5, 0)
    assert np.array_equal(out["sum"], np.arange(5) + 2)
    assert np.array_equal(out["product"], np.arange(5) * 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 41}, "--batch-size: 41"),
        ({"batch_size": 1}, "--batch-size: 1"),
        ({"layout": "pmap"}, "--layout: pmap"),
        ({"layout": "map:0"}, "--layout: map:0"),
    ],
)
def test_unusable_settings_are_refused(tiny, model, options, named):
    with pytest.raises(ConfigError, match=named):
        Sweep(model, tiny, GRID, TrainingSpec(options.pop("batch_size", 12)), **options)


@pytest.mark.parametrize(
    ("layout", "devices", "capacity"),
    [("map", 2, 20), ("map", 1, 3), ("vmap", 2, 20), pytest.param("unroll", 1, 20, marks=pytest.mark.slow)],
)
def test_the_batches_are_the_same_whatever_the_layout_the_devices_and_the_chunks(tiny, layout, devices, capacity):
    """And they are those of a plain numpy implementation of order and augmentation."""
    grid = SweepGrid.product(lr=[0.05, 1.0], seed=[4, 0])
    sweep = Sweep(
        Probe(),
        tiny,
        grid,
        TrainingSpec(12, augment=True),
        layout=layout,
        devices=jax.devices()[:devices],
        capacity=capacity,
    )
    telemetry, _ = collect(sweep, 9)
    for seed in (0, 4):
        rows = input_pipeline.batch_indices(jnp.uint32(seed), jnp.int32(0), 9, capacity=9, count=40, batch_size=12)
        expected = []
        for step, row in enumerate(np.asarray(rows)):
            pixels = augmented(tiny.images[row], input_pipeline.augmentation_key(jnp.uint32(seed), jnp.int32(step)))
            images = (pixels / 255 - np.array(tiny.mean)) / np.array(tiny.std)
            logits = images.reshape(12, -1) @ np.sin(np.arange(128 * 3.0)).reshape(-1, 3)
            right = logits[np.arange(12), tiny.labels[row]]
            expected.append((np.log(np.exp(logits).sum(1)) - right).mean())
        for config in np.flatnonzero(grid.seeds == seed):
            np.testing.assert_allclose(telemetry["loss"][config], expected, rtol=2e-5)


def test_corrupted_and_clean_images_are_evaluated_apart(tiny):
    corrupted = np.arange(40) % 3 == 1
    dataset = dataclasses.replace(tiny, corrupted=corrupted)
    sweep = Sweep(Probe(), dataset, GRID, TrainingSpec(12))
    assert set(sweep.evaluations) == set(next(iter(sweep.chunks(1, eval_every=1))).evaluation)
    _, seen = collect(sweep, 1)
    images = (tiny.images / 255 - np.array(tiny.mean)) / np.array(tiny.std)
    logits = images.reshape(40, -1) @ np.sin(np.arange(128 * 3.0)).reshape(-1, 3)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(40), tiny.labels]
    errors = logits.argmax(1) != tiny.labels
    for name, part in (("train", slice(None)), ("corrupted_train", corrupted), ("clean_train", ~corrupted)):
        np.testing.assert_allclose(seen[f"{name}_loss"], losses[part].mean(), rtol=2e-5)
        np.testing.assert_allclose(seen[f"{name}_error"], errors[part].mean(), rtol=1e-6)


def test_without_corruption_there_are_no_such_evaluations(tiny):
    assert Sweep(Probe(), tiny, GRID, TrainingSpec(12)).evaluations == (
        "train_loss",
        "train_error",
        "test_loss",
        "test_error",
    )


@pytest.mark.parametrize(("layout", "platform"), [("map", "cpu"), pytest.param("vmap", "cuda", marks=pytest.mark.slow)])
def test_a_tracked_eigenvalue_changes_nothing_else_by_one_bit(tiny, model, layout, platform):
    """And is that of each configuration's weights on the fixed mini-batches; NaN between, and once it diverged."""
    model = model.clone(platform=platform)
    grid = SweepGrid.product(lr=[0.05, 0.3, 1e30], weight_decay=0.0, seed=[4, 0])
    tracked = Sweep(model, tiny, grid, TrainingSpec(12, track_eigenvalue=4), layout=layout)
    found, evaluations = collect(tracked, 10, eval_every=5)
    values = found.pop("sphere_hessian_largest")
    assert np.isfinite(values[:4]).nonzero()[1].tolist() == [0, 4, 8] * 4
    assert np.isnan(values[4:, 1:]).all()
    plain = Sweep(model, tiny, grid, TrainingSpec(12), layout=layout)
    before, first = collect(plain, 8, eval_every=5)
    batches = fixed_batches(tiny, 12)
    fixed = Batch((batches.images / np.float32(255) - batches.mean) / batches.std, batches.labels)
    for i in (0, 3):
        place = plain.placement.arrangement.row[i], plain.placement.arrangement.column[i]
        alone = jax.tree.map(lambda leaf, place=place: jax.device_get(leaf)[place], plain.states)
        assert values[i, 8] == pytest.approx(float(jax.jit(largest_eigenvalue)(alone, fixed)), rel=1e-3)
    after, last = collect(plain, 2, eval_every=5)
    for name, array in found.items():
        np.testing.assert_array_equal(array, np.concatenate([before[name], after[name]], 1), err_msg=name)
    for name, array in evaluations.items():
        np.testing.assert_array_equal(array[:, :2], first[name][:, :2], err_msg=name)
        np.testing.assert_array_equal(array[:, -1:], last[name][:, -1:], err_msg=name)
