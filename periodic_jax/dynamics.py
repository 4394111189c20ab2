"""Closed forms of SGD with weight decay on scale-invariant weights: pure functions on arrays of any array library.

Notation: x the scale-invariant weights as one vector, ρ = |x|, g̃ = ρ|∇f(x)| the effective gradient norm, η and λ
learning rate and coupled weight decay, a = 1 - ηλ, η̃ = η/ρ² the effective learning rate, θ the angle between
consecutive iterates. All arguments broadcast; all quantities are dimensionless but angles, which are in radians. f may
change from step to step (mini-batches).

Derived from ⟨∇f(x), x⟩ = 0 and ∇f(cx) = ∇f(x)/c; the phenomenon is that of Lobacheva et al., NeurIPS 2021, arXiv
2106.15739.
"""

from typing import Any

import numpy as np


def _library(*arrays: Any) -> Any:
    """The array library of the first argument that names another than NumPy, else NumPy."""
    named = (a.__array_namespace__() for a in arrays if hasattr(a, "__array_namespace__"))
    return next((library for library in named if library is not np), np)


def shrink(lr: Any, weight_decay: Any) -> Any:
    """Factor by which weight decay alone shrinks the weights in one step: a = 1 - ηλ.

    Example:
        >>> shrink(0.1, 0.01)
        0.999
    """
    return 1 - lr * weight_decay


def effective_lr(lr: Any, weight_norm: Any) -> Any:
    """Effective learning rate η̃ = η/ρ²: the step size of the same dynamics on the unit sphere.

    Example:
        >>> effective_lr(0.1, 10.0)
        0.001
    """
    return lr / weight_norm**2


def next_weight_norm(weight_norm: Any, effective_grad_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Weight norm after one plain SGD step, by Pythagoras: ρ₊² = a²ρ² + η²g̃²/ρ². Exact.

    Args:
        weight_norm: ρ before the step.
        effective_grad_norm: g̃ = ρ|∇f(x)| at the step.
        lr: η.
        weight_decay: λ.

    Returns:
        ρ₊, of the broadcast shape.

    Example:
        >>> round(float(next_weight_norm(2.0, 0.0, 0.5, 0.2)), 12)
        1.8
    """
    a = shrink(lr, weight_decay)
    return (a**2 * weight_norm**2 + (lr * effective_grad_norm / weight_norm) ** 2) ** 0.5


def next_effective_lr(effective_lr: Any, effective_grad_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Effective learning rate after one plain SGD step: η̃₊ = η̃ / (a² + η̃²g̃²). Exact.

    Example:
        >>> round(float(next_effective_lr(0.1, 0.0, 0.5, 0.2)), 6)
        0.123457
    """
    return effective_lr / (shrink(lr, weight_decay) ** 2 + (effective_lr * effective_grad_norm) ** 2)


def angular_step(effective_lr: Any, effective_grad_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Angle between the weights before and after one plain SGD step: θ = atan(η̃g̃/a), in radians. Exact.

    Example:
        >>> round(float(angular_step(0.1, 10.0, 0.0, 0.0)), 6)
        0.785398
    """
    xp = _library(effective_lr, effective_grad_norm, lr, weight_decay)
    return xp.arctan(effective_lr * effective_grad_norm / shrink(lr, weight_decay))


def jump_tangent(delta: Any) -> Any:
    """Tangent of the angle whose cosine distance is δ: κ(δ) = √(δ(2-δ)) / (1-δ).

    A δ-jump, 1 - cos θ > δ, happens exactly when η̃g̃ > aκ(δ).

    Example:
        >>> round(float(jump_tangent(0.5)), 6)
        1.732051
    """
    return (delta * (2 - delta)) ** 0.5 / (1 - delta)


def rotation_spent(angular_step: Any) -> Any:
    """Rotation budget spent by each step: -ln cos θ = ½ ln(1 + tan²θ).

    Args:
        angular_step: θ in radians, below π/2 (beyond, the logarithm does not exist: NaN).

    Returns:
        -ln cos θ, without the cancellation of cos at small angles.

    Example:
        >>> float(rotation_spent(np.float64(1e-9))) > 0
        True
    """
    xp = _library(angular_step)
    spent = 0.5 * xp.log1p(xp.tan(angular_step) ** 2)
    return xp.where(xp.cos(angular_step) > 0, spent, xp.nan)


def rotation_budget(steps: Any, first_norm: Any, last_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Rotation that plain SGD must spend between two norms: Σ -ln cos θ = -T ln a + ln(ρ_T/ρ_0). Exact.

    Args:
        steps: T, number of steps.
        first_norm: ρ_0 before the first of them.
        last_norm: ρ_T after the last.
        lr: η.
        weight_decay: λ.

    Returns:
        The sum of `rotation_spent` over the T steps.

    Example:
        >>> round(float(rotation_budget(100, 1.0, 1.0, 0.1, 0.01)), 6)
        0.10005
    """
    xp = _library(steps, first_norm, last_norm, lr, weight_decay)
    return steps * -xp.log1p(-lr * weight_decay) + xp.log(last_norm / first_norm)


def equilibrium_weight_norm(effective_grad_norm: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Weight norm at which decay and gradient balance if g̃ = G stays: ρ*⁴ = ηG²/(λ(1-μ)(2-ηλ/(1+μ))).

    Exact without momentum; with momentum for white tangent noise.

    Args:
        effective_grad_norm: G, constant (or root mean square).
        lr: η.
        weight_decay: λ > 0.
        momentum: μ of the heavy ball.

    Returns:
        ρ*.

    Example:
        >>> round(float(equilibrium_weight_norm(50.2, 1.0, 1e-3)), 1)
        33.5
    """
    inner = lr * effective_grad_norm**2 / (weight_decay * (1 - momentum) * (2 - lr * weight_decay / (1 + momentum)))
    return inner**0.25


def equilibrium_effective_lr(effective_grad_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Effective learning rate at the equilibrium of plain SGD: η̃* = √(ηλ(2-ηλ))/G.

    Example:
        >>> round(float(equilibrium_effective_lr(50.2, 1.0, 1e-3)), 6)
        0.000891
    """
    product = lr * weight_decay
    return (product * (2 - product)) ** 0.5 / effective_grad_norm


def falling_edge_steps(highest_norm: Any, lowest_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Steps that decay alone needs to fall from one norm to another: ln(ρ_max/ρ_min)/(-ln a).

    The length of a period's quiet phase, where g̃ ≈ 0; so periods are proportional to 1/(ηλ) as far as that ratio
    stays the same. λ > 0.

    Example:
        >>> round(float(falling_edge_steps(2.0, 1.0, 0.1, 0.01)))
        693
    """
    xp = _library(highest_norm, lowest_norm, lr, weight_decay)
    return xp.log(highest_norm / lowest_norm) / -xp.log1p(-lr * weight_decay)
