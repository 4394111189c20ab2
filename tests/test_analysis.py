import csv

import numpy as np
import pytest
from synthetic import cut, open_flat, stack, trajectory

from periodic_jax.analysis import COLUMNS, as_text, rows, summarise, to_csv
from periodic_jax.grid import AXES, SweepGrid

GRID = SweepGrid.product(lr=[1.0, 0.5], seed=[0, 3], weight_decay=1e-3)
STEPS = 1200


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three bursts with gaps of 300 and 400 steps; one burst; none; and a divergence at step 650."""
    curves = [trajectory(STEPS, [300, 600, 1000]), trajectory(STEPS, [500]), trajectory(STEPS, lr=0.5),
              cut(trajectory(STEPS, lr=0.5), 650)]  # fmt: skip
    return open_flat(tmp_path_factory.mktemp("analysis") / "run", GRID, stack(curves), eval_every=200)


@pytest.fixture(scope="module")
def summary(run):
    return summarise(run)


def test_known_answers(run, summary):
    assert tuple(summary.data_vars) == COLUMNS
    assert summary.regime.values.tolist() == ["periodic", "periodic", "converging", "diverged"]
    assert summary.destabilisations.values.tolist() == [3, 1, 0, 0]
    np.testing.assert_array_equal(summary.mean_period, [350, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(summary.diverged_at, [np.nan, np.nan, np.nan, 650])
    # Evaluation of configuration i after t steps: i + t / 1000, half of it for errors; the last norm is the last known.
    np.testing.assert_allclose(summary.final_train_loss, [1.2, 2.2, 3.2, 4.2], rtol=1e-6)
    np.testing.assert_allclose(summary.lowest_train_loss, [0, 1, 2, 3], rtol=1e-6)
    np.testing.assert_allclose(summary.final_test_error, [0.6, 1.1, 1.6, 2.1], rtol=1e-6)
    np.testing.assert_allclose(summary.lowest_test_error, [0, 0.5, 1, 1.5], rtol=1e-6)
    norm = run.weight_norm.values
    np.testing.assert_array_equal(summary.final_weight_norm, [norm[0, -1], norm[1, -1], norm[2, -1], norm[3, 649]])
    for name in AXES:
        np.testing.assert_array_equal(summary[name], GRID.coords[name])


def test_stopped_run(tmp_path):
    """Of a run that was interrupted, what there is; of one that made no step, the first evaluation."""
    curves = stack([trajectory(STEPS, [300, 600])])
    stopped = summarise(open_flat(tmp_path / "a", SweepGrid.product(), curves, written=730))
    assert stopped.mean_period == 300
    assert stopped.final_train_loss == pytest.approx(0.7)
    assert stopped.regime == "periodic"
    unmade = summarise(open_flat(tmp_path / "b", SweepGrid.product(), curves, written=0))
    assert unmade.regime == "converging"
    assert unmade.final_train_loss == 0
    assert np.isnan(unmade.final_weight_norm)


def test_nothing_known_is_nan(tmp_path, recwarn):
    nothing = open_flat(tmp_path / "run", SweepGrid.product(), stack([cut(trajectory(60), 0)]))
    nothing = nothing.assign({name: nothing[name] * np.nan for name in ("train_loss", "test_error")})
    summary = summarise(nothing)
    assert summary.regime == "diverged"
    assert summary.diverged_at == 0
    for name in COLUMNS[2:-1]:
        assert np.isnan(summary[name]), name
    assert not recwarn.list


@pytest.mark.parametrize("slope", [0.0, -1.0])
@pytest.mark.parametrize("held", [{"fixed_norm": -1.0, "weight_decay": 0.1}, {"elr": 1e-3, "weight_decay": 1e-9}, {}])
def test_without_a_pace_the_loss_tells_an_equilibrium(tmp_path, held, slope):
    """Where norm or effective learning rate are held, or nothing decays, even rotation is an equilibrium only if the
    loss falls no further.
    """
    curve = trajectory(600)
    curve["weight_norm"][:] = 5
    curve["angular_step"] = 0.01 * np.arange(1, 601) ** slope
    curve["loss"] = 0.1 * np.arange(1, 601) ** slope
    summary = summarise(open_flat(tmp_path / "run", SweepGrid.product(**held), stack([curve]), eval_every=600))
    assert summary.regime == ("converging" if slope else "equilibrium")


def test_rows_have_the_hyperparameters_that_differ_or_are_in_force(summary, tmp_path):
    table = rows(summary)
    assert [list(row) for row in table] == [["lr", "weight_decay", "seed", *COLUMNS]] * 4
    assert [(row["lr"], row["seed"]) for row in table] == [(1, 0), (1, 3), (0.5, 0), (0.5, 3)]
    assert [row["regime"] for row in table] == ["periodic", "periodic", "converging", "diverged"]
    assert all(type(value) in (str, int, float) for row in table for value in row.values())
    one = summarise(open_flat(tmp_path / "run", SweepGrid.product(momentum=0.9), stack([trajectory(60)])))
    assert [list(row) for row in rows(one)] == [["lr", "weight_decay", "momentum", *COLUMNS]]


def test_csv_holds_every_number_exactly(summary, tmp_path):
    to_csv(summary, tmp_path / "summary.csv")
    content = (tmp_path / "summary.csv").read_bytes().decode()
    assert content.count("\r\n") == content.count("\n") == 5
    with (tmp_path / "summary.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["config", *AXES, *COLUMNS]
    for i, row in enumerate(table):
        assert row["config"] == str(i)
        assert row["regime"] == summary.regime.values[i]
        for name in (*AXES, *COLUMNS[1:]):
            number = float(row[name] or "nan")
            np.testing.assert_array_equal(number, summary[name].values[i])
            assert row[name] != "nan"


def test_text(summary):
    assert as_text(summary).splitlines() == [
        " lr  decay  seed      regime  jumps  mean period  train loss  lowest  test error   lowest  norm  diverged at",
        "  1  0.001     0    periodic      3          350         1.2       0      60.0 %    0.0 %  4.85            -",
        "  1  0.001     3    periodic      1            -         2.2       1     110.0 %   50.0 %  2.22            -",
        "0.5  0.001     0  converging      0            -         3.2       2     160.0 %  100.0 %  2.75            -",
        "0.5  0.001     3    diverged      0            -         4.2       3     210.0 %  150.0 %  3.61          650",
    ]


def test_text_without_divergence_and_of_close_values(tmp_path):
    grid = SweepGrid.product(lr=[0.12341, 0.12342], noninvariant_lr=-1)
    text = as_text(summarise(open_flat(tmp_path / "run", grid, stack([trajectory(60)] * 2))))
    head, *lines = text.splitlines()
    assert "diverged at" not in head
    assert [line.split()[0] for line in lines] == ["0.12341", "0.12342"]
    assert len({len(line) for line in (head, *lines)}) == 1
