"""Configurations that are no product: tables and Sobol sequences."""

import csv

import numpy as np
import pandas as pd
import pytest
from scipy.stats import qmc

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import RUN_AXES, SweepGrid
from periodic_jax.core.points import SobolRange, as_points, sobol_points


def refusal(call, *args, **kwargs) -> str:
    """The message of the ConfigError that the call must raise, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_csv_file_is_read_as_the_csv_module_reads_it(tmp_path):
    """To the bit, with what spreadsheets put into files."""
    file = tmp_path / "points.csv"
    text = "\ufefflr, weight_decay,seed\r\n0.1,1e-3,0\r\n\r\n0.30000000000000004, 0,4294967295\r\n7e-05,3.3e-4,2\r\n"
    file.write_text(text, encoding="utf-8", newline="")
    with file.open(encoding="utf-8-sig", newline="") as opened:
        head, *rows = [row for row in csv.reader(opened, skipinitialspace=True) if row]
    points = as_points(file)
    assert points == {name: tuple(float(row[k]) for row in rows) for k, name in enumerate(head)}
    assert as_points(str(file)) == points == as_points(points) == as_points(pd.DataFrame(points))
    assert all(type(seed) is int for seed in points["seed"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "No columns to parse"),
        ("lr,weight_decay\n", "no configuration"),
        ("lr,rate\n0.1,2\n", "the column rate "),
        ("lr,schedule_every\n0.1,2\n", "the column schedule_every "),
        ("lr, lr\n0.1,2\n", "the column lr given twice"),
        ("lr,\n0.1,2\n", "the column Unnamed: 1 "),
        ("0.1,0.2\n0.3,0.4\n", "the column 0.1 "),
        ("lr,seed\n0.1,0\n0.2,abc\n", "'abc' in row 2 of column seed"),
        ("lr,seed\n0.1,0\n,1\n", "no number in row 2 of column lr"),
        ("lr,seed\n0.1,0\n0.2\n", "no number in row 2 of column seed"),
        ("lr,seed\n0.1,0,5\n0.2,1,6\n", "rows of more cells"),
        ("lr,seed\n0.1,0\n0.2,1,6\n", "Expected 2 fields in line 3, saw 3"),
        ("lr\nnan\n", "'nan' in row 1 of column lr"),
        ("lr\ninf\n", "'inf' in row 1 of column lr"),
        ("lr\nTrue\n", "'True' in row 1 of column lr"),
        ("lr\n0.1\n-1\n", "lr=-1 "),
        ("lr,seed\n0.1,0.5\n", "seed=0.5 "),
    ],
)
def test_a_file_that_is_no_table_of_configurations_is_refused(tmp_path, text, said):
    file = tmp_path / "points.csv"
    file.write_text(text)
    assert said in refusal(as_points, file)


def test_what_is_no_file_is_refused(tmp_path):
    assert "No such file" in refusal(as_points, tmp_path / "none.csv")
    assert "Is a directory" in refusal(as_points, tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\x00lr")
    assert "expected a csv file" in refusal(as_points, tmp_path / "binary")
    for nothing in (None, 3, [0.1]):
        assert "a csv file, or a mapping" in refusal(as_points, nothing)
    assert "no column" in refusal(as_points, {})
    assert "numbers above 0" in refusal(as_points, {"lr": ["a"]})


def test_points_are_a_list_of_configurations():
    columns = {"lr": (0.1, 1.0, 0.1), "weight_decay": (0.0, 0.0, 1e-3), "seed": (0, 0, 1)}
    grid = SweepGrid.points(("lr", "weight_decay", "seed"), momentum=0.5, **columns)
    rows = [dict(zip(columns, row, strict=True), momentum=0.5) for row in zip(*columns.values(), strict=True)]
    listed = SweepGrid.of(rows)
    assert grid.swept == listed.swept == ()
    for name, column in listed.coords.items():
        np.testing.assert_array_equal(grid.coords[name], column, err_msg=name)
    assert grid.shard(0, 2).coords["lr"].tolist() == [0.1, 1.0]
    assert SweepGrid.declared(columns, ("lr", "weight_decay", "seed")).label(2) == "lr=0.1 weight_decay=0.001 seed=1"


def test_points_that_are_no_grid_are_refused():
    points = SweepGrid.points
    assert "lr=0.1 given twice" in refusal(points, ("lr",), lr=[0.1, 0.2, 0.1])
    assert "2 of lr, 3 of seed" in refusal(points, ("lr", "seed"), lr=[0.1, 0.2], seed=[0, 1, 2])
    assert "--seed: several values (0 1) with points" in refusal(points, ("lr",), lr=[0.1, 0.2], seed=[0, 1])
    assert "an empty axis" in refusal(points, ("lr",), lr=[])
    assert "axis: rate" in refusal(points, ("rate",), lr=[0.1])
    assert "lr x weight decay is 2" in refusal(points, ("lr", "weight_decay"), lr=[0.1, 2.0], weight_decay=[0.1, 1.0])
    assert "100001 configurations" in refusal(points, ("seed",), seed=np.arange(100_001))


@pytest.mark.parametrize("count", [2, 5, 32])
def test_sobol_points_are_those_of_the_sequence(count):
    """Against SciPy's own scaling of the same sequence, point by point."""
    ranges = {"lr": SobolRange(1e-3, 1.0, count, log=True), "momentum": SobolRange(0.9, 0.1, count)}
    points = sobol_points(ranges, seed=3)
    unit = qmc.Sobol(2, seed=np.random.default_rng(3)).random_base2(5)[:count]
    exponents = qmc.scale(unit[:, :1], -3, 0)[:, 0]
    np.testing.assert_allclose(points["lr"], 10**exponents, rtol=1e-12)
    np.testing.assert_allclose(points["momentum"], qmc.scale(1 - unit[:, 1:], 0.1, 0.9)[:, 0], rtol=1e-12)
    assert points != sobol_points(ranges, seed=4)
    assert len(SweepGrid.points(tuple(points), **points)) == count


def test_a_power_of_two_of_sobol_points_has_one_in_each_part_of_each_axis():
    for seed in range(3):
        points = sobol_points({"lr": SobolRange(1e-4, 1.0, 16, True), "elr": SobolRange(0.0, 1.0, 16)}, seed)
        parts = np.log10(points["lr"]) / 4 + 1, np.array(points["elr"])
        assert all(sorted((16 * part).astype(int)) == list(range(16)) for part in parts)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({"lr": SobolRange(1e-3, 1.0, 1)}, "a COUNT from 2"),
        ({"lr": SobolRange(1e-3, 1.0, 10_001)}, "a COUNT from 2"),
        ({"weight_decay": SobolRange(0.0, 1.0, 4, log=True)}, "ends above 0"),
        ({"lr": SobolRange(0.0, 1.0, 4)}, "--lr: sobol:0:1:4 "),
        ({"momentum": SobolRange(0.0, 1.0, 4)}, "below 1"),
        ({"lr": SobolRange(0.1, float("nan"), 4)}, "two different ends"),
        ({"noninvariant_lr": SobolRange(-1.7e308, 1.7e308, 4)}, "two different ends"),
        ({"lr": SobolRange(0.1, 0.1, 4)}, "--lr: sobol:0.1:0.1:4 is not accepted; expected two different ends"),
        ({"seed": SobolRange(0.0, 9.0, 4)}, "whole numbers"),
        ({"lr": SobolRange(0.1, 1.0, 4), "elr": SobolRange(0.1, 1.0, 8)}, "4 of --lr, 8 of --elr"),
        ({"rate": SobolRange(0.1, 1.0, 4)}, "axis: rate"),
    ],
)
def test_ranges_that_cannot_be_drawn_are_refused(ranges, said):
    assert said in refusal(sobol_points, ranges)


def test_axes_of_a_run_are_those_of_a_grid_but_one():
    assert set(RUN_AXES) == set(SweepGrid.product().coords) - {"schedule_every"}
