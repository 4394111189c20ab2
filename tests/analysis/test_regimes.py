from typing import Any

import numpy as np
import pytest
from helpers.synthetic import cut, stack, trajectory
from scipy import stats

from periodic_jax.analysis.periods import detect_periods
from periodic_jax.analysis.regimes import (
    FALLING,
    LEAST_CONFIDENCE,
    LEAST_STEPS,
    PARTS,
    REGIMES,
    Regimes,
    classify_regimes,
    falling_pairs,
    rotation_pace,
)
from periodic_jax.core.formatting import counted

PERIODIC = (300, 700, 1200, 1500)


def equilibrium(steps=2000, **changes):
    """Training that fluctuates around the equilibrium of a constant effective gradient norm, here ρ = 5."""
    return trajectory(steps, **{"quiet": 25 * np.sqrt(1e-3 * (2 - 1e-3)), "loss": 0.5, **changes})


def diverging():
    curve = cut(trajectory(1000, [300, 598]), 601)
    curve["loss"][600] = np.inf
    return {name: np.pad(values, (0, 1000), constant_values=np.nan) for name, values in curve.items()}


CURVES = {
    "converging": trajectory(2000),
    "periodic": trajectory(2000, PERIODIC),
    "equilibrium": equilibrium(),
    "diverged": diverging(),
}
"""What each says of itself."""
REASONS = {
    "converging": "rotation at 0.00 of the decay's pace, loss x",
    "periodic": "destabilisation",
    "equilibrium": "of the decay's pace, loss x 1.",
    "diverged": "not finite",
}


@pytest.mark.parametrize("regime", CURVES)
@pytest.mark.parametrize("last", [2000, 1300])
def test_regimes_one_at_a_time(regime, last):
    """Also of a run that has not come to its end."""
    found = classify_regimes(cut(CURVES[regime], last), 1.0, 1e-3)
    assert found.regime == regime
    assert 0.7 < found.confidence <= 1
    assert REASONS[regime] in str(found.because)


@pytest.mark.parametrize("lead", [(4,), (2, 2), (4, 1)])
def test_regimes_at_once(lead):
    telemetry = {name: values.reshape(*lead, -1) for name, values in stack(list(CURVES.values())).items()}
    found = classify_regimes(telemetry, np.ones(lead), np.full(lead, 1e-3), np.zeros(lead))
    np.testing.assert_array_equal(found.regime, np.reshape(list(CURVES), lead))
    again = classify_regimes(telemetry, 1.0, 1e-3, periods=detect_periods(telemetry))
    for name, one, other in zip(Regimes._fields, found, again, strict=True):
        assert one.shape == lead, name
        np.testing.assert_array_equal(one, other)


def test_a_sawtooth_that_turns_at_the_decays_pace_is_periodic():
    """Short periods, which keep pace with the decay and whose loss does not fall: the bursts hold the rotation."""
    steps = np.log(1.08**5) / -np.log1p(-4e-3)
    curve = trajectory(3000, range(90, 2990, int(steps) + 5), weight_decay=4e-3, quiet=0)
    found = classify_regimes(curve, 1.0, 4e-3)
    assert found.pace == pytest.approx(1, abs=0.1)
    assert found.burst_share > 0.9
    assert found.regime == "periodic"


def test_divergence_to_nan_is_told_by_the_recorded_step():
    telemetry = stack([cut(trajectory(1000, [300]), 700), cut(trajectory(1000, [300]), 600)])
    assert classify_regimes(telemetry, 1.0, 1e-3).regime.tolist() == ["periodic", "periodic"]
    telemetry["diverged_at"] = np.array([600, np.nan])
    found = classify_regimes(telemetry, 1.0, 1e-3)
    assert found.regime.tolist() == ["diverged", "periodic"]
    assert found.because[0] == "not finite at step 600"
    assert found.confidence[0] == 1


@pytest.mark.parametrize("steps", [0, 1, 60, LEAST_STEPS - 1])
def test_a_short_run_is_not_judged(steps, recwarn):
    found = classify_regimes(cut(trajectory(2 * LEAST_STEPS), steps), 1.0, 1e-3)
    assert found.regime == "undecided"
    assert found.confidence == 0
    assert str(found.because) == (
        f"only {counted(steps, 'step')}" if steps else "no step with both loss and weight norm"
    )
    assert classify_regimes({**cut(trajectory(200), steps), "diverged_at": 0.0}, 1.0, 1e-3).regime == "diverged"
    assert not recwarn.list


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_a_loss_that_explodes_but_stays_finite_is_a_divergence(decay):
    curve = trajectory(600, weight_decay=decay)
    curve["loss"][3:] = 1e6 * np.exp(0.2 * np.random.default_rng(0).normal(size=597))
    found = classify_regimes(curve, 1.0, decay)
    assert found.regime == "diverged"
    assert "times the first" in str(found.because)
    # A loss that never moves, with all its noise, does not explode.
    assert classify_regimes(trajectory(600, weight_decay=decay, noise=0.6), 1.0, decay).regime != "diverged"


def test_a_random_walk_is_a_divergence():
    curve = {**trajectory(600, weight_decay=0), "angular_step": np.full(600, 1.3)}
    found = classify_regimes(curve, 1.0, 0.0)
    assert found.regime == "diverged"
    assert "74 degrees" in str(found.because)
    found = classify_regimes({**curve, "angular_step": np.full(600, 0.7)}, 1.0, 0.0, is_held=True)
    assert found.regime == "equilibrium"


@pytest.mark.parametrize(("power", "regime"), [(0.0, "equilibrium"), (0.1, "equilibrium"), (-1.0, "converging")])
@pytest.mark.parametrize("last", [2000, 900])
def test_on_a_sphere_the_loss_tells_an_equilibrium(power, regime, last):
    """A loss like 1/t falls to 0.6 from the middle third to the last. A free norm without decay has no equilibrium."""
    curve = {**trajectory(2000, weight_decay=0, noise=0.2), "angular_step": np.full(2000, 0.01)}
    curve["loss"] *= np.arange(1, 2001) ** power
    curve = cut(curve, last)
    found = classify_regimes(curve, 1.0, 0.0, is_held=True)
    assert found.regime == regime
    assert found.level == pytest.approx(0.6**-power, rel=0.05)
    free = classify_regimes(curve, 1.0, 0.0)
    assert free.regime == ("converging" if regime == "converging" else "undecided")
    assert "no decay sets a pace" in str(free.because)


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_weights_that_have_hardly_turned_tell_nothing(decay):
    """As at a learning rate of 1e-6, where a loss of 5.39 of 5.4 is neither convergence nor equilibrium."""
    curve = trajectory(2000, weight_decay=decay, loss=5.4, noise=0.02, quiet=1e-7)
    found = classify_regimes(curve, 1.0, decay)
    assert found.regime == "undecided"
    assert found.confidence == 0
    assert str(found.because).startswith("the weights have turned by")


@pytest.mark.parametrize("last", [2000, 900])
@pytest.mark.parametrize("held", [True, False])
def test_a_loss_that_still_falls_is_no_equilibrium(held, last):
    """Straight down, to 0.85 of itself from the middle third to the last; noise of that size is none."""
    decay = 0.0 if held else 1e-3
    curve = {**equilibrium(weight_decay=1e-3, noise=0.2), **({"weight_norm": np.full(2000, 5.0)} if held else {})}
    assert classify_regimes(cut(curve, last), 1.0, decay, is_held=held).regime == "equilibrium"
    curve["loss"] *= 0.85 ** (3 * np.arange(2000) / last)
    found = classify_regimes(cut(curve, last), 1.0, decay, is_held=held)
    assert found.level == pytest.approx(0.85, rel=0.02)
    assert found.regime == "undecided"
    assert "and falling" in str(found.because)


def test_falling_pairs_against_kendalls_test():
    """The share of falling pairs is (1 - τ)/2 of the parts' means; where it counts, τ's p-value is at most 1 %."""
    rng = np.random.default_rng(0)
    curves = rng.normal(size=(50, 601)) - 2e-4 * np.arange(50)[:, None] * np.arange(601)
    chosen = rng.random((50, 601)) < 0.8
    shares = falling_pairs(curves, chosen)
    for curve, mask, share in zip(curves, chosen, shares, strict=True):
        kept = curve[mask]
        part = np.arange(len(kept)) * PARTS // len(kept)
        test: Any = stats.kendalltau(np.arange(PARTS), [kept[part == k].mean() for k in range(PARTS)], method="exact")
        assert share == pytest.approx((1 - test.statistic) / 2)
        assert (share >= FALLING) == (test.statistic < 0 and test.pvalue / 2 <= 0.01)
    assert 5 < (shares >= FALLING).sum() < 48
    assert np.isnan(falling_pairs(curves[:, :10], chosen[:, :10])).all()


def scheduled(factors):
    """Steps at the equilibrium of plain SGD whose learning rate is multiplied by a factor at each."""
    curve = equilibrium(len(factors))
    curve["effective_lr"] = curve["effective_lr"] * factors
    curve["angular_step"] = curve["angular_step"] * factors
    return curve


@pytest.mark.parametrize(("left", "regime"), [(0.0, "undecided"), (0.01, "undecided"), (1.0, "equilibrium")])
@pytest.mark.parametrize("held", [True, False])
def test_a_schedule_that_has_ended_leaves_it_undecided(left, regime, held):
    """A cosine from 1 to what is left of the learning rate, whatever it was before."""
    factors = left + (1 - left) * (1 + np.cos(np.pi * np.linspace(0, 1, 2000))) / 2
    found = classify_regimes(scheduled(factors), 1.0, 0.0 if held else 1e-3, is_held=held)
    assert found.regime == regime
    assert ("the schedule has ended" in str(found.because)) == (regime == "undecided")


def test_a_rate_that_fell_before_the_burn_ins_end_is_judged_by_itself():
    """The pace is that of the decay at the rate of each step: a tenth of it, if the rate is a tenth."""
    factors = np.where(np.arange(3000) < 500, 1.0, 0.05)
    curve = scheduled(factors)
    curve["angular_step"] = np.where(factors < 1, np.arccos(1 - 0.05e-3), curve["angular_step"])
    found = classify_regimes(curve, 1.0, 1e-3)
    assert found.pace == pytest.approx(1, rel=0.05)
    assert found.regime == "equilibrium"


def test_a_rate_that_follows_the_norm_at_a_fixed_effective_rate_is_no_schedule():
    curve = {**trajectory(2000, weight_decay=0), "angular_step": np.full(2000, 0.1), "loss": np.full(2000, 0.5)}
    curve["weight_norm"] = np.geomspace(5, 0.5, 2000)
    curve["effective_lr"] = np.full(2000, 0.01)
    assert classify_regimes(curve, 1.0, 0.0, is_held=True).regime == "equilibrium"


def test_few_steps_do_not_make_everything_converge():
    """Fifty configurations that shrink quietly for 120 steps: whatever they will do, it does not show yet."""
    curves = stack(
        [trajectory(120, lr=lr, weight_decay=1e-3, quiet=0.1, seed=i) for i, lr in enumerate(np.geomspace(0.01, 1, 50))]
    )
    found = classify_regimes(curves, np.geomspace(0.01, 1, 50), 1e-3)
    assert (found.regime == "undecided").all()
    assert all("converging at a confidence of 0." in reason or "turned" in reason for reason in found.because)


def test_no_regime_is_named_with_less_confidence_than_half():
    """Curves of every length and fall of the loss: named regimes are surer than `LEAST_CONFIDENCE`, undecided is 0."""
    steps = np.arange(1, 1001)
    curves = [
        cut({**trajectory(1000, quiet=quiet), "loss": steps**-power}, last)
        for quiet in (0.01, 1.0) for power in np.linspace(0, 1, 9) for last in (120, 160, 300, 1000)
    ]  # fmt: skip
    found = classify_regimes(stack(curves), 1.0, 1e-3)
    assert set(found.regime) == {"converging", "equilibrium", "undecided"}
    np.testing.assert_array_equal(found.confidence >= LEAST_CONFIDENCE, found.regime != "undecided")
    assert (found.confidence[found.regime == "undecided"] == 0).all()


def test_next_to_no_decay_is_no_decay():
    """Rotation far above the decay's pace, because the decay is nearly nothing: the norm grows."""
    curve = {**trajectory(2000, weight_decay=1e-8), "angular_step": np.full(2000, 0.01)}
    assert classify_regimes(curve, 1.0, 1e-8).regime == "undecided"
    curve["loss"] /= np.arange(1, 2001)
    found = classify_regimes(curve, 1.0, 1e-8)
    assert found.pace > 1000
    assert found.regime == "converging"


def test_burn_in_leaves_out_the_way_to_the_equilibrium():
    """Quiet for the first third and at the equilibrium after it; and the other way round."""
    rest, work = trajectory(600, loss=0.5), equilibrium(1400)
    late = {name: np.concatenate([rest[name], work[name]]) for name in rest}
    assert classify_regimes(late, 1.0, 1e-3).regime == "equilibrium"
    early = {name: np.concatenate([work[name][:600], trajectory(1400)[name]]) for name in rest}
    early["weight_norm"][600:] *= early["weight_norm"][599] / early["weight_norm"][600]
    early["angular_step"][:600] *= 3
    assert classify_regimes(early, 1.0, 1e-3).regime == "converging"


def test_confidence_grows_with_the_distance_from_the_threshold_and_with_the_steps():
    """A divergence shows at once."""
    angles = [0.8, 1.0, 1.4]
    curves = stack([{**trajectory(600, weight_decay=0), "angular_step": np.full(600, angle)} for angle in angles])
    sure = classify_regimes(curves, 1.0, 0.0).confidence
    assert 0.4 < sure[0] < sure[1] < sure[2] < 1
    fewer = classify_regimes({name: values[:, :150] for name, values in curves.items()}, 1.0, 0.0).confidence
    np.testing.assert_allclose(fewer, sure)
    sure, fewer = (classify_regimes(cut(CURVES["periodic"], last), 1.0, 1e-3).confidence for last in (2000, 800))
    assert 0.5 < fewer < sure


def test_no_configuration_at_all():
    empty = {name: np.ones((0, 200)) for name in ("loss", "weight_norm", "effective_lr", "angular_step")}
    assert classify_regimes(empty, 1.0, 1e-3).regime.shape == (0,)


def test_words():
    assert set(CURVES) < set(REGIMES)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rotation_pace(momentum):
    """cos θ = 1 - ηλ/(1+μ) at every step keeps pace; half the steps at rest, half of it; NaN is left out."""
    lr, decay = np.array([0.1, 1.0]), np.array([0.2, 0.01])
    kept = np.repeat(np.arccos(1 - lr * decay / (1 + momentum))[:, None], 100, axis=1)
    np.testing.assert_allclose(rotation_pace(kept, lr, decay, momentum), 1)
    kept[:, ::2] = 0
    np.testing.assert_allclose(rotation_pace(kept, lr, decay, momentum), 0.5)
    kept[:, ::2] = np.nan
    np.testing.assert_allclose(rotation_pace(kept, lr, decay, momentum), 1)


def test_rotation_pace_without_decay_or_steps():
    assert rotation_pace(np.ones(5), 0.1, 0.0) == np.inf
    assert np.isnan(rotation_pace(np.zeros(5), 0.1, 0.0))
    assert np.isnan(rotation_pace(np.full(5, np.nan), 0.1, 0.1))


@pytest.mark.parametrize("lr", [0.3, 1.0])
def test_pace_of_whole_periods_is_one(lr):
    """From one burst to the next at the same norm: the budget of rotation is that of the decay, in 5 of 100 steps."""
    steps = np.log(1.08**5) / -np.log1p(-lr * 4e-3)  # to fall by what a burst adds
    period = int(steps) + 5
    curve = trajectory(20 * period, range(0, 20 * period, period), lr=lr, weight_decay=4e-3, quiet=0)
    angles = curve["angular_step"]
    assert rotation_pace(angles, lr, 4e-3) == pytest.approx(1, abs=0.1)
