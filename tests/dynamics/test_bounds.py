"""The bounds for ℓ ≤ g̃ ≤ L: thousands of random trajectories without a violation, and those that reach the bounds."""

import numpy as np
import pytest

from periodic_jax import dynamics

DRAWS, STEPS = 3000, 400


def draws(seed=0):
    """Rates, decays, ℓ and L over decades; ηλ up to where a² = ½."""
    rng = np.random.default_rng(seed)
    product = 10 ** rng.uniform(-4, np.log10(1 - np.sqrt(0.5)), DRAWS)
    lr = 10 ** rng.uniform(-3, 1, DRAWS)
    lowest = 10 ** rng.uniform(-3, 2, DRAWS)
    return rng, lr, product / lr, lowest, lowest * 10 ** rng.uniform(0, 3, DRAWS)


def walk(elr, gradients, lr, decay):
    """Effective learning rates before each step and after the last ``(steps + 1, draws)``, and the steps' tangents."""
    rates, tangents = [elr], []
    for gradient in gradients:
        tangents.append(elr * gradient / (1 - lr * decay))
        elr = dynamics.next_effective_lr(elr, gradient, lr, decay)
        rates.append(elr)
    return np.array(rates), np.array(tangents)


def choices(rng, lowest, highest):
    """Gradients between ℓ and L: at random, at either end, and in runs of either, ``(steps, draws)``."""
    share = rng.uniform(0, 1, (STEPS, DRAWS))
    run = np.cumsum(rng.uniform(0, 1, (STEPS, DRAWS)) < rng.uniform(0.01, 0.5, DRAWS), axis=0) % 2
    kind = rng.integers(0, 3, DRAWS)
    share = np.where(kind == 0, share, np.where(kind == 1, share.round(), run))
    return lowest * (highest / lowest) ** share


@pytest.fixture(scope="module")
def walks():
    rng, lr, decay, lowest, highest = draws()
    low, high = dynamics.attracting_interval(lowest, highest, lr, decay)
    start = low * (high / low) ** rng.uniform(-0.5, 1.5, DRAWS)
    rates, tangents = walk(start, choices(rng, lowest, highest), lr, decay)
    return lr, decay, lowest, highest, low, high, rates, tangents


def test_no_rate_beyond_the_highest_after_any_step(walks):
    lr, decay, lowest, *_, rates, _ = walks
    assert (rates[1:] <= dynamics.highest_effective_lr(lowest, lr, decay) * (1 + 1e-12)).all()


def test_the_interval_is_never_left_and_is_reached(walks):
    *_, low, high, rates, _ = walks
    inside = (rates >= low * (1 - 1e-12)) & (rates <= high * (1 + 1e-12))
    assert not (inside[:-1] & ~inside[1:]).any()
    assert (~inside[0]).mean() > 0.3
    lr, decay, *_ = walks
    fast = lr * decay > 0.05  # 400 steps are enough
    assert inside[-1, fast].all()


def test_tangents_within_the_interval(walks):
    lr, decay, lowest, highest, low, high, rates, tangents = walks
    inside = ((rates >= low) & (rates <= high))[:-1]
    largest = dynamics.largest_tangent(lowest, highest, lr, decay)
    smallest = dynamics.smallest_tangent(lowest, highest, lr, decay)
    assert (tangents <= largest * (1 + 1e-12))[inside].all()
    assert (tangents >= smallest * (1 - 1e-12))[inside].all()
    narrow = highest / lowest <= (1 - lr * decay) ** 2 / (lr * decay * (2 - lr * decay))
    s = np.sqrt(1 - (1 - lr * decay) ** 2)
    np.testing.assert_allclose(smallest[narrow], (s * lowest / ((1 - lr * decay) * highest))[narrow], rtol=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999, 1.001, 2.0])
def test_waits_for_a_jump(walks, share):
    """From every start: the first δ-jump is after t_min and by t_max, which is finite for δ < ηλ only."""
    lr, decay, lowest, highest, _, _, rates, tangents = walks
    delta = np.minimum(share * lr * decay, 0.9)
    jumps = tangents > dynamics.jump_tangent(delta)
    first = np.where(jumps.any(0), jumps.argmax(0), STEPS)
    soonest = dynamics.t_min(rates[0], highest, delta, lr, decay)
    latest = dynamics.t_max(rates[0], lowest, delta, lr, decay)
    assert ((first > soonest) | (soonest == 0) | (first == STEPS)).all()
    assert (first <= latest)[latest < STEPS].all()
    assert (latest < STEPS).any() == (share < 1)
    assert np.isinf(latest).all() == (share > 1)
    assert (soonest > 0).any()


def test_delta_jump_is_where_the_cosine_says(walks):
    lr, decay, _, _, _, _, rates, tangents = walks
    gradient = tangents * (1 - lr * decay) / rates[:-1]
    np.testing.assert_array_equal(
        dynamics.delta_jump(rates[:-1], gradient, lr, decay, 0.1), 1 - 1 / np.sqrt(1 + tangents**2) > 0.1
    )
    grows = rates[1:] < rates[:-1] * (1 - 1e-9)
    assert (tangents > dynamics.growth_tangent(lr, decay) * (1 - 1e-6))[grows].all()


ENDS = [(1e-3, 1.0, 30.0), (0.02, 2.0, 6.0), (0.2, 1.0, 1.5)]  # ηλ, ℓ, L


@pytest.mark.parametrize(("product", "lowest", "highest"), ENDS)
def test_the_bounds_are_reached(product, lowest, highest):
    """Adversarial sequences: ℓ for long and then L, L for long and then ℓ, and the state from which one step goes
    highest.
    """
    a = 1 - product
    low, high = dynamics.attracting_interval(lowest, highest, 1.0, product)
    up = walk(0.5 * (low + high), [lowest] * 20_000, 1.0, product)[0][-1]
    assert up == pytest.approx(high, rel=1e-9)
    assert up * highest / a == pytest.approx(dynamics.largest_tangent(lowest, highest, 1.0, product), rel=1e-9)
    down = walk(0.5 * (low + high), [highest] * 20_000, 1.0, product)[0][-1]
    thrown = dynamics.next_effective_lr(up, highest, 1.0, product)
    assert min(down, thrown) == pytest.approx(low, rel=1e-9)
    tangent = min(down, thrown) * lowest / a
    assert tangent == pytest.approx(dynamics.smallest_tangent(lowest, highest, 1.0, product), rel=1e-9)
    peak = dynamics.next_effective_lr(a / lowest, lowest, 1.0, product)
    assert peak == pytest.approx(dynamics.highest_effective_lr(lowest, 1.0, product), rel=1e-12)


def test_the_lower_end_where_gradients_differ_much():
    """L/ℓ > a²/(1-a²): one L after a long ℓ throws lower than L for ever."""
    product, lowest, highest = 0.1, 1.0, 50.0
    low, high = dynamics.attracting_interval(lowest, highest, 1.0, product)
    assert low < np.sqrt(1 - 0.9**2) / highest * 0.5
    assert dynamics.next_effective_lr(high, highest, 1.0, product) == pytest.approx(low, rel=1e-12)


def test_t_min_is_reached():
    """No gradient until the threshold is within reach, and then L: a jump comes in the step after t_min."""
    lr, decay, highest, delta, elr = 1.0, 0.01, 2.0, 0.02, 0.003
    wait = int(dynamics.t_min(elr, highest, delta, lr, decay))
    assert wait > 100
    rates, _ = walk(elr, [0.0] * (wait + 1), lr, decay)
    assert not dynamics.delta_jump(rates[wait], highest, lr, decay, delta)
    assert dynamics.delta_jump(rates[wait + 1], highest, lr, decay, delta)


def test_t_max_is_reached():
    """Gradients that turn each step just not enough, until ℓ alone makes a jump."""
    lr, decay, lowest, delta, elr = 1.0, 0.01, 0.5, 0.005, 0.01
    wait = int(dynamics.t_max(elr, lowest, delta, lr, decay))
    assert wait > 100
    edge = 0.99 * dynamics.jump_tangent(delta) * (1 - 1e-12)
    waited = 0
    while not dynamics.delta_jump(elr, max(edge / elr, lowest), lr, decay, delta):
        elr = dynamics.next_effective_lr(elr, max(edge / elr, lowest), lr, decay)
        waited += 1
    assert waited in (wait - 1, wait)


def test_an_equilibrium_makes_no_jump_above_the_decay():
    """δ > ηλ is never forced: at the equilibrium of a constant gradient every step turns by cos θ = a."""
    product, gradient = 0.01, 3.0
    elr = dynamics.equilibrium_effective_lr(gradient, 1.0, product)
    assert not dynamics.delta_jump(elr, gradient, 1.0, product, product * (1 + 1e-9))
    assert dynamics.delta_jump(elr, gradient, 1.0, product, product * (1 - 1e-9))
