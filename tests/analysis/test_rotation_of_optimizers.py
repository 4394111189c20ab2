"""The equilibria that `analyze` compares, on recorded walks of each optimiser."""

import numpy as np
import pytest
import xarray as xr

from periodic_jax import analysis, dynamics
from periodic_jax.core.grid import SweepGrid

SIZE = 300


def recorded(optimizer, lr=0.1, decay=0.05, share=0.8, steps=5000):
    """A run of one configuration on white tangent noise, as it would be recorded."""
    rng = np.random.default_rng(0)
    with_momentum = optimizer in ("sgd", "sgdw", "nesterov")
    other = {"momentum": share} if with_momentum else {"beta1": share, "beta2": 0.99}
    grid = SweepGrid.product(lr=lr, weight_decay=decay, **other)
    x, v, second = rng.normal(size=SIZE), np.zeros(SIZE), np.ones(SIZE)
    rows = []
    for _ in range(steps):
        norm = np.linalg.norm(x)
        g = rng.normal(size=SIZE)
        g = (g - x * (g @ x) / norm**2) / norm
        h = g + (decay * x if optimizer in ("sgd", "nesterov") else 0)
        if with_momentum:
            v = share * v + h
            d = h + share * v if optimizer == "nesterov" else v
        elif optimizer == "adamw":
            v, second = share * v + (1 - share) * g, 0.999 * second + 0.001 * g * g
            d = v / np.sqrt(second)
        else:
            d, v = np.sign((1 - share) * g + share * v), 0.99 * v + 0.01 * g
        u = -lr * (d if optimizer in ("sgd", "nesterov") else d + decay * x)
        radial = u @ x / norm
        tangential = np.linalg.norm(u - x * radial / norm)
        rows.append((1.0, norm, norm * np.linalg.norm(g), np.arctan2(tangential, norm + radial), radial, tangential))
        x = x + u
    names = ("loss", "weight_norm", "effective_grad_norm", "angular_step", "radial_update", "tangential_update")
    curves = {
        name: (("config", "step"), np.array(values)[None])
        for name, values in zip(names, zip(*rows, strict=True), strict=True)
    }
    norm = curves["weight_norm"][1]
    curves |= {"effective_lr": (("config", "step"), lr / norm**2), "step_lr": (("config", "step"), lr + 0 * norm)}
    coords = {name: ("config", values) for name, values in grid.coords.items()}
    return xr.Dataset(curves, coords, {"optimizer": optimizer}).assign(diverged_at=("config", [np.nan]))


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "nesterov", "adamw", "lion"])
def test_norm_and_angle_are_as_predicted_and_the_regime_is_an_equilibrium(optimizer):
    found = analysis.analyze(recorded(optimizer))
    assert found.measured_angular_step.item() == pytest.approx(found.equilibrium_angular_step.item(), rel=0.02)
    assert found.measured_weight_norm.item() == pytest.approx(found.equilibrium_weight_norm.item(), rel=0.03)
    assert found.regime.item() == "equilibrium"
    assert found.check_violations.isnull().all()


def test_without_momentum_the_relations_of_plain_sgd_are_checked_of_all_that_are_plain_sgd():
    for optimizer in ("sgd", "sgdw", "nesterov"):
        found = analysis.analyze(recorded(optimizer, share=0.0, steps=600))
        assert found.check_violations.notnull().any()
        assert found.violations.item() == 0
        assert abs(found.budget_residual.item()) < 1e-6
    assert analysis.analyze(recorded("adamw", share=0.0, steps=600)).check_violations.isnull().all()


def test_an_unknown_optimiser_is_taken_for_nothing():
    found = analysis.analyze(recorded("sgd", steps=600).assign_attrs(optimizer="custom"))
    for name in ("equilibrium_angular_step", "equilibrium_weight_norm", "budget_residual"):
        assert found[name].isnull().all()
    assert "no decay sets a pace" in found.because.item()


def test_the_pace_of_an_equilibrium_is_one():
    """Under the optimiser's own equilibrium, by the heavy ball that turns as far."""
    theta = dynamics.adamw_equilibrium(0.01, 0.3, 0.9).angular_step
    momentum = dynamics.equivalent_momentum(theta, 0.01, 0.3)
    assert analysis.rotation_pace(np.full(100, theta), 0.01, 0.3, momentum) == pytest.approx(1, rel=1e-9)
