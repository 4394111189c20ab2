import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from periodic_jax import Batch, HParams, SweepGrid, create_train_state, eval_step, models, train_step
from periodic_jax.training.losses import LOSSES
from periodic_jax.training.step import full_batch_step

HPARAMS = HParams(lr=0.3, weight_decay=0.01, noninvariant_lr=0.05)


def example(dtype=jnp.float64, width=3, depth=1):
    model = models.ConvNet(width=width, depth=depth, num_classes=4, param_dtype=dtype)
    keys = jax.random.split(jax.random.key(5), 6)
    batches = [Batch(jax.random.normal(k, (10, 8, 8, 2), dtype), jnp.arange(10) % 4) for k in keys]
    return model, create_train_state(model, model.labels(), jax.random.key(0), batches[0].images), batches


def test_steps_equal_a_plain_training_loop(float64):
    model, state, batches = example()
    params, stages = state.params, model.stages()

    @jax.jit
    def plain(params, batch):
        loss, grads = jax.value_and_grad(
            lambda p: reference.cross_entropy(reference.logits(p, batch.images, stages, 1e-5), batch.labels)
        )(params)
        rates = {name: 0.05 if name == "head" else 0.3 for name in params}
        return loss, {
            n: jax.tree.map(lambda p, g, n=n: p - rates[n] * (g + 0.01 * p), params[n], grads[n]) for n in params
        }

    step = jax.jit(train_step)
    for t, batch in enumerate(batches):
        state, metrics = step(state, HPARAMS, batch)
        loss, params = plain(params, batch)
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-10)
        assert int(state.step) == t + 1
    np.testing.assert_allclose(reference.flat(state.params), reference.flat(params), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_structure_shapes_and_dtypes_are_stable(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        _, state, batches = example(dtype)
        after, metrics = jax.jit(train_step)(state, HPARAMS, batches[0])
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert {m.dtype for m in metrics.values()} == {jnp.dtype(dtype)}


def test_jit_and_vmap_agree(float64):
    _, state, batches = example()
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state)
    hparams = SweepGrid.product(lr=[0.1, 0.3, 1.0], weight_decay=1e-2).hparams()
    together, seen = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None)))(states, hparams, batches[0])
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], hparams)
        alone, metrics = jax.jit(train_step)(state, one, batches[0])
        stacked = jax.tree.map(lambda x, i=i: x[i], together.params)
        np.testing.assert_allclose(reference.flat(alone.params), reference.flat(stacked), rtol=1e-11, atol=1e-13)
        for name, value in metrics.items():
            np.testing.assert_allclose(seen[name][i], value, rtol=1e-9, atol=1e-13, err_msg=name)


def test_accuracy_counts_right_answers(float64):
    model, state, batches = example()
    _, metrics = jax.jit(train_step)(state, HPARAMS, batches[0])
    scores = reference.logits(state.params, batches[0].images, model.stages(), 1e-5)
    assert float(metrics["accuracy"]) == np.mean(np.argmax(scores, 1) == np.asarray(batches[0].labels))


@pytest.mark.parametrize("train", [True, False])
def test_evaluation_gives_each_example_its_loss_and_error(float64, train):
    model, state, batches = example()
    state, _ = jax.jit(train_step)(state, HPARAMS, batches[1])
    loss, wrong = jax.jit(eval_step, static_argnums=2)(state, batches[0], train)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    if train:
        scores = jax.jit(lambda params: reference.logits(params, batches[0].images, model.stages(), 1e-5))(state.params)
    else:
        scores = jax.jit(lambda variables: model.apply(variables, batches[0].images, train=False))(variables)
    mean_of_one = jax.jit(reference.cross_entropy)
    each = [mean_of_one(np.asarray(scores)[i : i + 1], np.arange(i, i + 1) % 4) for i in range(10)]
    np.testing.assert_allclose(loss, each, rtol=1e-9)
    assert np.array_equal(wrong, np.argmax(scores, 1) != np.asarray(batches[0].labels))


def test_a_diverged_configuration_is_marked_and_frozen():
    _, state, batches = example(jnp.float32)
    step = jax.jit(train_step)
    state, metrics = step(state, HPARAMS, batches[0])
    broken = batches[1]._replace(images=batches[1].images.at[0, 0, 0, 0].set(jnp.nan))
    frozen, metrics = step(state, HPARAMS, broken)
    assert int(frozen.diverged_at) == 1
    assert np.isnan(metrics["loss"])
    assert np.array_equal(reference.flat(frozen.params), reference.flat(state.params))
    later, metrics = step(frozen, HPARAMS, batches[2])
    assert int(later.diverged_at) == 1
    assert all(np.isnan(m).all() for m in metrics.values())
    for name in ("params", "batch_stats", "opt_state"):
        for a, b in zip(jax.tree.leaves(getattr(later, name)), jax.tree.leaves(getattr(frozen, name)), strict=True):
            assert np.array_equal(a, b, equal_nan=True)


def test_an_infinite_learning_rate_diverges_and_keeps_the_last_weights():
    _, state, batches = example(jnp.float32)
    after, _ = jax.jit(train_step)(state, HPARAMS._replace(lr=jnp.inf), batches[0])
    assert int(after.diverged_at) == 0
    assert np.array_equal(reference.flat(after.params), reference.flat(state.params))


class OwnNetwork(nn.Module):
    """A user's network: flax's own layers, one normalised dense layer and a free head; no ``prepare``, no
    ``labels``."""

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(8, use_bias=False, param_dtype=jnp.float64, name="body")(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, use_bias=False, use_scale=False, epsilon=0.0, name="norm")(x)
        return nn.Dense(4, param_dtype=jnp.float64, name="head")(nn.relu(x))


def test_a_users_own_module_trains_with_a_label_tree(float64):
    _, _, batches = example()
    labels = {"body": "scale_invariant", "head": "other"}
    state = create_train_state(OwnNetwork(), labels, jax.random.key(0), batches[0].images)
    norm = np.linalg.norm(state.params["body"]["kernel"])
    for batch in batches:
        state, metrics = jax.jit(train_step)(state, HPARAMS, batch)
        assert float(metrics["weight_norm"]) == pytest.approx(norm, rel=1e-12)
        assert float(metrics["radial_leak"]) < 1e-10
        a = 1 - 0.3 * 0.01
        norm = np.sqrt(a**2 * norm**2 + (0.3 * float(metrics["effective_grad_norm"]) / norm) ** 2)


class WithoutNormalisation(nn.Module):
    """No ``batch_stats`` at all."""

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(4, name="head")(images.reshape(len(images), -1))


def test_a_module_without_running_statistics_trains():
    _, _, batches = example(jnp.float32)
    state = create_train_state(WithoutNormalisation(), {"head": "other"}, jax.random.key(0), batches[0].images)
    after, metrics = jax.jit(train_step)(state, HPARAMS, batches[0])
    assert after.batch_stats == {}
    assert np.isfinite(metrics["loss"])
    assert int(after.diverged_at) == -1
    assert not np.array_equal(after.params["head"]["kernel"], state.params["head"]["kernel"])


def test_the_squared_loss_is_the_distance_to_the_label():
    scores = jax.random.normal(jax.random.key(0), (6, 5))
    labels = jnp.arange(6) % 5
    expected = ((scores - jax.nn.one_hot(labels, 5)) ** 2).sum(1) / 5
    np.testing.assert_allclose(LOSSES["squared"](scores, labels), expected, rtol=1e-5)


def test_a_full_batch_step_averages_the_gradients_of_its_mini_batches(float64):
    model, state, batches = example()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    after, metrics = jax.jit(full_batch_step)(state, HPARAMS, stacked)

    def mean_loss(params):
        losses = [
            reference.cross_entropy(reference.logits(params, b.images, model.stages(), 1e-5), b.labels) for b in batches
        ]
        return sum(losses) / len(losses)

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(state.params)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-10)
    kernel = state.params["conv1"]["kernel"]
    expected = kernel - 0.3 * (grads["conv1"]["kernel"] + 0.01 * kernel)
    np.testing.assert_allclose(after.params["conv1"]["kernel"], expected, rtol=1e-9, atol=1e-12)


def products(jaxpr):
    """The precision of each matrix product and convolution of a program."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            found += products(inner) if hasattr(inner, "eqns") else []
    return found


@pytest.mark.parametrize(("name", "platform"), [("ConvNet", "cuda"), ("ConvNet", "tpu"), ("ResNet18SIAf", "cuda")])
def test_products_keep_float32_in_a_program_of_the_users_own(name, platform):
    model, images = models.build(name, width=2, platform=platform), jnp.zeros((2, 8, 8, 1))
    state = jax.eval_shape(lambda: create_train_state(model, model.labels(), jax.random.key(0), images))
    batch = Batch(images, jnp.zeros(2, jnp.int32))

    def found():
        return products(jax.make_jaxpr(train_step)(state, HParams(lr=0.1), batch).jaxpr)

    highest = (jax.lax.Precision.HIGHEST,) * 2
    with jax.default_matmul_precision(None):
        assert len(found()) > 10
        assert set(found()) == {highest}
    with jax.default_matmul_precision("tensorfloat32"):
        assert (jax.lax.Precision.HIGH,) * 2 in found()
