"""The checks of recorded runs: no violation where the theory holds, and every kind found where it does not."""

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import cut, stack, trajectory

from periodic_jax import dynamics
from periodic_jax.analysis.hyperparameters import hyperparameters_of
from periodic_jax.analysis.theory_checks import CHECKS, Theory, Trajectory, check_theory
from periodic_jax.core.grid import HParams

CURVES = ("weight_norm", "effective_lr", "effective_grad_norm", "angular_step")


def run(telemetry, decay=1e-3, momentum=0.0, free=True, optimizer="sgd", dtype=np.float32):
    configs = len(telemetry["loss"])
    grid = {"lr": 1.0, "weight_decay": decay, "momentum": momentum, "fixed_norm": np.where(free, 0.0, 1.0)}
    numbers = HParams(*(grid.get(name, default) for name, default in HParams()._asdict().items()))._asdict() | {
        "seed": 0
    }
    coords = {name: ("config", np.broadcast_to(value, configs)) for name, value in numbers.items()}
    hyper = hyperparameters_of(xr.Dataset(coords, attrs={"optimizer": optimizer}))
    curves = {name: values.astype(dtype) for name, values in telemetry.items()}
    return check_theory(Trajectory(*(curves[name] for name in CURVES), hyper, curves.get("radial_leak")))


def noisy(steps=1500, **changes):
    """Effective gradient norms that spread over a factor of about 4."""
    return trajectory(steps, **{"quiet": 1.0, "noise": 0.3, **changes})


def test_no_violation_in_thousands_of_float32_steps():
    decays = [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.25]
    curves = stack([noisy(weight_decay=decay, seed=i) for i, decay in enumerate(decays)])
    curves = {**curves, "radial_leak": np.full_like(curves["loss"], 1e-6)}
    result = run(curves, decays)
    np.testing.assert_array_equal(result.violations, np.zeros((6, len(CHECKS))))
    assert np.abs(result.budget_residual).max() < 1e-3
    np.testing.assert_allclose(result.radial_leak, 1e-6, rtol=1e-5)
    bursts = run(stack([trajectory(2000, [300, 700, 1200]), trajectory(2000, [500], growth=1.3)]))
    np.testing.assert_array_equal(bursts.violations, np.zeros((2, len(CHECKS))))
    assert np.abs(bursts.budget_residual).max() < 1e-5


def test_gradients_and_budget_are_those_of_the_record():
    curve = noisy()
    result = run(stack([curve]))
    assert result.lowest_gradient == pytest.approx(curve["effective_grad_norm"].min())
    assert result.highest_gradient == pytest.approx(curve["effective_grad_norm"].max())
    spent = sum(-np.log(np.cos(curve["angular_step"][:-1])))
    assert result.rotation_spent == pytest.approx(spent, rel=1e-4)
    norms = curve["weight_norm"]
    assert result.rotation_budget == pytest.approx(
        dynamics.rotation_budget(1499, norms[0], norms[-1], 1.0, 1e-3), rel=1e-4
    )


def test_equilibrium_predicted_and_measured():
    """Where the gradient norm is constant, exactly; and of the rate of each step, whatever the schedule."""
    gradient = 25 * np.sqrt(1e-3 * (2 - 1e-3))
    result = run(stack([trajectory(2000, quiet=gradient, noise=0)]))
    assert result.equilibrium_weight_norm == pytest.approx(5, rel=1e-4)
    assert result.measured_weight_norm == pytest.approx(5, rel=1e-4)
    assert result.equilibrium_effective_lr == pytest.approx(1 / 25, rel=1e-4)
    assert result.measured_effective_lr == pytest.approx(1 / 25, rel=1e-4)


def test_a_budget_within_rounding_is_left_out():
    """At a learning rate of 1e-6 a norm in float32 does not move: that says nothing of the theory."""
    slow = trajectory(1000, lr=1e-6, quiet=1.0)
    still = {**slow, "weight_norm": np.full(1000, 5.0), "effective_lr": np.full(1000, 1e-6 / 25)}
    result = run(stack([still, noisy(1000)]))
    assert np.isnan(result.budget_residual[0])
    assert np.isfinite(result.rotation_budget).all()
    assert abs(result.budget_residual[1]) < 1e-3
    # In float64 the same rotation is far above rounding, and agrees.
    exact = run(stack([slow]), dtype=np.float64)
    assert abs(exact.budget_residual[0]) < 1e-6


SPOILED = {
    "norm_recursion": ("weight_norm", lambda v: v * np.where(np.arange(1500) == 700, 1.001, 1)),
    "angular_step": ("angular_step", lambda v: v * np.where(np.arange(1500) < 1000, 1, 1.01)),
    "highest_effective_lr": ("effective_lr", lambda v: np.where(np.arange(1500) == 700, 100, v)),
    "attracting_interval": ("effective_lr", lambda v: np.where(np.arange(1500) == 1400, 1e-7, v)),
    "largest_tangent": ("angular_step", lambda v: np.where(np.arange(1500) == 1400, 1.5, v)),
    "smallest_tangent": ("angular_step", lambda v: np.where(np.arange(1500) == 1400, 1e-9, v)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_record_is_found_out(name):
    curve = noisy(quiet=25 * np.sqrt(2e-3))  # at its equilibrium from the start
    field, spoil = SPOILED[name]
    curve[field] = spoil(curve[field])
    if field == "effective_lr":  # with the norm, so that the learning rate stays what it was
        curve["weight_norm"] = 1 / np.sqrt(curve[field])
    result = run(stack([curve]))
    assert result.violations[0, list(CHECKS).index(name)] >= 1


def test_waits_too_short_and_too_long_are_found_out():
    """Angles that jump where the rates say that none can; and none for ever where one must come."""
    curve = noisy(600, norm=50.0, quiet=1.0, noise=0.01)
    early = {**curve, "angular_step": np.where(np.arange(600) % 50 == 49, 0.5, curve["angular_step"])}
    assert run(stack([early])).violations[0, list(CHECKS).index("t_min")] >= 1
    late = noisy(4000, quiet=25 * np.sqrt(2e-3), noise=0.01)
    late["angular_step"] = np.full(4000, 1e-4)
    assert run(stack([late])).violations[0, list(CHECKS).index("t_max")] >= 1


@pytest.mark.parametrize(
    ("changes", "applying"),
    [
        ({"momentum": 0.5}, []),
        ({"free": False}, []),
        ({"decay": 0.0}, ["norm_recursion", "angular_step"]),
    ],
)
def test_checks_only_where_their_assumptions_hold(changes, applying):
    decay = changes.get("decay", 1e-3)
    result = run(stack([noisy(weight_decay=decay)]), **{"decay": decay, **changes})
    assert [name for name, count in zip(CHECKS, result.violations[0], strict=True) if np.isfinite(count)] == applying
    assert np.isnan(result.budget_residual[0]) == (not applying)
    assert all(entry.assumes for entry in CHECKS.values())


def test_a_schedule_has_exact_relations_and_a_budget_but_no_bounds():
    """Half way the rate falls to a half."""
    first, norm = noisy(700), None
    norm = dynamics.next_weight_norm(first["weight_norm"][-1], first["effective_grad_norm"][-1], 1.0, 1e-3)
    second = noisy(700, lr=0.5, norm=norm, seed=3)
    result = run(stack([{name: np.concatenate([first[name], second[name]]) for name in first}]))
    assert result.violations[0, :2].tolist() == [0, 0]
    assert np.isnan(result.violations[0, 2:]).all()
    assert abs(result.budget_residual[0]) < 1e-4


def test_what_is_missing_is_left_out():
    whole = noisy()
    gaps = {name: values.copy() for name, values in whole.items()}
    for values in gaps.values():
        values[[100, 101, 700, 1200]] = np.nan
    result = run(stack([gaps, cut(whole, 900), cut(whole, 0)]))
    np.testing.assert_array_equal(np.nan_to_num(result.violations), np.zeros((3, len(CHECKS))))
    assert np.abs(result.budget_residual[:2]).max() < 1e-3
    for values in result[:4]:
        assert np.isnan(values[2])


def test_as_one_at_a_time(monkeypatch):
    curves = stack([noisy(seed=i) for i in range(3)])
    together = run(curves)
    monkeypatch.setattr("periodic_jax.core.blocks.MOST_AT_ONCE", 1500)
    for name, one, other in zip(Theory._fields, together, run(curves), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, err_msg=name)
