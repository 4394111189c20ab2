"""What the experiments find in their numbers: seed by seed, and by the loss where the norm cannot tell."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def with_seeds(rows):
    """Rows once for each of three seeds, the last seed first."""
    return [row | {"seed": seed} for seed in (2.0, 1.0, 0.0) for row in rows]


def test_seeds_are_judged_one_by_one_on_the_sphere():
    from experiments.sphere import findings

    def row(elr, regime, loss, error):
        return {"elr": elr, "regime": regime, "final_train_loss": loss, "lowest_test_error": error}

    base = [
        row(1e-4, "converging", 0.1, 0.5), row(1e-3, "converging", 0.01, 0.4), row(1e-2, "equilibrium", 1.0, 0.6),
        row(2e-2, "equilibrium", 2.0, 0.7), row(0.3, "diverged", 9.0, 0.9),
    ]  # fmt: skip
    sphere = sorted(with_seeds(base), key=lambda one: (one["elr"], one["seed"]))
    onset = {"regime": "periodic", "lr": 0.1, "first_onset": 2e-3, "last_onset": 3e-3}
    normal = with_seeds([onset])
    found = findings({"sphere": sphere, "normal": normal})
    assert [one.holds for one in found] == [True, True, True, None, None, True]
    # One seed converges at a higher rate than the others: its periods begin below that, theirs still above.
    sphere[6]["regime"] = "converging"
    assert sphere[6]["elr"] == 1e-2
    found = findings({"sphere": sphere, "normal": normal})
    assert [one.holds for one in found[:1] + found[5:]] == [True, False]
    assert findings({"sphere": sphere, "normal": normal[:2]})[5].holds is True  # of the other two seeds
    # One seed has its regimes out of order.
    sphere[0]["regime"] = "equilibrium"
    assert findings({"sphere": sphere, "normal": normal})[0].holds is False


def test_a_product_is_compared_between_rates_and_not_between_seeds():
    from experiments.product import _ratio

    rows = [
        {"lr": rate, "jumps": 9, "mean_period": period}
        for rate, periods in ((0.1, (50.0, 200.0)), (1.0, (110.0, 110.0)), (3.0, (1.0,)))
        for period in periods
    ]
    rows[-1]["jumps"] = 3
    assert _ratio(rows) == pytest.approx(1.1)
    assert np.isnan(_ratio(rows[:2]))


@pytest.mark.parametrize(
    ("regimes", "wanted"),
    [("pp pp", True), ("pp ee", False), ("pp pe", None), ("p e", False), ("p p", True), ("pe", None), ("", None)],
)
def test_a_product_decides_the_regime_unless_learning_rates_differ_more_than_seeds(regimes, wanted):
    from experiments.product import _regimes

    group = [{"lr": lr, "regime": regime} for lr, seeds in enumerate(regimes.split()) for regime in seeds]
    assert _regimes({"1e-3": group}).holds is wanted
    split = [{"lr": lr, "regime": regime} for lr, regime in enumerate("pe")]
    assert _regimes({"1e-3": group, "1e-2": split}).holds is False


@pytest.mark.parametrize(("jumps", "wanted"), [((5, 2), True), ((0, 1), False), ((5, 1), None)])
def test_a_practice_of_which_some_networks_are_periodic_cannot_be_told(jumps, wanted):
    from experiments.practice import findings

    rows = [{"jumps": count, "bursts": 0, "lr": 0.1, "regime": "periodic"} for count in jumps]
    assert findings({"momentum": rows})[0].holds is wanted
    bursts = [row | {"jumps": 0, "bursts": row["jumps"]} for row in rows]  # where no weight is scale-invariant
    assert findings({"momentum": bursts})[0].holds is wanted


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [((0, 0), (4, 2), True), ((0, 3), (2, 1), None), ((1, 0), (0, 1), False)]
)
def test_a_practice_has_periods_where_one_learning_rate_has_them_with_every_seed(low, high, wanted):
    from experiments.practice import findings

    rows = [
        {"jumps": count, "bursts": 0, "lr": lr, "regime": "?"}
        for lr, counts in ((0.3, high), (0.1, low))
        for count in counts
    ]
    assert findings({"cosine": rows})[0].holds is wanted


def test_a_practice_counts_by_learning_rate():
    from experiments.practice import findings

    rows = [
        {"jumps": 4, "bursts": 5, "lr": 0.3, "regime": "periodic"},
        {"jumps": 2, "bursts": 0, "lr": 0.1, "regime": "periodic"},
        {"jumps": 3, "bursts": 0, "lr": 0.1, "regime": "periodic"},
        {"jumps": 0, "bursts": 0, "lr": 0.3, "regime": "equilibrium"},
    ]
    found = findings({"momentum": rows})[0]
    assert found.measured == "Destabilisations: 2, 3 at 0.1 (periodic); 5, 0 at 0.3 (periodic, equilibrium)."


def test_a_held_norm_is_judged_by_the_loss():
    """It has no minima, which are the destabilisations elsewhere."""
    from experiments import ablations, kept

    declared = ablations.EXPERIMENT
    found = kept.evidence_of(ROOT / "docs" / "experiments" / "ablations")
    held = found["fixed_norm"]

    def holds(bursts):
        numbers = declared.measure(found | {"fixed_norm": held.assign(loss_bursts=0 * held.loss_bursts + bursts)})
        (finding,) = [one for one in declared.findings(numbers) if one.claim.startswith("With the norm held at")]
        assert f"by seed: {bursts}, {bursts}, of" in finding.measured
        return finding.holds

    assert [holds(bursts) for bursts in (0, 1, 2)] == [True, True, False]


@pytest.mark.parametrize(("bursts", "wanted"), [(0, True), (1, True), (2, False)])
def test_periods_without_decay_are_told_by_the_loss(bursts, wanted):
    """Without decay the norm of SGD only grows, so that it has no minima whatever happens."""
    from experiments.optimizers import findings

    row = {"lr": 0.1, "regime": "periodic", "mean_period": 100.0, "pace": 0.01}
    rows = [
        row | {"weight_decay": 0.01, "jumps": 5, "bursts": 5},
        row | {"weight_decay": 0.0, "jumps": 0, "bursts": bursts},
    ]
    names = ("sgd", "nesterov", "sgdw", "adamw", "lion")
    numbers = {"periods": dict.fromkeys(names, rows), "settled": {name: [] for name in names}}
    finding = next(one for one in findings(numbers) if one.claim.startswith("SGD: periods with decay"))
    assert finding.holds is wanted
    assert f"the largest count is {bursts}." in finding.measured
