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


def test_log_slope_and_its_interval():
    """Against the textbook's formulas; the interval holds the slope in 95 % of 400 draws."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=30))
    held = 0
    for _ in range(400):
        y = x**-1.5 * np.exp(0.3 * rng.normal(size=30))
        fit = log_slope(np.append(x, [np.nan, 1, -1]), np.append(y, [1, np.nan, 1]))
        held += fit.low <= -1.5 <= fit.high
    assert 365 <= held <= 394
    matrix = np.stack([np.log(x), np.ones(30)], 1)
    solution, squares, *_ = np.linalg.lstsq(matrix, np.log(y), rcond=None)
    error = np.sqrt(squares[0] / 28 / ((np.log(x) - np.log(x).mean()) ** 2).sum())
    assert fit.slope == pytest.approx(solution[0])
    assert fit.high - fit.slope == pytest.approx(stats.t.ppf(0.975, 28) * error)
    assert fit.points == 30
    assert np.isnan(log_slope(np.ones(5), y[:5]).slope)
    assert np.isnan(log_slope(x[:2], y[:2]).slope)


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
