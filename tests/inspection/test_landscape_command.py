"""A small run with tracked sharpness, its checkpoints measured, by the command line too."""

import re

import numpy as np
import pytest

import periodic_jax as pj
from periodic_jax import ConfigError, plots
from periodic_jax.analysis import stability
from periodic_jax.analysis.periods import detect_periods
from periodic_jax.cli.main import main
from periodic_jax.inspection import landscape
from periodic_jax.inspection.landscape import Budget
from periodic_jax.reporting import tables
from periodic_jax.runs.config import check
from periodic_jax.storage import datasets
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import LANDSCAPE

SMALL = Budget(images=128, probes=3, eigenvalues=2, iterations=5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One configuration that trains and one that diverges."""
    config = pj.RunConfig(
        out=tmp_path_factory.mktemp("runs") / "run", lr=(0.5, 1e30), weight_decay=(0.0,), width=2, depth=1, steps=6,
        batch_size=64, track_sharpness=2, keep_every=3, eval_every=6, corrupt_train=0.2,
    )  # fmt: skip
    return pj.run_sweep(config).path


@pytest.fixture(scope="module")
def found(run):
    return landscape.measure_landscape(run, budget=SMALL)


def test_sharpness_is_recorded_at_multiples_and_nowhere_else(run):
    ds = open_run(run, flat=True)
    for name in ("sphere_sharpness", "elr_times_sharpness"):
        assert np.isfinite(ds[name].values[0]).tolist() == [True, False, True, False, True, False]
    both = ds.isel(config=0, step=[0, 2, 4])
    np.testing.assert_allclose(both.elr_times_sharpness, both.sphere_sharpness * both.effective_lr, rtol=1e-6)
    assert np.isnan(ds.sphere_sharpness.values[1, 1:]).all()


@pytest.mark.slow
def test_the_tracked_eigenvalue_is_what_the_landscape_of_as_many_images_has(tmp_path):
    config = pj.RunConfig(
        out=tmp_path / "run", lr=0.5, width=2, depth=1, steps=6, batch_size=64, track_eigenvalue=3, keep_every=3,
    )  # fmt: skip
    tracked = open_run(pj.run_sweep(config), flat=True).sphere_hessian_largest
    budget = Budget(probes=0, eigenvalues=1, iterations=20, tolerance=1e-4)
    measured = landscape.measure_landscape(tmp_path / "run", checkpoints=["3"], budget=budget)
    assert tracked.sel(step=3).values[0] == pytest.approx(measured.sphere_hessian_eigenvalue.values.item(), rel=1e-3)


def test_every_checkpoint_configuration_and_part_is_measured(found):
    assert found.sizes == {"config": 2, "checkpoint": 2, "part": 3, "rank": 2}
    assert found.checkpoint.values.tolist() == [3, 6]
    assert found.part.values.tolist() == ["all", "corrupted", "clean"]
    sound = found.isel(config=0)
    for name, values in sound.data_vars.items():
        if name not in ("reason", "noise_scale"):
            assert np.isfinite(values).all(), name
    assert (found.reason.values[1] == "diverged at step 1 and frozen since").all() or (
        found.reason.values[1] == "diverged at step 0 and frozen since"
    ).all()
    for name, values in found.isel(config=1).data_vars.items():
        assert name == "reason" or np.isnan(values).all(), name


def test_numbers_of_the_sphere_follow_from_the_raw_ones(found):
    one = found.isel(config=0)
    np.testing.assert_allclose(one.effective_lr, 0.5 / one.weight_norm**2, rtol=1e-6)
    np.testing.assert_allclose(one.elr_times_sharpness, one.effective_lr * one.sphere_sharpness, rtol=1e-6)
    np.testing.assert_allclose(one.stability_threshold, 2.0, rtol=1e-6)
    np.testing.assert_allclose(
        one.sphere_gauss_newton_eigenvalue, one.weight_norm**2 * one.gauss_newton_eigenvalue, rtol=1e-6
    )
    # All images together are the two parts by their shares.
    whole, corrupted, clean = (one.loss.sel(part=part) for part in ("all", "corrupted", "clean"))
    share = (whole - clean) / (corrupted - clean)
    assert ((share > 0) & (share < 0.5)).all()
    assert float(share[0]) == pytest.approx(float(share[1]), rel=1e-3)


def test_the_command_prints_a_table_and_writes_a_store_and_a_figure(run, found, capsys):
    main(["landscape", str(run), "--checkpoints", "last", "--images", "128", "--probes", "3", "--eigenvalues", "2",
          "--iterations", "5", "--density", "4", "--select", "lr=0.5"])  # fmt: skip
    said, told = capsys.readouterr()
    assert "sharpness" in said
    assert re.search(r"looking at \d+ of the \d+ training images, in \d+ mini-batches of \d+", told)
    with pytest.raises(SystemExit):
        main(["landscape", str(run)])
    assert "this was measured before; give --overwrite to measure anew and replace it" in capsys.readouterr().err
    assert (run / "figures/landscape.png").stat().st_size > 0
    stored = datasets.read_store(run / LANDSCAPE, "a landscape")
    assert stored.sizes["config"] == 1
    assert stored.part.values.tolist() == ["all", "corrupted", "clean"]
    for name in ("hessian_trace", "sphere_hessian_eigenvalue", "gradient_norm"):
        np.testing.assert_allclose(stored[name][0, 0], found[name][0, 1], rtol=1e-5)
    assert "hessian_density_nodes" not in found
    for name in ("hessian", "sphere_hessian", "gauss_newton", "sphere_gauss_newton"):
        nodes, weights = stored[f"{name}_density_nodes"], stored[f"{name}_density_weights"]
        assert nodes.dims == weights.dims == ("config", "checkpoint", "part", "probe", "node")
        assert (nodes.sizes["probe"], nodes.sizes["node"]) == (3, 4)
        np.testing.assert_allclose(weights.sum("node"), 1, rtol=1e-5)
        mean = (nodes * weights).sum("node").mean("probe")  # of the 90 eigenvalues, by the probes of the trace
        if not name.startswith("sphere"):
            np.testing.assert_allclose(90 * mean, stored[f"{name}_trace"], rtol=1e-3)
    assert "diverged at step" in tables.landscape_as_text(found)
    ax = plots.landscape(found.isel(config=slice(0, 1), checkpoint=slice(0, 1))).axes[0]
    assert ax.get_ylabel() == "effective learning rate x sharpness"
    assert ax.get_ylim()[1] > 2  # one number alone: the threshold is in view all the same
    assert len(plots.landscape(found).axes) >= 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"checkpoints": ["5"]}, "--checkpoints: 5"),
        ({"checkpoints": ["newest"]}, "--checkpoints: newest"),
        ({"select": {"lr": (0.3,)}}, "--select: lr=0.3"),
        ({"select": {"speed": (0.3,)}}, "--select: speed"),
        ({"weights": "head"}, "--weights: head"),
        ({"budget": Budget(density=-1)}, "--density: -1"),
        ({"budget": Budget(density=5, probes=0)}, "--density: 5 with --probes 0"),
        ({"budget": Budget(images=1)}, "--images: 1"),
        ({"budget": Budget(tolerance=-1.0)}, "--tolerance: -1"),
        ({"budget": Budget(tolerance=0.0)}, "--tolerance: 0 is not accepted; expected a number above 0"),
    ],
)
def test_unusable_requests_are_refused(run, options, named):
    with pytest.raises(ConfigError, match=named):
        landscape.measure_landscape(run, **options)


@pytest.mark.parametrize("name", ["track_sharpness", "track_eigenvalue"])
@pytest.mark.parametrize(
    ("value", "model", "named"),
    [(1, "ConvNet", "no scale-invariant weights"), (0, "ConvNetSI", ": 0 "), (-2, "ConvNetSI", ": -2 ")],
)
def test_what_cannot_be_tracked_is_refused(name, value, model, named):
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}.*{named}"):
        check(pj.RunConfig(out="x", model=model, steps=3, **{name: value}))


def test_an_eigenvalue_beyond_the_end_is_refused():
    with pytest.raises(ConfigError, match=r"--track-eigenvalue: 4 .* at most 3, the steps of the run"):
        check(pj.RunConfig(out="x", steps=3, track_eigenvalue=4))


def test_means_before_onsets_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    steps = np.arange(900)
    norm = np.exp(-0.003 * (steps % 300)) * 3
    loss = np.where(steps % 300 < 4, 5.0, 0.01)
    curves = {"loss": loss[None], "weight_norm": norm[None], "effective_lr": 0.1 / norm[None] ** 2}
    found = detect_periods(curves)
    assert found.found.tolist() == [2]
    measured = np.where(steps % 7 == 0, rng.uniform(0, 3, 900), np.nan)[None]
    got = stability.before_onsets(measured, found)
    for k in range(2):
        onset, fall = int(found.onset[0, k]), int(found.fall[0, k])
        late = [measured[0, t] for t in steps if onset - 0.1 * (onset - fall) <= t <= onset and t % 7 == 0]
        early = [measured[0, t] for t in steps if fall <= t <= fall + 0.5 * (onset - fall) and t % 7 == 0]
        assert got.onset_elr_times_sharpness[0, k] == pytest.approx(np.mean(late))
        assert got.fall_elr_times_sharpness[0, k] == pytest.approx(np.mean(early))
    assert np.isnan(stability.before_onsets(np.full((1, 900), np.nan), found)[0]).all()
