"""Every closed form against vectors: SGD on random scale-invariant functions, one step at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from periodic_jax import dynamics

rates = st.floats(1e-4, 3.0)
decays = st.floats(0, 0.3)
norms = st.floats(1e-2, 1e3)
grads = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**32 - 1)


def random_weights(rng, norm, size=20):
    x = rng.normal(size=size)
    return norm * x / np.linalg.norm(x)


def random_gradient(rng, x, effective_grad_norm):
    """A gradient at x of some scale-invariant function: orthogonal to x, of norm g̃/|x|."""
    g = rng.normal(size=x.size)
    g -= x * (g @ x) / (x @ x)
    return g * effective_grad_norm / (np.linalg.norm(g) * np.linalg.norm(x))


def angle_between(x, y):
    """By Kahan's formula, which keeps its digits at every angle."""
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    return 2 * np.arctan2(np.linalg.norm(x - y), np.linalg.norm(x + y))


def sgd(x, gradient, lr, weight_decay):
    return (1 - lr * weight_decay) * x - lr * gradient


@settings(deadline=None)
@given(seeds, norms, grads, rates, decays)
@example(0, 1.0, 1e-3, 1e-4, 0.0)
@example(0, 1e-2, 1e3, 3.0, 0.3)
def test_one_step_of_sgd(seed, norm, g, lr, decay):
    rng = np.random.default_rng(seed)
    x = random_weights(rng, norm)
    y = sgd(x, random_gradient(rng, x, g), lr, decay)
    elr = dynamics.effective_lr(lr, norm)
    theta = angle_between(x, y)
    assert dynamics.shrink(lr, decay) * norm == pytest.approx(y @ x / norm)  # what is left along x
    assert elr == pytest.approx(lr / (x @ x))
    assert dynamics.next_weight_norm(norm, g, lr, decay) == pytest.approx(np.linalg.norm(y))
    assert dynamics.next_effective_lr(elr, g, lr, decay) == pytest.approx(lr / (y @ y))
    assert dynamics.angular_step(elr, g, lr, decay) == pytest.approx(theta, rel=1e-6, abs=1e-13)
    spent = np.log(np.linalg.norm(y)) - np.log((1 - lr * decay) * norm)  # cos θ is what decay alone would leave
    assert dynamics.rotation_spent(dynamics.angular_step(elr, g, lr, decay)) == pytest.approx(
        spent, rel=1e-6, abs=1e-12
    )


@pytest.mark.parametrize("theta", [1e-9, 1e-4, 0.3, 1.5])
def test_rotation_spent_is_minus_the_logarithm_of_the_cosine(theta):
    # 1 - cos θ = 2 sin²(θ/2) without cancellation.
    assert dynamics.rotation_spent(theta) == pytest.approx(-np.log1p(-2 * np.sin(theta / 2) ** 2), rel=1e-12)


def test_rotation_spent_beyond_a_right_angle_is_unknown():
    spent = dynamics.rotation_spent(np.array([1.0, 1.6, 3.0, np.nan]))
    np.testing.assert_array_equal(np.isnan(spent), [False, True, True, True])


@settings(deadline=None)
@given(st.floats(1e-9, 0.99), seeds)
def test_jump_tangent_is_the_threshold_of_a_jump(delta, seed):
    """A step jumps, 1 - cos θ > δ, exactly when its tangent, η̃g̃/a, is above κ(δ)."""
    lr, decay, norm = 0.5, 0.1, 2.0
    g = dynamics.jump_tangent(delta) * dynamics.shrink(lr, decay) / dynamics.effective_lr(lr, norm)
    rng = np.random.default_rng(seed)
    x = random_weights(rng, norm)
    for factor, jumps in ((1 - 1e-4, False), (1 + 1e-4, True)):
        y = sgd(x, random_gradient(rng, x, factor * g), lr, decay)
        distance = 0.5 * np.sum((x / np.linalg.norm(x) - y / np.linalg.norm(y)) ** 2)  # 1 - cos θ
        assert (distance > delta) == jumps


@pytest.mark.parametrize(("lr", "decay"), [(0.1, 0.01), (1.0, 0.05), (0.3, 0.0)])
@pytest.mark.parametrize("heavy_tail", [0.0, 2.0])
def test_rotation_budget_over_many_steps(lr, decay, heavy_tail):
    """Whatever the gradients do, the rotation spent is -T ln a + ln(ρ_T/ρ_0)."""
    rng = np.random.default_rng(3)
    x = random_weights(rng, 2.0)
    first, spent, steps = np.linalg.norm(x), 0.0, 500
    for _ in range(steps):
        y = sgd(x, random_gradient(rng, x, np.exp(heavy_tail * rng.normal())), lr, decay)
        spent += dynamics.rotation_spent(angle_between(x, y))
        x = y
    last = np.linalg.norm(x)
    assert dynamics.rotation_budget(steps, first, last, lr, decay) == pytest.approx(spent, rel=1e-9)
    assert spent > 0.01


def test_rotation_budget_takes_any_count_of_steps():
    """Also the unsigned ones, whose negative would wrap around."""
    wanted = dynamics.rotation_budget(5, 1.0, 2.0, 0.1, 0.1)
    for kind in (float, np.uint32, np.int64):
        assert dynamics.rotation_budget(kind(5), 1.0, 2.0, 0.1, 0.1) == wanted


@settings(deadline=None)
@given(grads, rates, st.floats(1e-5, 0.3))
def test_equilibrium_is_a_fixed_point(g, lr, decay):
    norm = dynamics.equilibrium_weight_norm(g, lr, decay)
    elr = dynamics.equilibrium_effective_lr(g, lr, decay)
    assert dynamics.next_weight_norm(norm, g, lr, decay) == pytest.approx(norm, rel=1e-12)
    assert dynamics.next_effective_lr(elr, g, lr, decay) == pytest.approx(elr, rel=1e-12)
    assert dynamics.effective_lr(lr, norm) == pytest.approx(elr, rel=1e-12)
    # There each step turns by exactly what the decay shrinks, and spends its whole budget.
    theta = dynamics.angular_step(elr, g, lr, decay)
    assert np.cos(theta) == pytest.approx(dynamics.shrink(lr, decay), rel=1e-12)
    assert dynamics.rotation_spent(theta) == pytest.approx(dynamics.rotation_budget(1, 1, 1, lr, decay), rel=1e-6)


@pytest.mark.parametrize("start", [0.5, 3.0])
def test_equilibrium_is_reached_from_both_sides(start):
    g, lr, decay = 5.0, 0.5, 0.05
    target = dynamics.equilibrium_weight_norm(g, lr, decay)
    rng = np.random.default_rng(0)
    x = random_weights(rng, start * target)
    for _ in range(1000):
        x = sgd(x, random_gradient(rng, x, g), lr, decay)
    assert np.linalg.norm(x) == pytest.approx(target, rel=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_equilibrium_with_momentum_under_white_tangent_noise(momentum):
    """Against the heavy ball itself, in many dimensions, where fresh gradients are orthogonal to the past."""
    g, lr, decay = 5.0, 1.0, 0.4
    rng = np.random.default_rng(1)
    target = dynamics.equilibrium_weight_norm(g, lr, decay, momentum)
    x, velocity, tail = random_weights(rng, target, 2000), 0.0, []
    for step in range(1500):
        velocity = momentum * velocity + random_gradient(rng, x, g) + decay * x
        x = x - lr * velocity
        if step >= 500:
            tail.append(np.linalg.norm(x))
    assert np.mean(tail) == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize(("lr", "decay"), [(0.1, 0.01), (1.0, 0.2)])
def test_falling_edge_counts_steps_without_gradient(lr, decay):
    x, norms = random_weights(np.random.default_rng(0), 7.0), []
    for _ in range(41):
        norms.append(np.linalg.norm(x))
        x = sgd(x, 0.0, lr, decay)
    assert dynamics.falling_edge_steps(norms[0], norms[40], lr, decay) == pytest.approx(40, rel=1e-9)
    assert dynamics.falling_edge_steps(7.0, 7.0, lr, decay) == 0


# Each function with arguments in its domain; the last two are always lr and weight decay, or the only ones there are.
CASES = {
    "shrink": (0.5, 0.1),
    "coasting_factor": (0.5, 0.1, 0.3),
    "sgd_equilibrium": (0.5, 0.1, 0.3),
    "sgdw_equilibrium": (0.5, 0.1, 0.3),
    "nesterov_equilibrium": (0.5, 0.1, 0.3),
    "adamw_equilibrium": (0.5, 0.1, 0.8),
    "lion_equilibrium": (0.5, 0.1, 0.8, 0.85),
    "equivalent_momentum": (0.3, 0.5, 0.1),
    "jump_distance": (0.3,),
    "delta_jump": (0.05, 2.0, 0.5, 0.1, 0.3),
    "growth_tangent": (0.5, 0.1),
    "equilibrium_angular_step": (0.5, 0.1),
    "equilibrium_contraction": (0.5, 0.1),
    "approach_weight_norm": (12.0, 3.0, 2.0, 0.5, 0.1),
    "sharpness_limit": (20.0, 0.5, 0.1),
    "attracting_interval": (1.0, 3.0, 0.5, 0.1),
    "highest_effective_lr": (1.0, 0.5, 0.1),
    "largest_tangent": (1.0, 3.0, 0.5, 0.1),
    "smallest_tangent": (1.0, 3.0, 0.5, 0.1),
    "t_min": (0.0123, 2.0, 0.03, 0.5, 0.1),
    "t_max": (0.0123, 1.0, 0.03, 0.5, 0.1),
    "sphere_lr": (0.5, 3.0),
    "sphere_effective_lr": (3.0, 0.5, 0.1),
    "undecayed_lr": (7.0, 0.5, 0.1),
    "rescaled": (2.0, 3.0, 0.5, 0.1),
    "effective_lr": (0.5, 3.0),
    "next_weight_norm": (3.0, 2.0, 0.5, 0.1),
    "next_effective_lr": (0.05, 2.0, 0.5, 0.1),
    "angular_step": (0.05, 2.0, 0.5, 0.1),
    "jump_tangent": (0.3,),
    "rotation_spent": (0.7,),
    "rotation_budget": (12.0, 3.0, 4.0, 0.5, 0.1),
    "equilibrium_weight_norm": (2.0, 0.5, 0.1),
    "equilibrium_effective_lr": (2.0, 0.5, 0.1),
    "falling_edge_steps": (4.0, 3.0, 0.5, 0.1),
}


def batch(arguments):
    """Three values of each argument, ``(3,)``."""
    return [np.asarray(value) * np.array([1.0, 1.1, 0.9]) for value in arguments]


def test_cases_are_all_functions():
    assert set(CASES) == set(dynamics.__all__) - {"RotationalEquilibrium", "rotational_equilibrium"}


def call(name):
    """The function, with one array as its result: the sum of those of the functions that have two or three."""
    function = getattr(dynamics, name)

    def one(*arguments):
        result = function(*arguments)
        return sum(result) if isinstance(result, tuple) else result

    return one


@pytest.mark.parametrize(("transform", "dtype"), [(jax.jit, np.float32), (jax.vmap, np.float64)])
@pytest.mark.parametrize("name", CASES)
def test_same_in_jax(name, dtype, transform):
    function, arguments = call(name), batch(CASES[name])
    wanted = function(*arguments)
    with jax.enable_x64(True):
        result = transform(function)(*(jnp.asarray(argument, dtype) for argument in arguments))
    assert isinstance(result, jax.Array)
    assert result.dtype == (bool if name == "delta_jump" else dtype)
    np.testing.assert_allclose(result, wanted, rtol=100 * np.finfo(dtype).eps)


@pytest.mark.parametrize("traced", ["first", "last"])
@pytest.mark.parametrize("name", CASES)
def test_traced_among_numbers_and_numpy_arrays(name, traced):
    """Whichever argument JAX traces, the others may be Python's numbers or NumPy's arrays."""
    function, arguments = call(name), CASES[name]
    chosen = {0} if traced == "first" else {len(arguments) - 1}

    def partial(*picked):
        picked = iter(picked)
        return function(*(next(picked) if i in chosen else np.float32(a) for i, a in enumerate(arguments)))

    result = jax.jit(partial)(*(arguments[i] for i in sorted(chosen)))
    np.testing.assert_allclose(result, function(*arguments), rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_broadcasts(name):
    function, arguments = call(name), CASES[name]
    grids = np.meshgrid(*(np.array([value, 1.1 * value]) for value in arguments), indexing="ij", sparse=True)
    result = function(*grids)
    assert result.shape == (2,) * len(arguments)
    assert result.flat[0] == pytest.approx(function(*arguments), rel=1e-12)
    assert result.flat[-1] == pytest.approx(function(*(1.1 * value for value in arguments)), rel=1e-12)


@pytest.mark.parametrize("name", ["next_weight_norm", "angular_step", "equilibrium_weight_norm", "rotation_budget"])
def test_derivatives_agree_with_differences(name):
    arguments = CASES[name]
    slopes = jax.grad(getattr(dynamics, name), argnums=tuple(range(len(arguments))))(*arguments)
    for i, slope in enumerate(slopes):
        step = 1e-6 * arguments[i]
        higher, lower = ([*arguments[:i], arguments[i] + s, *arguments[i + 1 :]] for s in (step, -step))
        measured = (getattr(dynamics, name)(*higher) - getattr(dynamics, name)(*lower)) / (2 * step)
        assert float(slope) == pytest.approx(measured, rel=1e-3, abs=1e-6)


def test_coasting_factor_and_falling_edge_with_momentum():
    """Against the heavy ball without a gradient, once its faster root has died out."""
    lr, decay, momentum = 0.2, 0.01, 0.9
    x, velocity, norms = 7.0, 0.0, []
    for _ in range(3000):
        velocity = momentum * velocity + decay * x
        x = x - lr * velocity
        norms.append(x)
    assert norms[600] / norms[599] == pytest.approx(dynamics.coasting_factor(lr, decay, momentum), rel=1e-12)
    steps = dynamics.falling_edge_steps(norms[500], norms[900], lr, decay, momentum)
    assert steps == pytest.approx(400, rel=1e-9)
    assert np.isnan(dynamics.coasting_factor(1.0, 0.9, 0.5))
    assert dynamics.coasting_factor(0.2, 1e-9, 0.9) == pytest.approx(1 - 2e-9, abs=1e-15)


def test_approach_from_above_is_right_to_first_order():
    g, lr, decay, norm = 5.0, 1.0, 1e-3, 60.0
    for step in range(3000):
        assert dynamics.approach_weight_norm(step, 60.0, g, lr, decay) == pytest.approx(norm, rel=2e-3)
        norm = dynamics.next_weight_norm(norm, g, lr, decay)


def test_contraction_near_the_equilibrium():
    g, lr, decay = 5.0, 1.0, 0.02
    target = dynamics.equilibrium_weight_norm(g, lr, decay)
    off = [norm**2 - target**2 for norm in (1.0001 * target, dynamics.next_weight_norm(1.0001 * target, g, lr, decay))]
    assert off[1] / off[0] == pytest.approx(dynamics.equilibrium_contraction(lr, decay), rel=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_equilibrium_with_momentum_agrees_with_itself(momentum):
    norm, elr = (
        f(5.0, 0.3, 0.1, momentum) for f in (dynamics.equilibrium_weight_norm, dynamics.equilibrium_effective_lr)
    )
    assert dynamics.effective_lr(0.3, norm) == pytest.approx(elr)
    angle = dynamics.equilibrium_angular_step(0.3, 0.1, momentum)
    assert np.cos(angle) == pytest.approx(1 - 0.03 / (1 + momentum))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_sharp_minimum_is_left_beyond_the_limit(momentum):
    """The tangent component of a valley of sharpness S shrinks just below the limit and grows just above."""
    sharpness, lr, decay = 30.0, 1e-3, 0.0
    for factor, grows in ((0.99, False), (1.01, True)):
        elr = factor * dynamics.sharpness_limit(sharpness, lr, decay, momentum)
        tangent, velocity = 1.0, 0.0
        for _ in range(2000):
            velocity = momentum * velocity + sharpness * tangent
            tangent -= elr * velocity
        assert (abs(tangent) > 1) == grows


def test_equivalent_trainings_follow_the_same_directions():
    """SGD with decay; on a sphere at the equivalent rate; without decay at a growing rate; and three times as long."""
    rng = np.random.default_rng(2)
    sharp = rng.normal(size=(12, 12))
    lr, decay = 0.3, 0.05

    def gradient(x):  # of the scale-invariant |Ax|²/|x|²
        return 2 * (sharp.T @ sharp @ x - x * (x @ sharp.T @ sharp @ x) / (x @ x)) / (x @ x) / 20

    plain = random_weights(rng, 2.0, 12)
    sphere, undecayed, (_, wide_lr, wide_decay) = plain / 2, plain.copy(), dynamics.rescaled(3.0, 2.0, lr, decay)
    wide = 3 * plain
    for step in range(40):
        elr = dynamics.sphere_effective_lr(np.linalg.norm(plain), lr, decay)
        plain = sgd(plain, gradient(plain), lr, decay)
        sphere = sgd(sphere, gradient(sphere), dynamics.sphere_lr(elr, 1.0), 0)
        sphere /= np.linalg.norm(sphere)
        undecayed = sgd(undecayed, gradient(undecayed), dynamics.undecayed_lr(step, lr, decay), 0)
        wide = sgd(wide, gradient(wide), wide_lr, wide_decay)
        for other in (sphere, undecayed, wide):
            assert angle_between(plain, other) < 1e-9
