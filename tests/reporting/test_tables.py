import csv
import os
import re

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import open_flat, stack, trajectory

from periodic_jax.analysis.pipeline import analyze
from periodic_jax.core.errors import CorruptedRunError, RunNotFoundError, UnwritableError
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.reporting.tables import COLUMNS, FORECASTS, SHOWN, as_text, findings, leak_as_text, rows, save, to_csv
from periodic_jax.storage.datasets import open_analysis


def test_rows_have_the_hyperparameters_that_differ_or_are_in_force(analysed, tmp_path):
    table = rows(analysed)
    assert [list(row) for row in table] == [["lr", "weight_decay", "seed", *SHOWN]] * 4
    assert [(row["lr"], row["seed"]) for row in table] == [(1, 0), (1, 3), (0.5, 0), (0.5, 3)]
    assert [row["regime"] for row in table] == ["periodic", "periodic", "converging", "diverged"]
    assert all(type(value) in (str, int, float) for row in table for value in row.values())
    one = analyze(open_flat(tmp_path / "run", SweepGrid.product(momentum=0.9), stack([trajectory(60)])))
    assert [list(row) for row in rows(one)] == [["lr", "weight_decay", "momentum", *SHOWN]]


def test_csv_holds_every_number_exactly(analysed, tmp_path):
    to_csv(analysed, tmp_path / "summary.csv")
    content = (tmp_path / "summary.csv").read_bytes().decode()
    assert content.count("\r\n") == content.count("\n") == 5
    with (tmp_path / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["config", *AXES, *COLUMNS, *FORECASTS]
    for i, row in enumerate(table):
        assert row["config"] == str(i)
        assert row["regime"] == analysed.regime.values[i]
        assert row["because"] == analysed.because.values[i]
        for name in {*AXES, *COLUMNS} - {"regime", "because", "mean_fall_steps", "mean_predicted_fall_steps"}:
            np.testing.assert_array_equal(float(row[name] or "nan"), analysed[name].values[i])
            assert row[name] != "nan"
    assert float(table[0]["mean_fall_steps"]) == 330
    assert table[2]["mean_fall_steps"] == ""


def test_text(analysed):
    cells = [re.split(r"  +", line.strip()) for line in as_text(analysed).splitlines()]
    assert [" ".join(row) for row in cells] == [
        "lr decay seed regime sure jumps mean period train loss lowest test error lowest norm diverged at",
        "1 0.001 0 periodic 0.82 3 350 1.2 0 60.0 % 0.0 % 4.85 -",
        "1 0.001 3 periodic 0.71 1 - 2.2 1 110.0 % 50.0 % 2.22 -",
        "0.5 0.001 0 converging 0.67 0 - 3.2 2 160.0 % 100.0 % 2.75 -",
        "0.5 0.001 3 diverged 1.00 0 - 4.2 3 210.0 % 150.0 % 3.61 650",
    ]
    assert len({len(line) for line in as_text(analysed).splitlines()}) == 1


def test_text_without_divergence_and_of_close_values(tmp_path):
    grid = SweepGrid.product(lr=[0.12341, 0.12342], noninvariant_lr=-1)
    text = as_text(analyze(open_flat(tmp_path / "run", grid, stack([trajectory(60)] * 2))))
    head, *lines = text.splitlines()
    assert "diverged at" not in head
    assert [line.split()[0] for line in lines] == ["0.12341", "0.12342"]
    assert len({len(line) for line in (head, *lines)}) == 1


def test_violations_are_named(analysed):
    spoiled = analysed.copy(deep=True)
    spoiled.check_violations[1, 3] = 7
    assert "attracting_interval: violated 7 times among the 4 configurations where it applies" in findings(spoiled)
    assert "32 checks apply, 7 violations" in findings(spoiled)
    assert "32 checks apply, 0 violations" in findings(analysed)


@pytest.mark.parametrize("left_out", [0, 1, 4])
def test_budgets_within_rounding_are_left_out_of_the_worst(analysed, left_out):
    spoiled = analysed.copy(deep=True)
    spoiled.budget_residual[:] = [np.nan] * left_out + [1e-5] * (4 - left_out)
    line = next(line for line in findings(spoiled).splitlines() if line.startswith("rotation budget"))
    assert ("off by at most 1.0e-05" in line) == (left_out < 4)
    assert (f"{left_out} configuration" in line and "turned by no more than rounding" in line) == (left_out > 0)


def test_no_rows_are_a_head_alone(analysed):
    """Of a landscape or minima of which nothing was measured, too."""
    text = as_text(analysed.isel(config=[]))
    assert text.split()[:3] == ["lr", "decay", "regime"]
    assert text.count("\n") == 1


def test_saved_and_opened_again(analysed, tmp_path):
    for _ in range(2):  # over an earlier one too
        assert save(analysed, tmp_path) == [tmp_path / "summary.csv", tmp_path / "analysis.nc"]
        xr.testing.assert_equal(open_analysis(tmp_path), analysed.assign(because=analysed.because.astype(str)))
    assert sorted(os.listdir(tmp_path)) == ["analysis.nc", "summary.csv"]


def test_an_analysis_is_written_whole_or_not_at_all(analysed, tmp_path, monkeypatch):
    save(analysed, tmp_path)

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UnwritableError, match="No space left"):
        save(analysed.isel(config=[0]), tmp_path)
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


def test_a_large_radial_leak_is_a_warning_in_a_line(analysed):
    def leaking(values):
        return analysed.assign(radial_leak=("config", np.array(values)))

    assert leak_as_text(leaking([1e-5, 0.014, np.nan, 0.0])) == ""
    text = leak_as_text(leaking([1e-5, 0.014, np.nan, 0.3]))
    assert text.startswith("warning: the radial leak of configuration 3 is 0.3, and near 0 where labels are right")
    assert text.count("\n") == 1
