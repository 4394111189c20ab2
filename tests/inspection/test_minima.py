"""A tiny run whose minima are kept, killed and resumed too; and the comparison of minima against slow loops."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers.survival import flip, stop_after

import periodic_jax as pj
from periodic_jax import ConfigError
from periodic_jax.analysis import online
from periodic_jax.analysis.periods import Periods
from periodic_jax.cli.main import main
from periodic_jax.core.errors import CorruptedRunError, RunInterrupted
from periodic_jax.inspection import minima, minima_sources
from periodic_jax.inspection.info import describe_run
from periodic_jax.inspection.load import load_run, load_states
from periodic_jax.landscape import connectivity
from periodic_jax.landscape.connectivity import average, barrier, by_layers, combined, cosine, on_sphere, straight
from periodic_jax.landscape.networks import Networks
from periodic_jax.plots import minima as draw
from periodic_jax.reporting import tables
from periodic_jax.runs import minima_recorder
from periodic_jax.runs.run import resume_run
from periodic_jax.storage import datasets
from periodic_jax.storage.minima_files import saved_minima
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import COMPARISON
from periodic_jax.training.input_pipeline import INITIALISATION, purpose_key

EVERY, STEPS = 10, 60


# So few steps have no periods. The rule that tells them is shown a norm that falls e-fold in each step but the last
# five of every 20, in which it comes back: far more than the network's own does, whatever its rounding. So the periods
# of each finite configuration end after 20, 40 and 60 steps; which of their windows is lower is for the losses to say.
RISES = np.concatenate([-np.arange(15), np.arange(-11, 0, 2.75), [0]])
ENDS = (20, 40, 60)


def collect_with_rises(rule, first_step, loss, norm):
    steps = first_step + np.arange(norm.shape[1])
    online.update_rule(rule, first_step, loss, norm * np.exp(RISES[steps % 20]).astype(norm.dtype))


@pytest.fixture(scope="module", autouse=True)
def _rises():
    """Every rise of the norm ends a period, whatever the loss does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minima_recorder, "update_rule", collect_with_rises)
        for name, value in {"LOSS_RATIO": 1e-9, "LOSS_NOISE": -1e9, "NORM_NOISE": 0.0}.items():
            patch.setattr(online, name, value)
        yield


SETTINGS = {
    "lr": (0.5,), "weight_decay": (0.1,), "noninvariant_lr": (0.0, 1e30), "seed": (0, 1), "width": 2, "depth": 1,
    "steps": STEPS, "eval_every": 20, "checkpoint_seconds": 0.0, "keep_every": EVERY, "layout": "map",
    "use_data_size": 64, "batch_size": 32, "keep_period_minima": EVERY, "momentum": (0.0,),
}  # fmt: skip


def configured(out, **changes):
    return pj.RunConfig(**{"out": out, **SETTINGS, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run: two seeds, and two configurations that diverge."""
    return pj.run_sweep(configured(tmp_path_factory.mktemp("minima") / "run")).path


@pytest.fixture(scope="module")
def found(whole):
    return minima.compare(whole, points=3)


def first(tree):
    """The first configuration's leaves."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), tree)


def contents(path):
    kept = {}
    for one in saved_minima(path):
        with np.load(one.file, allow_pickle=False) as arrays:
            kept[one[:3]] = {name: arrays[name] for name in arrays.files}
    return kept


def assert_same_minima(path, expected):
    a, b = contents(path), contents(expected)
    assert a.keys() == b.keys()
    for key in a:
        for name, array in a[key].items():
            np.testing.assert_array_equal(array, b[key][name], strict=True)


def test_kept_minima_are_the_weights_of_their_steps(whole):
    kept, run = contents(whole), load_run(whole)
    assert {one[0] for one in kept} == {0, 1}  # the others diverge at once
    for config in (0, 1):
        assert [one[2] for one in sorted(kept, key=lambda one: one[1]) if one[0] == config] == [*ENDS, None]
    loss = open_run(whole, flat=True).loss.values
    for (config, step, ended), arrays in kept.items():
        states = load_states(run, step, [config])
        np.testing.assert_array_equal(arrays["params.conv0.kernel"], states.params["conv0"]["kernel"][0], strict=True)
        np.testing.assert_array_equal(arrays["batch_stats.conv1.mean"], states.batch_stats["conv1"]["mean"][0])
        window = loss[config, step - EVERY : step]
        np.testing.assert_allclose(arrays["score"], max(np.median(window), window[-10:].mean()), rtol=1e-6)
        assert ended is None or ended > step


def test_a_stopped_run_goes_on_to_the_same_minima_and_training_does_not_notice(whole, tmp_path):
    with pytest.raises(RunInterrupted):
        pj.run_sweep(configured(tmp_path / "run"), callbacks=stop_after(3))
    assert not any(one.ended is None for one in saved_minima(tmp_path / "run"))
    # Killed later than its checkpoint: minima of steps that are computed again, and half a file.
    (tmp_path / "run/minima/0").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/minima/0/33-55.npz").write_bytes(b"")
    (tmp_path / "run/minima/0/33-55.npz.partial").write_bytes(b"")
    resume_run(tmp_path / "run", callbacks=pj.RunCallbacks(log=pytest.fail))
    assert_same_minima(tmp_path / "run", whole)
    assert not list((tmp_path / "run/minima").rglob("*.partial"))
    assert describe_run(tmp_path / "run", verify=True).errors == []
    plain = pj.run_sweep(configured(tmp_path / "plain", keep_period_minima=None)).path
    a, b = (open_run(path, flat=True).load().drop_attrs() for path in (whole, plain))
    assert a.identical(b)
    assert not (plain / "minima").exists()


def test_a_branch_begins_a_period_of_its_own_and_an_extended_run_forgets_unfinished_ones(whole, tmp_path):
    out = pj.branch_run(whole, tmp_path / "branch", step=20).path
    assert all(one.step > 20 for one in saved_minima(out))
    for config in (0, 1):
        assert [one.ended for one in saved_minima(out) if one.config == config] == [40, 60, None]
    shutil.copytree(whole, tmp_path / "run")
    before = {one[:3] for one in saved_minima(whole)}
    resume_run(tmp_path / "run", steps=STEPS + EVERY)
    after = {one[:3] for one in saved_minima(tmp_path / "run")}
    assert {one for one in before if one[2] is not None} <= after
    assert sum(one[2] is None for one in after) == 2


def ended_of(path):
    return [one for one in saved_minima(path) if one.ended is not None]


def corrupt(path):
    flip(ended_of(path)[0].file)


def lose(path):
    ended_of(path)[0].file.unlink()


def copy_another(path):
    one = ended_of(path)[-1]
    shutil.copy(one.file, ended_of(path)[0].file)


def add_another(path):
    one = ended_of(path)[0]
    shutil.copy(one.file, one.file.with_name(f"{one.step + 1}-{one.ended}.npz"))


@pytest.mark.parametrize(
    ("do", "said"),
    [(corrupt, ".npz: "), (lose, "minima are there"), (copy_another, "it is that of configuration"),
     (add_another, "minima are there")],
)  # fmt: skip
def test_minima_that_are_not_those_kept_are_named_refused_and_found_again(whole, tmp_path, do, said):
    cut = shutil.copytree(whole, tmp_path / "run")
    do(cut)
    report = describe_run(cut, verify=True)
    assert any(said in fault for fault in report.errors)
    assert f"to mend it: periodic-jax resume {cut} --truncate" in report.lines
    with pytest.raises(CorruptedRunError, match=said):
        minima.compare(cut)
    heard: list[str] = []
    resume_run(cut, truncate=True, callbacks=pj.RunCallbacks(log=heard.append))
    assert any("corrupted files of telemetry: 0; going on from step" in line for line in heard)
    assert_same_minima(cut, whole)
    assert describe_run(cut, verify=True).errors == []
    a, b = (open_run(path, flat=True).load().drop_attrs() for path in (whole, cut))
    assert a.identical(b)


def test_a_run_that_is_whole_is_left_so_by_truncation(whole, tmp_path):
    assert any("minima of periods" in line for line in describe_run(whole).lines)
    cut = shutil.copytree(whole, tmp_path / "run")
    files = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError, match=f"^--truncate: {cut} .*a corrupted run; this one is finished"):
        resume_run(cut, truncate=True)
    assert {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()} == files


def test_a_run_that_kept_none_yet_says_what_it_keeps(tmp_path):
    path = pj.run_sweep(configured(tmp_path / "run", steps=EVERY - 1, seed=(0,), noninvariant_lr=(0.0,))).path
    with pytest.raises(ConfigError, match=f"each is the lowest of every {EVERY} steps"):
        minima.compare(path)


def test_statistics_quality_and_ensembles_are_those_of_plain_sums(whole, found):
    run = load_run(whole)
    one = saved_minima(whole)[0]
    with np.load(one.file) as arrays:
        kernel, stored = arrays["params.conv0.kernel"].astype(np.float64), dict(arrays)
    data = run.config.data
    images = (data.images / 255 - np.array(data.mean)) / np.array(data.std)
    framed = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    unit = {
        name: a / found.weight_norm.values[0, 0] for name, a in stored.items() if "conv" in name and "kernel" in name
    }
    total = np.sqrt(sum(np.sum(np.square(stored[name], dtype=np.float64)) for name in unit))
    assert found.weight_norm.values[0, 0] == pytest.approx(total)
    patches = np.stack([framed[:, r : r + 8, c : c + 8] for r in range(3) for c in range(3)], -1)[..., 0, :]
    outputs = patches @ (kernel / total).reshape(9, -1)
    states = load_states(run, one.step, [one.config])
    labels = states.task.labels
    params, statistics = on_sphere(first(states.params), labels), first(states.batch_stats)
    networks = Networks(states.task, data)
    quality = networks.quality(params, statistics)
    np.testing.assert_allclose(quality.statistics["conv0"]["mean"], outputs.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(quality.statistics["conv0"]["var"], outputs.var((0, 1, 2), ddof=1), rtol=1e-5)
    in_parts = Networks(states.task, data, most_pixels=64 * 16).quality(params, statistics)
    np.testing.assert_allclose(in_parts.statistics["conv0"]["mean"], outputs.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(in_parts.statistics["conv0"]["var"], outputs.var((0, 1, 2)), rtol=2e-3)
    assert in_parts.train_loss == pytest.approx(quality.train_loss, rel=0.1)
    assert found.train_loss.values[0, 0] == pytest.approx(quality.train_loss, rel=1e-5)
    logits = quality.test_outputs.astype(np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = chances[np.arange(len(logits)), data.test_labels]
    assert quality.test_loss == pytest.approx(-np.log(right).mean(), rel=1e-5)
    other = logits[::-1] / 3
    chances = (chances + np.exp(other) / np.exp(other).sum(1, keepdims=True)) / 2
    np.testing.assert_allclose(np.exp(combined([logits, other], "cross_entropy")), chances, rtol=1e-9)
    loss, error = networks.together([logits, other])
    assert loss == pytest.approx(-np.log(chances[np.arange(len(logits)), data.test_labels]).mean(), rel=1e-5)
    assert error == pytest.approx((chances.argmax(1) != data.test_labels).mean())
    np.testing.assert_array_equal(combined([logits, other], "squared"), (logits + other) / 2)


def test_quality_is_that_of_pytorch(whole):
    """Of the same weights and re-estimated statistics, by PyTorch's kernels."""
    from helpers import torch_oracle

    run, one = load_run(whole), saved_minima(whole)[0]
    states, data = load_states(run, one.step, [one.config]), run.config.data
    params = on_sphere(first(states.params), states.task.labels)
    quality, model = Networks(states.task, data).quality(params, first(states.batch_stats)), states.task.model
    state = torch_oracle.state_dict(model, {"params": params, "batch_stats": quality.statistics})
    logits = torch_oracle.convnet(model, state, torch_oracle.normalised(data.test_images, data, "float32"), train=False)
    np.testing.assert_allclose(quality.test_outputs, logits.numpy(), rtol=1e-4, atol=1e-4)
    loss = torch_oracle.F.cross_entropy(logits, torch_oracle.torch.as_tensor(data.test_labels).long())
    assert quality.test_loss == pytest.approx(float(loss), rel=1e-5)


def test_angles_paths_and_averages_are_those_of_plain_vectors():
    rng = np.random.default_rng(0)
    a, b = ({"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5), "c": rng.normal(size=2)} for _ in range(2))
    labels = (True, False, True)
    flat_a, flat_b = (np.concatenate([x["a"].ravel(), x["c"]]) for x in (a, b))
    norms = np.linalg.norm(flat_a), np.linalg.norm(flat_b)
    assert cosine(a, b, labels) == pytest.approx(flat_a @ flat_b / norms[0] / norms[1])
    on_a, on_b = on_sphere(a, labels), on_sphere(b, labels)
    np.testing.assert_allclose(on_a["c"], a["c"] / norms[0])
    np.testing.assert_array_equal(on_a["b"], a["b"])
    np.testing.assert_allclose(on_sphere(a, labels, each=True)["c"], a["c"] / np.linalg.norm(a["c"]))
    mean = average([on_a, on_b], labels)
    wanted = flat_a / norms[0] + flat_b / norms[1]
    np.testing.assert_allclose(mean["a"].ravel(), (wanted / np.linalg.norm(wanted))[:12])
    np.testing.assert_allclose(mean["b"], (a["b"] + b["b"]) / 2)
    np.testing.assert_allclose(straight(a, b, 0.25, labels)["a"], 0.75 * a["a"] + 0.25 * b["a"])
    for t in (0.0, 0.3, 1.0):
        point = by_layers(a, b, t, labels)
        np.testing.assert_allclose(point["b"], (1 - t) * a["b"] + t * b["b"])
        for name in "ac":
            u, v, x = (leaf[name] / np.linalg.norm(leaf[name]) for leaf in (a, b, point))
            whole, part = (np.arccos(np.clip(np.sum(u * w), -1, 1)) for w in (v, x))
            assert part == pytest.approx(t * whole, abs=1e-6)
    np.testing.assert_allclose(by_layers(a, a, 0.3, labels)["a"], a["a"])
    assert barrier(np.array([1.0, 0.5, 3.0])) == 0
    assert connectivity.disagreement(np.full((2, 2), np.nan), np.zeros((2, 2))) != 0


def test_the_comparison_agrees_with_loops(whole, found):
    assert found.sizes["config"] == 4
    assert np.isfinite(found.step.values[:2, 0]).all()
    assert np.isnan(found.step.values[2:]).all()
    assert found.attrs["statistics"] == "re-estimated over 64 of 64 training images"
    run = load_run(whole)
    states = load_states(run, int(found.step[0, 0]), [0])
    networks, labels = Networks(states.task, run.config.data), states.task.labels
    chosen = [load_states(run, int(found.step[0, k]), [0]) for k in (0, 1)]
    units = [on_sphere(first(one.params), labels) for one in chosen]
    losses = [networks.quality(straight(*units, t, labels), first(states.batch_stats)).train_loss for t in (0, 0.5, 1)]
    np.testing.assert_allclose(found.path_train_loss.values[0, 0, 0], losses, rtol=1e-5)
    assert found.barrier.values[0, 0, 0] == pytest.approx(max(0, losses[1] - (losses[0] + losses[2]) / 2), abs=1e-6)
    assert found.cosine.values[0, 0, 1] == pytest.approx(cosine(*units, labels), rel=1e-6)
    start = pj.create_train_state(
        states.task.model, labels, purpose_key(jnp.uint32(0), INITIALISATION), jnp.zeros((32, 8, 8, 1))
    )
    assert found.cosine_to_start.values[0, 0] == pytest.approx(cosine(units[0], start.params, labels), rel=1e-5)
    assert np.isfinite(found.seed_cosine.values[:2]).all()
    assert found.seed_barrier.values[0, 0] == pytest.approx(found.seed_barrier.values[1, 0], abs=1e-4)
    assert found.ensemble_error.values[0, 0] == pytest.approx(found.seed_ensemble_error.values[0, 0])


def test_the_command_prints_tables_and_writes_a_store_and_a_figure(whole, capsys):
    main(["minima", str(whole), "--select", "seed=0", "--last", "1", "--points", "3"])
    said = capsys.readouterr().out
    assert "saved while training" in said
    assert "earlier minima are left out" in said
    stored = datasets.read_store(str(whole / COMPARISON))
    assert stored.sizes["config"] == 2
    assert stored.reason.dtype.kind == "U"
    assert (whole / "figures/minima.png").stat().st_size > 0
    with pytest.raises(SystemExit) as stop:
        main(["minima", str(whole)])
    assert stop.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_one_minimum_and_weights_that_are_not_finite_are_told(whole, tmp_path):
    cut = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(cut / "checkpoints")  # which would tell that more were kept
    lowest, *rest = [one for one in saved_minima(cut) if one.config == 0]
    for one in rest:
        one.file.unlink()
    with np.load(lowest.file) as arrays:
        changed = {name: np.full_like(a, np.nan) if "conv0.kernel" in name else a for name, a in arrays.items()}
    alone = minima.compare(cut, select={"seed": (0,)}, points=3)
    assert alone.sizes["pair"] == 0
    assert np.isfinite(alone.ensemble_error.values[0]).all()
    np.savez(lowest.file, **changed)
    broken = minima.compare(cut, select={"seed": (0,)}, points=3)
    assert broken.reason.values[0, 0] == "weights are not finite"
    assert np.isnan(broken.train_loss.values).all()
    for one in (alone, broken):
        assert "lr" in tables.minima_as_text(one)
        draw(one)


def test_without_kept_minima_the_last_checkpoints_before_the_onsets_do(tmp_path, monkeypatch):
    cut = pj.run_sweep(configured(tmp_path / "run", keep_period_minima=None)).path
    with pytest.raises(ConfigError, match="--keep-period-minima"):
        minima.compare(cut)
    nothing = Periods(*[np.full((4, 3), np.nan)] * len(Periods._fields))
    onset = nothing.onset.copy()
    onset[0] = [35, 38, 52]

    class Analysed:
        onset_step = xr.DataArray(onset)

    monkeypatch.setattr(minima_sources.analysis, "analyze", lambda run: Analysed)
    found = minima.compare(cut, points=3)
    assert found.step.values[0].tolist() == [30, 50]
    assert found.ended.values[0].tolist() == [35, 52]
    assert found.attrs["source"].startswith("the last checkpoints")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"last": 0}, "--last: 0"), ({"images": 1}, "--images: 1"), ({"points": 2}, "--points: 2"),
     ({"select": {"lr": (7.0,)}}, "--select: lr=7")],
)  # fmt: skip
def test_unusable_requests_are_refused(whole, options, named):
    with pytest.raises(ConfigError, match=named):
        minima.compare(whole, **options)


@pytest.mark.parametrize("words", [["9"], ["10001"], ["x"], ["10", "20"]])
def test_unusable_windows_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--steps", "5", "--out", "unused", "--keep-period-minima", *words])
    assert stop.value.code == 2
    assert "--keep-period-minima" in capsys.readouterr().err


def test_the_figure_tells_all_configurations_apart(found):
    figure = draw(found)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0, 0", "0, 1", "1e+30, 0", "1e+30, 1"]
    assert figure.legends[0].get_title().get_text() == "learning rate of the others,\nseed"
    errors, _, paths, _ = figure.axes
    assert len({line.get_color() for line in errors.lines}) == 4
    assert "seed" in paths.get_title()
    several: list[xr.Dataset] = [found] * 3
    many = draw(xr.concat(several, "config"))  # more than a legend has room for: a colour for each learning rate
    assert [text.get_text() for text in many.legends[0].get_texts()] == ["0", "1e+30"]
