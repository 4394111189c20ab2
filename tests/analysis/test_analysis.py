import csv
import os
import re

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import cut, open_flat, stack, trajectory, write_run
from scipy import stats

from periodic_jax.analysis.pipeline import analyze, log_slope
from periodic_jax.analysis.regimes import REGIMES
from periodic_jax.cli.main import main
from periodic_jax.core.errors import CorruptedRunError, RunNotFoundError, UnwritableError
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.reporting.tables import COLUMNS, FORECASTS, SHOWN, as_text, findings, rows, save, to_csv
from periodic_jax.storage.datasets import open_analysis
from periodic_jax.storage.reader import open_run

GRID = SweepGrid.product(lr=[1.0, 0.5], seed=[0, 3], weight_decay=1e-3)
STEPS = 1200


def four():
    """Three bursts with gaps of 300 and 400 steps; one burst; none; and a divergence at step 650."""
    return stack([trajectory(STEPS, [300, 600, 1000]), trajectory(STEPS, [500]), trajectory(STEPS, lr=0.5),
                  cut(trajectory(STEPS, lr=0.5), 650)])  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_flat(tmp_path_factory.mktemp("analysis") / "run", GRID, four(), eval_every=200)


@pytest.fixture(scope="module")
def found(run):
    return analyze(run, predict=True)


def test_known_answers(run, found):
    assert found.regime.values.tolist() == ["periodic", "periodic", "converging", "diverged"]
    assert found.destabilisations.values.tolist() == [3, 1, 0, 0]
    np.testing.assert_array_equal(found.mean_period, [350, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(found.diverged_at, [np.nan, np.nan, np.nan, 650])
    np.testing.assert_array_equal(found.steps, [STEPS, STEPS, STEPS, 650])
    # Evaluation of configuration i after t steps: i + t / 1000, half of it for errors; the last norm is the last known.
    np.testing.assert_allclose(found.final_train_loss, [1.2, 2.2, 3.2, 4.2], rtol=1e-6)
    np.testing.assert_allclose(found.lowest_train_loss, [0, 1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(found.final_test_error, [0.6, 1.1, 1.6, 2.1], rtol=1e-6)
    np.testing.assert_allclose(found.lowest_test_error, [0, 0.5, 1, 1.5], rtol=1e-6)
    norm = run.weight_norm.values
    np.testing.assert_array_equal(found.final_weight_norm, [norm[0, -1], norm[1, -1], norm[2, -1], norm[3, 649]])
    for name in AXES:
        np.testing.assert_array_equal(found[name], GRID.coords[name])


def test_destabilisations_and_periods(found):
    np.testing.assert_array_equal(found.onset_step, [[300, 600, 1000], [500, np.nan, np.nan], *[[np.nan] * 3] * 2])
    np.testing.assert_array_equal(found.end_step[0], [305, 605, 1005])
    np.testing.assert_array_equal(found.fall_steps[0], [300, 295, 395])
    np.testing.assert_array_equal(found.period_length[0], [300, 400])
    np.testing.assert_array_equal(found.period_jump[0], [5, 5])
    np.testing.assert_array_equal(found.period_fall[0], [295, 395])
    # Evaluations after 400 and 600 steps are of the first period, after 800 and 1000 of the second.
    np.testing.assert_allclose(found.period_lowest_train_loss[0], [0.4, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found.period_lowest_test_error[0], [0.2, 0.4], rtol=1e-6)
    assert np.isnan(found.period_lowest_test_error[1:]).all()


def test_theory(found):
    """Bursts apart, gradients are nearly nothing: falling edges are those of decay alone, and nothing is violated."""
    np.testing.assert_allclose(found.predicted_fall_steps[0], found.fall_steps[0], rtol=1e-3)
    assert np.nansum(found.check_violations) == 0
    assert np.isfinite(found.check_violations).all()
    np.testing.assert_allclose(found.budget_residual, 0, atol=1e-4)
    assert np.isnan(found.radial_leak).all()  # of which these curves have none


def test_in_blocks_as_at_once(run, found):
    xr.testing.assert_allclose(analyze(run, predict=True, most_in_memory=1), found)
    assert set(analyze(run).data_vars) == {
        n for n in found.data_vars if not str(n).startswith(("forecast_", "backtest_"))
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
    found = falls_at_three_rates(tmp_path / "run", quiet=1e-5)
    edge = found.sel(fit="falling_edge_quiet")
    assert edge.slope == pytest.approx(-1, abs=0.02)
    assert edge.slope_low <= edge.slope <= edge.slope_high
    assert 20 < edge.slope_points < 28  # at the smallest norms gradients matter
    assert found.sel(fit="falling_edge_uncorrected").slope_points == found.destabilisations.sum() == 28
    assert found.sel(fit="period_length").slope == pytest.approx(-0.8, abs=0.3)
    assert "slope of log quiet falling edges" in findings(found)


@pytest.mark.parametrize("quiet", [1e-5, 0.7])
def test_gradients_are_taken_off_the_falling_edges(tmp_path, quiet):
    """However much they prolong the falls: the exponent of -ln a = -ln(1 - ηλ) is -1 for every edge."""
    found = falls_at_three_rates(tmp_path / "run", quiet=quiet, norm=8.0)
    edge = found.sel(fit="falling_edge")
    assert edge.slope_points == found.destabilisations.sum() == 28
    of_decay = np.polyfit(np.log(DECAYS), np.log(-1 / np.log1p(-DECAYS)), 1)[0]
    assert edge.slope == pytest.approx(of_decay, abs=2e-3)
    if quiet == 0.7:
        assert abs(found.sel(fit="falling_edge_uncorrected").slope + 1) > 0.05
        assert found.sel(fit="falling_edge_quiet").slope_points < 20


def test_falling_edges_that_cannot_be_corrected_are_left_out(tmp_path):
    """With missing steps, or with momentum, their rotation is not known to be all that held them up."""

    def gap(curve):
        return {name: np.where(np.arange(2000) == 1265, np.nan, values) for name, values in curve.items()}

    found = falls_at_three_rates(tmp_path / "gap", change=gap, quiet=1e-5)
    assert found.sel(fit="falling_edge").slope_points == found.destabilisations.sum() - 3 == 25
    found = falls_at_three_rates(tmp_path / "momentum", quiet=1e-5, momentum=0.5)
    assert found.slope_points.values[:3].tolist() == [0, 0, 28]


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
    found = analyze(nothing, predict=True)
    assert found.regime == "diverged"
    assert found.diverged_at == 0
    for name in ("mean_period", "final_train_loss", "lowest_test_error", "final_weight_norm", *FORECASTS):
        assert np.isnan(found[name]), name
    assert as_text(found, COLUMNS)
    assert findings(found)
    assert not recwarn.list


@pytest.mark.parametrize("spoil", [lambda v: v * 1e30, lambda v: -v, lambda v: 0 * v,
                                   lambda v: np.where(np.arange(STEPS) % 3 == 1, np.inf, v)])  # fmt: skip
def test_numbers_beyond_sense_make_no_noise(tmp_path, recwarn, spoil):
    curve = {name: spoil(values) for name, values in trajectory(STEPS, [300]).items()}
    found = analyze(open_flat(tmp_path / "run", SweepGrid.product(), stack([curve])), predict=True)
    assert found.regime.item() in REGIMES
    assert as_text(found, COLUMNS)
    assert findings(found)
    assert not recwarn.list


def test_a_run_without_evaluations(run):
    found = analyze(run.drop_vars([name for name in run.data_vars if "eval_step" in run[name].dims]))
    assert found.destabilisations.values.tolist() == [3, 1, 0, 0]
    assert np.isnan(found.final_train_loss).all()
    assert np.isnan(found.period_lowest_test_error).all()


def test_a_network_without_scale_invariant_weights(tmp_path, recwarn):
    """Whose dynamics are NaN: the loss is all there is."""
    curve = {n: v if n == "loss" else np.full_like(v, np.nan) for n, v in trajectory(600).items()}
    found = analyze(open_flat(tmp_path / "run", SweepGrid.product(), stack([curve])), predict=True)
    assert np.isnan(found.budget_residual)
    assert found.destabilisations == 0
    assert not recwarn.list


@pytest.mark.parametrize("slope", [0.0, -1.0])
@pytest.mark.parametrize("held", [{"fixed_norm": -1.0, "weight_decay": 0.1}, {"elr": 1e-3, "weight_decay": 1e-9}, {}])
def test_without_a_pace_the_loss_tells_an_equilibrium(tmp_path, held, slope):
    """Where decay sets no pace, or rotation keeps any, training is in an equilibrium only if the loss falls no
    further.
    """
    curve = trajectory(600)
    curve["weight_norm"][:] = 5
    curve["angular_step"] = 0.3 * np.arange(1, 601) ** slope
    curve["loss"] = 0.1 * np.arange(1, 601) ** slope
    found = analyze(open_flat(tmp_path / "run", SweepGrid.product(**held), stack([curve]), eval_every=600))
    assert found.regime == ("converging" if slope else "equilibrium")


def test_rows_have_the_hyperparameters_that_differ_or_are_in_force(found, tmp_path):
    table = rows(found)
    assert [list(row) for row in table] == [["lr", "weight_decay", "seed", *SHOWN]] * 4
    assert [(row["lr"], row["seed"]) for row in table] == [(1, 0), (1, 3), (0.5, 0), (0.5, 3)]
    assert [row["regime"] for row in table] == ["periodic", "periodic", "converging", "diverged"]
    assert all(type(value) in (str, int, float) for row in table for value in row.values())
    one = analyze(open_flat(tmp_path / "run", SweepGrid.product(momentum=0.9), stack([trajectory(60)])))
    assert [list(row) for row in rows(one)] == [["lr", "weight_decay", "momentum", *SHOWN]]


def test_csv_holds_every_number_exactly(found, tmp_path):
    to_csv(found, tmp_path / "summary.csv")
    content = (tmp_path / "summary.csv").read_bytes().decode()
    assert content.count("\r\n") == content.count("\n") == 5
    with (tmp_path / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["config", *AXES, *COLUMNS, *FORECASTS]
    for i, row in enumerate(table):
        assert row["config"] == str(i)
        assert row["regime"] == found.regime.values[i]
        assert row["because"] == found.because.values[i]
        for name in {*AXES, *COLUMNS} - {"regime", "because", "mean_fall_steps", "mean_predicted_fall_steps"}:
            np.testing.assert_array_equal(float(row[name] or "nan"), found[name].values[i])
            assert row[name] != "nan"
    assert float(table[0]["mean_fall_steps"]) == 330
    assert table[2]["mean_fall_steps"] == ""


def test_text(found):
    cells = [re.split(r"  +", line.strip()) for line in as_text(found).splitlines()]
    assert [" ".join(row) for row in cells] == [
        "lr decay seed regime sure jumps mean period train loss lowest test error lowest norm diverged at",
        "1 0.001 0 periodic 0.85 3 350 1.2 0 60.0 % 0.0 % 4.85 -",
        "1 0.001 3 periodic 0.74 1 - 2.2 1 110.0 % 50.0 % 2.22 -",
        "0.5 0.001 0 converging 0.92 0 - 3.2 2 160.0 % 100.0 % 2.75 -",
        "0.5 0.001 3 diverged 1.00 0 - 4.2 3 210.0 % 150.0 % 3.61 650",
    ]
    assert len({len(line) for line in as_text(found).splitlines()}) == 1


def test_text_without_divergence_and_of_close_values(tmp_path):
    grid = SweepGrid.product(lr=[0.12341, 0.12342], noninvariant_lr=-1)
    text = as_text(analyze(open_flat(tmp_path / "run", grid, stack([trajectory(60)] * 2))))
    head, *lines = text.splitlines()
    assert "diverged at" not in head
    assert [line.split()[0] for line in lines] == ["0.12341", "0.12342"]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_violations_are_named(found):
    spoiled = found.copy(deep=True)
    spoiled.check_violations[1, 3] = 7
    assert "attracting_interval: violated 7 times among the 4 configurations where it applies" in findings(spoiled)
    assert "32 checks apply, 7 violations" in findings(spoiled)
    assert "32 checks apply, 0 violations" in findings(found)


def test_saved_and_opened_again(found, tmp_path):
    for _ in range(2):  # over an earlier one too
        assert save(found, tmp_path) == [tmp_path / "summary.csv", tmp_path / "analysis.nc"]
        xr.testing.assert_equal(open_analysis(tmp_path), found.assign(because=found.because.astype(str)))
    assert sorted(os.listdir(tmp_path)) == ["analysis.nc", "summary.csv"]


def test_an_analysis_is_written_whole_or_not_at_all(found, tmp_path, monkeypatch):
    save(found, tmp_path)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UnwritableError, match="No space left"):
        save(found.isel(config=[0]), tmp_path)
    monkeypatch.undo()
    assert open_analysis(tmp_path).sizes["config"] == 4
    assert sorted(os.listdir(tmp_path)) == ["analysis.nc", "summary.csv"]


@pytest.mark.parametrize("corruption", ["none", "empty", "file"])
def test_no_analysis_to_open(tmp_path, corruption):
    if corruption == "empty":
        (tmp_path / "analysis.nc").mkdir()
    elif corruption == "file":
        (tmp_path / "analysis.nc").write_text("{}")
    error = RunNotFoundError if corruption == "none" else CorruptedRunError
    with pytest.raises(error, match=r"periodic-jax analyze .* writes it"):
        open_analysis(tmp_path)


@pytest.mark.parametrize("written", [np.inf, 640, 0])
def test_command(tmp_path, capsys, written):
    """Of finished and of running runs, over and over."""
    path = write_run(tmp_path / "run", GRID, four(), written=written)
    for arguments in ([], ["--predict"]):
        main(["analyze", str(path), *arguments])
        said = capsys.readouterr()
        assert said.err == ""
        assert ("soonest" in said.out) == ("back-test" in said.out) == bool(arguments)
        assert f"written: {path / 'summary.csv'}, {path / 'analysis.nc'}" in said.out
    assert open_analysis(path).regime[0] == ("undecided" if written == 0 else "periodic")
    open_run(path)


@pytest.mark.parametrize("corruption", ["no folder", "no store", "broken chunk", "no curve"])
def test_command_refuses_what_is_no_run(tmp_path, capsys, corruption):
    path = tmp_path / "run"
    if corruption != "no folder":
        write_run(path, GRID, four())
    if corruption == "no store":
        os.rename(path / "telemetry.zarr", path / "telemetry")
    elif corruption == "broken chunk":
        for chunk in (path / "telemetry.zarr" / "weight_norm" / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(b"broken")
    elif corruption == "no curve":
        os.rename(path / "telemetry.zarr" / "diverged_at", tmp_path / "away")
    with pytest.raises(SystemExit) as stop:
        main(["analyze", str(path)])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    expected = {
        "no folder": "run: there is no config.json; give",
        "no store": "telemetry.zarr: nothing is recorded yet; periodic-jax resume",
        "broken chunk": "telemetry.zarr/weight_norm/c/0/0: corrupted (",
        "no curve": f"{path}/telemetry.zarr/diverged_at: corrupted (missing); periodic-jax resume {path} --truncate",
    }
    assert expected[corruption] in said.err
    assert not (path / "analysis.nc").exists()
