"""The comparison of minima: its numbers against slow loops, and where there are few minima, or none saved."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from helpers.minima_runs import configured, first

import periodic_jax as pj
from periodic_jax import ConfigError
from periodic_jax.analysis.periods import Periods
from periodic_jax.inspection import minima, minima_sources
from periodic_jax.inspection.load import load_run, load_states
from periodic_jax.landscape.connectivity import cosine, on_sphere, straight
from periodic_jax.landscape.networks import Networks
from periodic_jax.plots import minima as draw
from periodic_jax.reporting import tables
from periodic_jax.storage.minima_files import saved_minima
from periodic_jax.training.input_pipeline import INITIALISATION, purpose_key

pytestmark = pytest.mark.usefixtures("rises")


def test_the_comparison_agrees_with_loops(whole, compared):
    assert compared.sizes["config"] == 4
    assert np.isfinite(compared.step.values[:2, 0]).all()
    assert np.isnan(compared.step.values[2:]).all()
    assert compared.attrs["statistics"] == "re-estimated over 64 of 64 training images"
    run = load_run(whole)
    states = load_states(run, int(compared.step[0, 0]), [0])
    networks, labels = Networks(states.task, run.config.data), states.task.labels
    chosen = [load_states(run, int(compared.step[0, k]), [0]) for k in (0, 1)]
    a, b = (on_sphere(first(state.params), labels) for state in chosen)
    losses = [networks.quality(straight(a, b, t, labels), first(states.batch_stats)).train_loss for t in (0, 0.5, 1)]
    np.testing.assert_allclose(compared.path_train_loss.values[0, 0, 0], losses, rtol=1e-5)
    assert compared.barrier.values[0, 0, 0] == pytest.approx(max(0, losses[1] - (losses[0] + losses[2]) / 2), abs=1e-6)
    assert compared.cosine.values[0, 0, 1] == pytest.approx(cosine(a, b, labels), rel=1e-6)
    start = pj.create_train_state(
        states.task.network.module, labels, purpose_key(jnp.uint32(0), INITIALISATION), jnp.zeros((32, 8, 8, 1))
    )
    assert compared.cosine_to_start.values[0, 0] == pytest.approx(cosine(a, start.params, labels), rel=1e-5)
    assert np.isfinite(compared.seed_cosine.values[:2]).all()
    assert compared.seed_barrier.values[0, 0] == pytest.approx(compared.seed_barrier.values[1, 0], abs=1e-4)
    assert compared.ensemble_error.values[0, 0] == pytest.approx(compared.seed_ensemble_error.values[0, 0])


def test_one_minimum_and_weights_that_are_not_finite(whole, tmp_path):
    cut = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(cut / "checkpoints")  # which would count more
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


def test_without_saved_minima_the_last_checkpoints_before_the_onsets_do(tmp_path, monkeypatch):
    cut = pj.run_sweep(configured(tmp_path / "run", keep_period_minima=None)).path
    with pytest.raises(ConfigError, match="--keep-period-minima"):
        minima.compare(cut)
    nothing = Periods(*[np.full((4, 3), np.nan)] * len(Periods._fields))
    onset = nothing.onset.copy()
    onset[0] = [35, 38, 52]

    class Analysed:
        onset_step = xr.DataArray(onset)

    monkeypatch.setattr(minima_sources.analysis, "analyze", lambda run: Analysed)
    compared = minima.compare(cut, points=3)
    assert compared.step.values[0].tolist() == [30, 50]
    assert compared.ended.values[0].tolist() == [35, 52]
    assert compared.attrs["source"].startswith("the last checkpoints")


@pytest.mark.parametrize(
    ("options", "named"),
    [({"last": 0}, "--last: 0"), ({"images": 1}, "--images: 1"), ({"points": 2}, "--points: 2"),
     ({"select": {"lr": (7.0,)}}, "--select: lr=7")],
)  # fmt: skip
def test_unusable_requests_are_refused(whole, options, named):
    with pytest.raises(ConfigError, match=named):
        minima.compare(whole, **options)
