"""The statistics of the experiments: trends, slopes, their intervals, and what is decided by them."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def test_trends_and_slopes_have_intervals_that_cover_the_truth():
    from experiments.statistics import slope, trend

    rng = np.random.default_rng(0)
    covered = []
    for _ in range(40):
        series = [5 - 0.3 * np.arange(12) + rng.normal(size=12) for _ in range(6)]
        found = trend(series)
        covered.append(found.low <= -0.3 <= found.high)
        assert found.high - found.low < 10 / np.sqrt(6 * 143)  # 2.5 times as wide as that of known noise
        expected = np.mean([np.polyfit(np.arange(12), one, 1)[0] for one in series])
        assert found.value == pytest.approx(expected)
    assert np.mean(covered) >= 0.9
    x = rng.normal(size=30)
    assert slope(x, 2 * x + 1).value == pytest.approx(2)
    assert slope(x, 2 * x + rng.normal(size=30)).sign() == 1
    assert slope(x, rng.normal(size=30) * 100).sign() is None


def test_means_have_intervals_that_cover_the_truth():
    from experiments.statistics import mean

    rng = np.random.default_rng(0)
    covered = []
    for _ in range(60):
        values = rng.normal(3, 2, 12)
        found = mean(values)
        covered.append(found.low <= 3 <= found.high)
        assert found.value == pytest.approx(values.mean())
        assert found.high - found.low < 8 * 2 / np.sqrt(12)
    assert np.mean(covered) >= 0.9


def test_what_cannot_be_told_has_no_interval():
    from experiments.statistics import mean, slope, trend

    for found in (mean([]), trend([]), trend([np.array([1.0, 2.0])]), slope([1.0, 2.0], [1.0, 2.0])):
        assert np.isnan(found.value)
        assert found.sign() is None


@pytest.mark.parametrize(("configurations", "sign"), [(1, None), (2, None), (3, -1)])
def test_two_configurations_make_no_trend(configurations, sign):
    from experiments.statistics import trend

    falling = 5 - 0.3 * np.arange(12) + 1e-3 * np.random.default_rng(0).normal(size=(configurations, 12))
    assert trend(falling).value == pytest.approx(-0.3, abs=1e-3)
    assert trend(falling).sign() == sign


def test_two_periodic_rates_do_not_tell_that_larger_ones_have_more_periods():
    from experiments.rate_and_decay import _counts

    rows = [{"lr": 0.01 * 2**k, "jumps": 5 + 6 * k, "regime": "periodic", "seed": 0} for k in range(8)]
    assert _counts(rows, "lr").holds is True
    assert _counts(rows[::-1], "lr").holds is True
    assert _counts([row | {"jumps": 50 - row["jumps"]} for row in rows], "lr").holds is False
    assert _counts(rows[:2], "lr").holds is None
    assert _counts([row | {"regime": "equilibrium"} for row in rows], "lr").holds is None


def test_images_that_do_not_fit_are_told_where_they_were_trained():
    from experiments.rate_and_decay import EXPERIMENT

    nothing = {"rates": [], "decays": []}
    rows = [{"lr": 0.1, "regime": "equilibrium", "jumps": 0, "lowest_train_loss": 0.7}]
    assert len(EXPERIMENT.findings(nothing | {"all_images": rows})) == len(EXPERIMENT.findings(nothing)) + 1
    told = EXPERIMENT.findings(nothing | {"all_images": rows})[-1]
    assert told.holds is True
    assert told.measured.endswith("by learning rate: 0.1: equilibrium, 0.7.")
    rows.append({"lr": 0.3, "regime": "periodic", "jumps": 2, "lowest_train_loss": 0.01})
    assert EXPERIMENT.findings(nothing | {"all_images": rows})[-1].holds is False


def test_a_configuration_of_both_axes_counts_once():
    from experiments.rate_and_decay import _all

    rows = [{"lr": lr, "weight_decay": decay, "seed": 0} for lr, decay in ((0.1, 1e-3), (0.3, 1e-3), (0.1, 1e-2))]
    assert _all({"rates": rows[:2], "decays": [dict(rows[0]), rows[2]]}) == rows


def test_a_slope_without_an_interval_decides_nothing():
    from experiments.full_batch import EXPERIMENT

    numbers = {"rows": [], "slope": [-1.4, np.nan, np.nan]}
    assert [finding.holds for finding in EXPERIMENT.findings(numbers)] == [False, None, None]
    numbers["slope"] = [-1.4, -1.6, -1.2]
    assert EXPERIMENT.findings(numbers)[1].holds is False


def test_the_sphere_meets_the_decay_where_its_rotation_does():
    from experiments.sphere import crossing

    # g̃ = 0.3 η̃^-0.4, so η̃ = (√(ηλ(2-ηλ)) / 0.3)^(1/0.6)
    rows = [{"elr": e, "strength": 0.3 * e**-0.4, "regime": "equilibrium"} for e in np.geomspace(1e-3, 1, 7)]
    expected = (np.sqrt(1e-3 * (2 - 1e-3)) / 0.3) ** (1 / 0.6)
    assert crossing(rows, 1e-3) == pytest.approx(expected)
    assert crossing(rows, 0.5) is None
    assert crossing([row | {"regime": "converging"} for row in rows], 1e-3) is None


def test_lines_of_one_slope_have_their_own_heights():
    from experiments.statistics import slope

    rng = np.random.default_rng(1)
    lines = np.repeat(np.arange(5), [4, 3, 4, 2, 5])
    covered = []
    for _ in range(60):
        x = rng.normal(size=18) + 3 * lines
        y = -0.5 * x + 20 * np.sin(lines) + rng.normal(size=18)
        found = slope(x, y, lines)
        heights = (lines[:, None] == np.arange(5)).astype(float)
        assert found.value == pytest.approx(np.linalg.lstsq(np.column_stack([x, heights]), y, rcond=None)[0][0])
        covered.append(found.low <= -0.5 <= found.high)
    assert np.mean(covered) >= 0.9
    one = slope(x, y)
    assert one.value == pytest.approx(np.polyfit(x, y, 1)[0])
    assert slope(x, y, np.full(18, "a")) == one
    alone = slope(x, y, np.arange(18))  # lines of a single point have no slope
    assert np.isnan(alone.value)
    assert alone.sign() is None


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [(0.91, 1.09, True), (0.8, 0.89, False), (1.11, 2.0, False), (0.8, 1.0, None), (0.95, 1.2, None), (0.5, 2.0, None)],
)
def test_an_interval_is_near_beyond_or_cannot_tell(low, high, wanted):
    from experiments.statistics import Estimate

    assert Estimate(1.0, low, high).near(1.0, 0.1) is wanted
    assert Estimate(1.0, np.nan, np.nan).near(1.0, 0.1) is None


def test_the_mean_of_earlier_falls_is_of_earlier_ones_only():
    from experiments.theory import _mean_so_far

    found = _mean_so_far(np.array([[2.0, 4.0, 9.0, np.nan], [5.0, np.nan, np.nan, np.nan]]))
    np.testing.assert_array_equal(found, [[np.nan, 2, 3, np.nan], [np.nan] * 4])


def test_numbers_are_plain_and_compared():
    from experiments.checking import unequal
    from experiments.kept import plain

    tree = plain({"a": np.array([1.0, np.nan]), "b": (np.int64(2), "x"), 3: np.float32(0.5)})
    assert tree == {"a": [1.0, None], "b": [2, "x"], "3": 0.5}
    assert unequal(tree, plain(tree)) == []
    assert unequal({"a": 1.0}, {"a": 1.0005}) == []
    assert unequal({"a": 1.0}, {"a": 1.002}) == ["a: 1.0 recorded, 1.002 derived"]
    assert unequal({"a": 1}, {}) == ["a: 1 recorded, None derived"]
    assert unequal({"a": None}, {"a": 1.0}) != []


def test_the_entropy_of_a_direction_is_that_of_its_spread():
    """Less that of a direction anywhere on the sphere: of normal coordinates the logarithm of their deviation."""
    from experiments.directions import direction_entropy

    rng = np.random.default_rng(0)
    normal = rng.standard_normal((4000, 8))
    for deviation in (1.0, 0.1):
        assert direction_entropy(3 + deviation * normal) == pytest.approx(np.log(deviation), abs=0.03)
    # Coordinates of directions that are anywhere on the sphere of 500 dimensions are all but normal.
    anywhere = rng.standard_normal((4000, 500))
    anywhere *= np.sqrt(500) / np.linalg.norm(anywhere, axis=1, keepdims=True)
    assert direction_entropy(anywhere[:, :8]) == pytest.approx(0, abs=0.03)
    assert direction_entropy(rng.uniform(0, 1, (4000, 8))) == pytest.approx(-np.log(2 * np.pi * np.e) / 2, abs=0.03)


@pytest.mark.parametrize(("protocol", "elr"), [("fixed_elr", 0.02), ("fixed_elr", 0.1), ("fixed_rate", 0.0)])
def test_norms_rest_where_steps_no_longer_change_them(protocol, elr):
    """By as many steps as it takes, each of Pythagoras: ρ₊² = (1-ηλ)²ρ² + (ηG/ρ)²."""
    from experiments.ideal_gas import resting_norm

    row, strength, square = {"lr": 0.7, "weight_decay": 0.05, "elr": elr}, 6.0, 4.0
    for _ in range(20_000):
        lr = elr * square if elr else row["lr"]
        square = (1 - lr * row["weight_decay"]) ** 2 * square + (lr * strength) ** 2 / square
    assert resting_norm(protocol, row, strength) == pytest.approx(square**0.5, rel=1e-9)
    assert np.isnan(resting_norm("sphere", row, strength))
    assert np.isnan(resting_norm("fixed_elr", row | {"elr": 1.0}, strength))  # no norm is kept by such steps


def test_protocols_are_compared_at_the_same_effective_learning_rate():
    from experiments.ideal_gas import differences

    def rows(elrs, losses):
        return [
            {"elr": elr, "effective_lr": elr, "loss": loss, "entropy": loss}
            for elr, loss in zip(elrs, losses, strict=True)
        ]

    sphere = rows([0.01, 0.01, 0.04], [0.5, 1.5, 3.0])
    kept = {"sphere": sphere, "fixed_elr": rows([0.02, 0.5], [3.0, 9.0]), "fixed_rate": rows([0.01], [1.1])}
    # At 0.02, half-way in the logarithm, the curve is at 2; 0.5 is beyond its end.
    assert differences("loss", kept) == pytest.approx([0.5, 0.1])
    assert differences("entropy", kept) == pytest.approx([1.0, 0.1])
    assert differences("loss", kept | {"sphere": []}) == []


def test_ensembles_are_compared_with_their_own_members_and_the_trend_takes_all_minima():
    from experiments.minima import MOST, findings

    errors = [0.6, 0.3, *np.linspace(0.55, 0.44, MOST)]  # the best of all is in no ensemble
    numbers = {
        "minimum": [[0, 100 * k, 0.1, error] for k, error in enumerate(errors)],
        "pair": [[0, 100 * k, 100 * (k + 1), 0.5, 1.0, 0.2] for k in range(len(errors) - 1)],
        "ensemble": [[0, k + 1, 0.4] for k in range(MOST)],
        "seeds": np.array([0.0, 2.0, 0.5, 0.3]),
    }
    found = {finding.claim: finding for finding in findings(numbers)}
    together = found["Ensembles of a run's minima are better than each alone."]
    assert together.holds
    assert "the last 10 minima 40.0 %, the best of these alone 44.0 %" in together.measured
    assert "60.0 %, 44.0 %" in found["Minima of later periods generalise better."].measured


def test_bursts_of_the_loss_are_counted():
    from experiments.evidence import loss_bursts

    steps = np.arange(4000)
    slow = np.exp(-steps / 500)  # falls by e^8, and never rises
    thrice = 0.1 + (steps % 1000 > 900) + np.where(steps == 555, 100, 0)  # a single step is no burst
    noisy = np.random.default_rng(0).lognormal(0, 0.5, 4000)
    diverged = np.where(steps < 1500, thrice, np.nan)
    assert loss_bursts(np.stack([slow, thrice, noisy, diverged])).tolist() == [0, 3, 0, 1]
