from typing import Any

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import FOUR, STEPS, cut, open_flat, stack, trajectory
from scipy import stats

from periodic_jax.analysis.pipeline import analyze, log_slope
from periodic_jax.analysis.regimes import REGIMES
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.reporting.tables import COLUMNS, FORECASTS, as_text, findings


def test_known_answers(four_run, analysed):
    assert analysed.regime.values.tolist() == ["periodic", "periodic", "converging", "diverged"]
    assert analysed.destabilisations.values.tolist() == [3, 1, 0, 0]
    np.testing.assert_array_equal(analysed.mean_period, [350, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(analysed.diverged_at, [np.nan, np.nan, np.nan, 650])
    np.testing.assert_array_equal(analysed.steps, [STEPS, STEPS, STEPS, 650])
    # Evaluation of configuration i after t steps: i + t / 1000, half of it for errors; the last norm is the last known.
    np.testing.assert_allclose(analysed.final_train_loss, [1.2, 2.2, 3.2, 4.2], rtol=1e-6)
    np.testing.assert_allclose(analysed.lowest_train_loss, [0, 1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(analysed.final_test_error, [0.6, 1.1, 1.6, 2.1], rtol=1e-6)
    np.testing.assert_allclose(analysed.lowest_test_error, [0, 0.5, 1, 1.5], rtol=1e-6)
    norm = four_run.weight_norm.values
    np.testing.assert_array_equal(analysed.final_weight_norm, [norm[0, -1], norm[1, -1], norm[2, -1], norm[3, 649]])
    for name in AXES:
        np.testing.assert_array_equal(analysed[name], FOUR.coords[name])


def test_destabilisations_and_periods(analysed):
    np.testing.assert_array_equal(analysed.onset_step, [[300, 600, 1000], [500, np.nan, np.nan], *[[np.nan] * 3] * 2])
    np.testing.assert_array_equal(analysed.end_step[0], [305, 605, 1005])
    np.testing.assert_array_equal(analysed.fall_steps[0], [300, 295, 395])
    np.testing.assert_array_equal(analysed.period_length[0], [300, 400])
    np.testing.assert_array_equal(analysed.period_jump[0], [5, 5])
    np.testing.assert_array_equal(analysed.period_fall[0], [295, 395])
    # Evaluations after 400 and 600 steps are of the first period, after 800 and 1000 of the second.
    np.testing.assert_allclose(analysed.period_lowest_train_loss[0], [0.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(analysed.period_lowest_test_error[0], [0.2, 0.4], rtol=1e-6)
    assert np.isnan(analysed.period_lowest_test_error[1:]).all()


def test_theory(analysed):
    """Bursts apart, gradients are nearly nothing: falling edges are those of decay alone, and nothing is violated."""
    np.testing.assert_allclose(analysed.predicted_fall_steps[0], analysed.fall_steps[0], rtol=1e-3)
    assert np.nansum(analysed.check_violations) == 0
    assert np.isfinite(analysed.check_violations).all()
    np.testing.assert_allclose(analysed.budget_residual, 0, atol=1e-4)
    assert np.isnan(analysed.radial_leak).all()  # of which these curves have none


def test_in_blocks_as_at_once(four_run, analysed):
    xr.testing.assert_allclose(analyze(four_run, predict=True, most_in_memory=1), analysed)
    assert set(analyze(four_run).data_vars) == {
        n for n in analysed.data_vars if not str(n).startswith(("forecast_", "backtest_"))
    }


DECAYS = np.array([1e-3, 3e-3, 1e-2])
ONSETS = [[600, 1300, 1900], [200, 500, 900, 1300, 1800], list(range(90, 1990, 95))]


def falls_at_three_rates(path, change=lambda curve: curve, momentum=0.0, **options):
    curves = [
        change(trajectory(2000, o, weight_decay=d, growth=1.12, seed=i, **options))
        for i, (o, d) in enumerate(zip(ONSETS, DECAYS, strict=True))
    ]
    grid = SweepGrid.product(lr=1.0, weight_decay=DECAYS.tolist(), momentum=momentum)
    return analyze(open_flat(path, grid, stack(curves)))


def test_slope_of_falling_edges(tmp_path):
    """Three rates of decay: the falls last as long as decay alone takes, whatever their norm ratio."""
    analysed = falls_at_three_rates(tmp_path / "run", quiet=1e-5)
    edge = analysed.sel(fit="falling_edge_quiet")
    assert edge.slope == pytest.approx(-1, abs=0.02)
    assert edge.slope_low <= edge.slope <= edge.slope_high
    assert 20 < edge.slope_points < 28  # at the smallest norms gradients matter
    assert analysed.sel(fit="falling_edge_uncorrected").slope_points == analysed.destabilisations.sum() == 28
    assert analysed.sel(fit="period_length").slope == pytest.approx(-0.8, abs=0.3)
    assert "slope of log quiet falling edges" in findings(analysed)


@pytest.mark.parametrize("quiet", [1e-5, 0.7])
def test_gradients_are_taken_off_the_falling_edges(tmp_path, quiet):
    """However much they prolong the falls: the exponent of -ln a = -ln(1 - ηλ) is -1 for every edge."""
    analysed = falls_at_three_rates(tmp_path / "run", quiet=quiet, norm=8.0)
    edge = analysed.sel(fit="falling_edge")
    assert edge.slope_points == analysed.destabilisations.sum() == 28
    of_decay = np.polyfit(np.log(DECAYS), np.log(-1 / np.log1p(-DECAYS)), 1)[0]
    assert edge.slope == pytest.approx(of_decay, abs=2e-3)
    if quiet == 0.7:
        assert abs(analysed.sel(fit="falling_edge_uncorrected").slope + 1) > 0.05
        assert analysed.sel(fit="falling_edge_quiet").slope_points < 20


def test_falling_edges_that_cannot_be_corrected_are_left_out(tmp_path):
    """With missing steps, or with momentum, their rotation is not known to be all that held them up."""

    def gap(curve):
        return {name: np.where(np.arange(2000) == 1265, np.nan, values) for name, values in curve.items()}

    analysed = falls_at_three_rates(tmp_path / "gap", change=gap, quiet=1e-5)
    assert analysed.sel(fit="falling_edge").slope_points == analysed.destabilisations.sum() - 3 == 25
    analysed = falls_at_three_rates(tmp_path / "momentum", quiet=1e-5, momentum=0.5)
    assert analysed.slope_points.values[:3].tolist() == [0, 0, 28]


def test_log_slope_against_least_squares():
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=(10, 3)))
    y = x**-1.5 * np.exp(0.3 * rng.normal(size=x.shape))
    spoiled_x, spoiled_y = x.copy(), y.copy()
    spoiled_x[3], spoiled_y[4, :2] = [np.nan, -1, 0], [np.nan, -1]
    fit = log_slope(spoiled_x, spoiled_y, np.arange(10), np.arange(10))
    kept = np.ones(x.shape, bool)
    kept[3], kept[4, :2] = False, False
    expected: Any = stats.linregress(np.log(x[kept]), np.log(y[kept]))
    assert fit.slope == pytest.approx(expected.slope)
    assert fit.intercept == pytest.approx(expected.intercept)
    assert (fit.points, fit.configs, fit.products) == (25, 9, 9)
    assert fit.low < fit.slope < fit.high
    assert np.isnan(log_slope(np.ones((5, 1)), y[:5, :1], np.ones(5), np.arange(5)).slope)
    assert np.isnan(log_slope(x[:2, :1], y[:2, :1], np.arange(2), np.arange(2)).slope)


def test_the_interval_of_a_slope_is_over_configurations():
    """One of many periods does not make it narrow; what Student's interval over periods holds in a half of the draws
    is held in nine of ten and more.
    """
    rng, rate, held, naive = np.random.default_rng(0), np.array([1e-3, 1e-3, 3e-3, 1e-2, 3e-2, 3e-2])[:, None], 0, 0
    x = np.where(np.arange(80) < np.array([4, 4, 10, 20, 80, 80])[:, None], rate, np.nan)
    good = np.isfinite(x)
    for _ in range(200):
        y = np.exp(0.2 * rng.normal(size=(6, 1)) + 0.1 * rng.normal(size=x.shape)) / x
        fit = log_slope(x, y, rate[:, 0], np.arange(6))
        held += fit.low <= -1 <= fit.high
        ordinary: Any = stats.linregress(np.log(x[good]), np.log(y[good]))
        naive += abs(ordinary.slope + 1) <= 2 * ordinary.stderr
    assert held >= 175
    assert naive <= 130


def test_no_interval_below_three_products():
    """Two products, of any number of configurations, roundings of a product being one."""
    x = np.repeat([1e-3, 1e-2], 4)[:, None] * np.ones((1, 20))
    y = np.exp(0.1 * np.random.default_rng(0).normal(size=x.shape)) / x
    fit = log_slope(x, y, x[:, 0] * (1 + 1e-9 * np.arange(8)), np.arange(8))
    assert fit.slope == pytest.approx(-1, abs=0.1)
    assert (fit.points, fit.configs, fit.products) == (160, 8, 2)
    assert np.isnan([fit.low, fit.high]).all()


def test_what_a_slope_is_of_is_said(tmp_path):
    analysed = falls_at_three_rates(tmp_path / "run", quiet=1e-5)
    line = next(line for line in findings(analysed).splitlines() if "period length" in line)
    assert line.endswith("25 of them in 3 configurations at 3 products")
    two = findings(analyze(open_flat(tmp_path / "two", FOUR, stack([trajectory(STEPS, [300, 600], lr=lr, growth=1.12)
                   for lr in (1, 1, 0.5, 0.5)]))))  # fmt: skip
    line = next(line for line in two.splitlines() if "all falling edges" in line)
    assert line.endswith("too few products for an interval, 8 of them in 4 configurations at 2 products")


def test_stopped_run(tmp_path):
    """Of a run that was interrupted, what there is; of one that made no step, the first evaluation."""
    curves = stack([trajectory(STEPS, [300, 600])])
    stopped = analyze(open_flat(tmp_path / "a", SweepGrid.product(), curves, written=730), predict=True)
    assert stopped.mean_period == 300
    assert stopped.final_train_loss == pytest.approx(0.7)
    assert stopped.regime == "periodic"
    assert stopped.forecast_origin == 729
    unmade = analyze(open_flat(tmp_path / "b", SweepGrid.product(), curves, written=0), predict=True)
    assert unmade.regime == "undecided"
    assert unmade.final_train_loss == 0
    assert np.isnan(unmade.final_weight_norm)


def test_nothing_known_is_nan(tmp_path, recwarn):
    nothing = open_flat(tmp_path / "run", SweepGrid.product(), stack([cut(trajectory(60), 0)]))
    nothing = nothing.assign({name: nothing[name] * np.nan for name in ("train_loss", "test_error")})
    analysed = analyze(nothing, predict=True)
    assert analysed.regime == "diverged"
    assert analysed.diverged_at == 0
    for name in ("mean_period", "final_train_loss", "lowest_test_error", "final_weight_norm", *FORECASTS):
        assert np.isnan(analysed[name]), name
    assert as_text(analysed, COLUMNS)
    assert findings(analysed)
    assert not recwarn.list


@pytest.mark.parametrize("spoil", [lambda v: v * 1e30, lambda v: -v, lambda v: 0 * v,
                                   lambda v: np.where(np.arange(STEPS) % 3 == 1, np.inf, v)])  # fmt: skip
def test_numbers_beyond_sense_make_no_noise(tmp_path, recwarn, spoil):
    curve = {name: spoil(values) for name, values in trajectory(STEPS, [300]).items()}
    analysed = analyze(open_flat(tmp_path / "run", SweepGrid.product(), stack([curve])), predict=True)
    assert analysed.regime.item() in REGIMES
    assert as_text(analysed, COLUMNS)
    assert findings(analysed)
    assert not recwarn.list


def test_a_run_without_evaluations(four_run):
    analysed = analyze(four_run.drop_vars([name for name in four_run.data_vars if "eval_step" in four_run[name].dims]))
    assert analysed.destabilisations.values.tolist() == [3, 1, 0, 0]
    assert np.isnan(analysed.final_train_loss).all()
    assert np.isnan(analysed.period_lowest_test_error).all()


def test_a_network_without_scale_invariant_weights(tmp_path, recwarn):
    """Whose dynamics are NaN: the loss is all there is."""
    curve = {n: v if n == "loss" else np.full_like(v, np.nan) for n, v in trajectory(600).items()}
    analysed = analyze(open_flat(tmp_path / "run", SweepGrid.product(), stack([curve])), predict=True)
    assert np.isnan(analysed.budget_residual)
    assert analysed.destabilisations == 0
    assert not recwarn.list


@pytest.mark.parametrize("slope", [0.0, -1.0])
@pytest.mark.parametrize("held", [{"fixed_norm": -1.0, "weight_decay": 0.1}, {"elr": 1e-3, "weight_decay": 1e-9}, {}])
def test_where_the_norm_is_held_the_loss_tells_an_equilibrium(tmp_path, held, slope):
    """On a sphere, or at a fixed effective rate, if it falls no further; a free norm without decay has none."""
    curve = trajectory(600)
    curve["weight_norm"][:] = 5
    curve["angular_step"] = 0.3 * np.arange(1, 601) ** slope
    curve["loss"] = 0.1 * np.arange(1, 601) ** slope
    analysed = analyze(open_flat(tmp_path / "run", SweepGrid.product(**held), stack([curve]), eval_every=600))
    assert analysed.regime == ("converging" if slope else "equilibrium" if held else "undecided")
