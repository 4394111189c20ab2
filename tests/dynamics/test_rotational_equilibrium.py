"""The closed forms against the covariances of each recursion, and against walks driven by random gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_lyapunov

from periodic_jax import dynamics

products, shares = st.floats(1e-5, 0.2), st.floats(0, 0.95)


def companion(optimizer, p, m):
    """The recursion of (x, buffer) as it is programmed, for η = 1 and unit noise: next state = A state + b noise."""
    if optimizer == "sgd":  # v = μv + g + λx, x = x - v
        return np.array([[1 - p, -m], [p, m]]), np.array([-1, 1])
    if optimizer == "sgdw":  # v = μv + g, x = ax - v
        return np.array([[1 - p, -m], [0, m]]), np.array([-1, 1])
    if optimizer == "nesterov":  # h = g + λx, v = μv + h, x = x - h - μv
        return np.array([[1 - p - m * p, -m * m], [p, m]]), np.array([-1 - m, 1])
    return np.array([[1 - p, -m], [0, m]]), np.array([m - 1, 1 - m])  # adamw: m = βm + (1-β)g, x = ax - m


@settings(deadline=None)
@given(st.sampled_from(["sgd", "sgdw", "nesterov", "adamw"]), products, shares)
def test_linear_optimisers_have_the_covariance_of_their_recursion(optimizer, p, m):
    a, b = companion(optimizer, p, m)
    covariance = solve_discrete_lyapunov(a, np.outer(b, b))
    cosine = (a @ covariance)[0, 0] / covariance[0, 0]
    given_to = {"beta1": m} if optimizer == "adamw" else {"momentum": m}
    found = dynamics.rotational_equilibrium(optimizer, 1.0, p, **given_to)
    size = (1 - m) / (1 + m) if optimizer == "adamw" else 1  # of the average of unit noise
    assert found.gain * size == pytest.approx(covariance[0, 0], rel=1e-6)
    assert np.cos(found.angular_step) == pytest.approx(cosine, abs=1e-9)
    first_order = {
        "sgd": 2 * p / (1 + m), "sgdw": 2 * p * (1 - m) / (1 + m),
        "nesterov": 2 * p * (1 + 2 * m - 2 * m**3) / (1 + m), "adamw": 2 * p * (1 - m) / (1 + m),
    }  # fmt: skip
    if p < 1e-3 * (1 - m):
        assert found.angular_step == pytest.approx(first_order[optimizer] ** 0.5, rel=2e-2)


def test_plain_sgd_and_its_momentum_are_those_of_the_other_closed_forms():
    for optimizer in ("sgd", "sgdw", "nesterov"):
        found = dynamics.rotational_equilibrium(optimizer, 0.5, 0.02)
        assert found.angular_step == pytest.approx(dynamics.equilibrium_angular_step(0.5, 0.02), rel=1e-12)
    found = dynamics.sgd_equilibrium(0.5, 0.02, 0.9)
    assert found.angular_step == pytest.approx(dynamics.equilibrium_angular_step(0.5, 0.02, 0.9), rel=1e-12)
    norm = (found.gain * (0.5 * 7) ** 2) ** 0.25  # the gradient of the effective gradient norm 7 is 7/ρ
    assert norm == pytest.approx(dynamics.equilibrium_weight_norm(7.0, 0.5, 0.02, 0.9), rel=1e-12)
    assert dynamics.equivalent_momentum(found.angular_step, 0.5, 0.02) == pytest.approx(0.9)


def test_lion_to_first_order_is_that_of_the_paper():
    size = 0.1**2 + 0.9**2 * 0.01 / 1.99
    found = dynamics.lion_equilibrium(1.0, 1e-7)
    assert found.angular_step == pytest.approx((np.pi * 1e-7 * size) ** 0.5, rel=1e-2)


def walk(optimizer, lr, decay, m, beta2=0.99, size=400, steps=6000):
    """Root mean squares of the angular step and of the norm, and the norm predicted from the direction's size.

    The optimiser as its paper has it, on gradients of size 1/|x| that are orthogonal to the weights.
    """
    rng = np.random.default_rng(1)
    x = rng.normal(size=size)
    v = second = np.zeros(size)
    turned, norms, sizes = [], [], []
    for t in range(1, steps + 1):
        g = rng.normal(size=size)
        g -= x * (g @ x) / (x @ x)
        g *= 10 / np.linalg.norm(x) / np.sqrt(size)
        if optimizer in ("sgd", "nesterov"):
            g = g + decay * x
        if optimizer in ("sgd", "sgdw", "nesterov"):
            v = m * v + g
            d, seen = (g + m * v if optimizer == "nesterov" else v), 10 / np.linalg.norm(x)
        elif optimizer == "adamw":
            v, second = m * v + (1 - m) * g, beta2 * second + (1 - beta2) * g * g
            d = v / (1 - m**t) / np.sqrt(second / (1 - beta2**t))
            seen = np.linalg.norm(d)
        else:
            d, v = np.sign((1 - m) * g + m * v), beta2 * v + (1 - beta2) * g
            seen = np.linalg.norm(d)
        y = x - lr * d if optimizer in ("sgd", "nesterov") else (1 - lr * decay) * x - lr * d
        if t > steps / 3:
            turned.append(1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y))
            norms.append(np.linalg.norm(y))
            sizes.append(seen)
        x = y
    return np.sqrt(2 * np.mean(turned)), np.mean(np.square(norms)) ** 0.5, np.mean(np.square(sizes)) ** 0.5


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "nesterov", "adamw", "lion"])
def test_a_walk_of_random_gradients_comes_to_the_predicted_norm_and_angle(optimizer):
    lr, decay, m, beta2 = (0.1, 0.1, 0.9, 0.999 if optimizer == "adamw" else 0.98)
    angle, norm, size = walk(optimizer, lr, decay, m, beta2)
    found = dynamics.rotational_equilibrium(optimizer, lr, decay, momentum=m, beta1=m, beta2=beta2)
    assert angle == pytest.approx(found.angular_step, rel=0.02)
    assert norm == pytest.approx(found.gain**0.5 * lr * size, rel=0.03)


def test_under_jit_and_vmap_as_in_numpy(float64):
    """Rates and decays as arrays of either library."""
    rates, decays = np.array([0.01, 0.1]), np.array([0.3, 0.01])
    for optimizer in ("sgd", "sgdw", "nesterov", "adamw", "lion", "adam"):

        def one(lr, decay, name=optimizer):
            return dynamics.rotational_equilibrium(name, lr, decay, 0.5, 0.9, 0.99)

        together = jax.jit(jax.vmap(one))(jnp.asarray(rates), jnp.asarray(decays))
        np.testing.assert_allclose(together, one(rates, decays), rtol=1e-12)
        np.testing.assert_allclose(together[0][1], one(0.1, 0.01)[0], rtol=1e-12)
