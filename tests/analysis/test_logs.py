"""Runs that were recorded elsewhere: a csv file is analysed as the run directory of the same curves."""

import csv

import numpy as np
import pytest
from helpers.synthetic import trajectory

from periodic_jax import ConfigError, analysis
from periodic_jax.cli.main import main

CURVES = ("loss", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step")


@pytest.fixture
def curves():
    return trajectory(1500, [300, 700, 1200])


def write(path, columns):
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return path


def test_a_csv_of_all_curves_is_analysed_as_the_arrays_are(tmp_path, curves):
    lr = curves["effective_lr"] * curves["weight_norm"] ** 2
    path = write(tmp_path / "log.csv", {"train": curves["loss"], "norm": curves["weight_norm"], "rate": lr,
                                        "turned": curves["angular_step"],
                                        "g": curves["effective_grad_norm"]})  # fmt: skip
    names = {"loss": "train", "weight_norm": "norm", "lr": "rate", "angular_step": "turned", "effective_grad_norm": "g",
             "weight_decay": "1e-3"}  # fmt: skip
    log = analysis.read_log(path, names)
    assert log.left_out == []
    found = analysis.analyze(log.dataset)
    assert found.regime.item() == "periodic"
    wanted = analysis.detect_periods({name: curves[name] for name in CURVES})
    np.testing.assert_array_equal(found.onset_step.values[0], wanted.onset)
    assert found.violations.item() == 0
    np.testing.assert_allclose(found.budget_residual, 0, atol=1e-4)


def test_what_a_csv_has_not_is_left_out_and_said(tmp_path, curves, capsys):
    path = write(tmp_path / "log.csv", {"train_loss": curves["loss"], "norm": curves["weight_norm"]})
    main(["analyze", str(path), "--columns", "loss=train_loss", "weight_norm=norm", "lr=1", "weight_decay=1e-3"])
    out = capsys.readouterr().out
    assert "periodic" in out
    assert "left out: pace, equilibrium and rotation (no angular_step)" in out
    assert "left out: periods" not in out
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_the_usual_names_need_no_option(tmp_path, curves):
    path = write(tmp_path / "log.csv", {name: curves[name] for name in ("loss", "weight_norm")})
    log = analysis.read_log(path)
    np.testing.assert_allclose(log.dataset.weight_norm[0], curves["weight_norm"])
    assert analysis.analyze(log.dataset).destabilisations.item() == 3


REFUSED = {
    "loss=nothing": "--columns: loss=nothing is not accepted; expected a column among a, b, word",
    "loss=3": "expected a column among a, b, word",
    "speed=a": "--columns: speed=a is not accepted; expected optimizer, or names among loss, weight_norm",
    "loss=word": "expected a column of numbers",
    "weight_decay=a": "expected a column of one weight_decay, or a number",
    "optimizer=adamax": "expected optimizer=sgd|sgdw|nesterov|adam|adamw|lion",
    "lr=a": "it has no column weight_norm or loss, but a, b, word; say which they are: --columns loss=COLUMN",
    "loss": "expected NAME=COLUMN or NAME=NUMBER",
}


@pytest.mark.parametrize("given", REFUSED)
def test_refused_in_one_line(tmp_path, capsys, given):
    path = write(tmp_path / "log.csv", {"a": [1, 2], "b": [3, 4], "word": ["x", "y"]})
    with pytest.raises(SystemExit) as end:
        main(["analyze", str(path), "--columns", given])
    assert end.value.code == 2
    error = capsys.readouterr().err.strip()
    assert REFUSED[given] in error
    assert "\n" not in error


def test_a_file_that_is_none_or_no_csv(tmp_path):
    with pytest.raises(ConfigError, match="a csv file with a row for each step"):
        analysis.read_log(tmp_path / "missing.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ConfigError, match="a csv file with a row for each step"):
        analysis.read_log(tmp_path / "empty.csv")


def test_columns_of_the_usual_names_are_used_beside_those_that_are_named(tmp_path, curves):
    path = write(tmp_path / "log.csv", {"weight_norm": curves["weight_norm"], "train": curves["loss"]})
    log = analysis.read_log(path, {"loss": "train", "lr": "1", "weight_decay": "1e-3"})
    np.testing.assert_array_equal(log.dataset.weight_norm[0], curves["weight_norm"])
    np.testing.assert_array_equal(log.dataset.loss[0], curves["loss"])


def test_a_cell_that_is_no_number_is_named(tmp_path):
    path = write(tmp_path / "log.csv", {"loss": [1.0, "oops", 3.0], "weight_norm": [1.0, 2.0, ""]})
    with pytest.raises(ConfigError, match=r"log.csv: 'oops' in row 2 of column loss; expected a number, or nothing"):
        analysis.read_log(path)
    path = write(tmp_path / "text.csv", {"loss": [1.0, 2.0], "weight_decay": ["abc", "abc"]})
    with pytest.raises(ConfigError, match=r"text.csv: 'abc' in row 1 of column weight_decay; expected a number"):
        analysis.read_log(path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": "1", "weight_decay": "-3"}, "columns: weight_decay=-3"),
        ({"lr": "0.1", "beta1": "7", "optimizer": "adamw"}, "columns: beta1=7"),
        ({"lr": "0.1", "momentum": "0.9", "optimizer": "adamw"}, "--momentum: --optimizer adamw does not read it"),
    ],
)
def test_hyperparameters_of_a_csv_are_held_to_the_rules_of_the_grid(tmp_path, given, words):
    path = write(tmp_path / "log.csv", {"loss": [1.0, 2.0]})
    with pytest.raises(ConfigError, match=words):
        analysis.read_log(path, given)


@pytest.mark.parametrize("bursts", [(), (300, 700, 1200)])
def test_without_the_angle_nothing_of_the_rotation_is_told(tmp_path, bursts, capsys):
    curves = trajectory(1500, bursts)
    path = write(tmp_path / "log.csv", {"loss": curves["loss"], "weight_norm": curves["weight_norm"]})
    main(["analyze", str(path), "--columns", "lr=1", "weight_decay=1e-3"])
    out = capsys.readouterr().out
    assert "rotation budget" not in out
    assert "rotation at" not in out
    assert "nan" not in out
    assert "left out: pace, equilibrium and rotation (no angular_step)" in out


@pytest.mark.parametrize("name", ["loss", "weight_norm"])
def test_a_log_without_loss_or_norm_is_undecided_for_that_reason(curves, name):
    """Not for want of steps."""
    found = analysis.analyze(analysis.log_dataset({name: curves[name]}, lr=1.0, weight_decay=1e-3).dataset)
    assert found.regime.item() == "undecided"
    assert found.because.item() == "no step with both loss and weight norm"


@pytest.mark.parametrize(
    ("curves", "numbers", "words"),
    [
        ({"loss": ["a", "b"]}, {}, "curves of numbers"),
        ({"loss": [1.0, 2.0], "momentum": [0.9, 0.9]}, {}, "columns: momentum is not accepted"),
        ({"loss": [1.0, 2.0]}, {"weight_decay": -5.0}, "columns: weight_decay=-5"),
        ({"loss": [1.0, 2.0], "lr": [0.1, -1.0]}, {}, "columns: lr=-1"),
        (
            {"loss": [1.0, 2.0]},
            {"optimizer": "adamw", "momentum": 0.9},
            "--momentum: --optimizer adamw does not read it",
        ),
    ],
)
def test_arrays_are_held_to_the_same_rules(curves, numbers, words):
    with pytest.raises(ConfigError, match=words):
        analysis.log_dataset(curves, **numbers)


def test_a_fixed_effective_rate_is_that_of_each_step():
    log = analysis.log_dataset({"weight_norm": np.full(5, 2.0)}, elr=0.5, lr=0.1)
    np.testing.assert_array_equal(log.dataset.effective_lr[0], np.full(5, 0.5))
