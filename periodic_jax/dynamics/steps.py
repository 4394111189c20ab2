"""What holds exactly in each step of SGD on scale-invariant weights. Notation as in the package."""

from typing import Any

import numpy as np


def library_of(*arrays: Any) -> Any:
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


def coasting_factor(lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Factor by which the weights shrink in one step without a gradient: a, and with momentum the larger root of
    z² - (1+μ-ηλ)z + μ = 0, about 1 - ηλ/(1-μ). Exact once the other root, about μ, has died out.

    Args:
        lr: η.
        weight_decay: λ.
        momentum: μ.

    Returns:
        The factor; NaN beyond ηλ = (1-√μ)², where the weights swing through 0 instead.

    Example:
        >>> round(float(coasting_factor(0.1, 0.01)), 6)
        0.999
        >>> round(float(coasting_factor(0.1, 0.01, 0.9)), 5)
        0.98887
    """
    xp = library_of(lr, weight_decay, momentum)
    product = lr * weight_decay
    inner = (1 - momentum + product) ** 2 - 4 * product  # = (1+μ-ηλ)² - 4μ, with fewer digits lost
    return (1 + momentum - product + xp.sqrt(xp.where(inner >= 0, inner, xp.nan))) / 2


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
    xp = library_of(effective_lr, effective_grad_norm, lr, weight_decay)
    return xp.arctan(effective_lr * effective_grad_norm / shrink(lr, weight_decay))


def jump_tangent(delta: Any) -> Any:
    """Tangent of the angle whose cosine distance is δ: κ(δ) = √(δ(2-δ)) / (1-δ).

    A δ-jump, 1 - cos θ > δ, happens exactly when η̃g̃ > aκ(δ).

    Example:
        >>> round(float(jump_tangent(0.5)), 6)
        1.732051
    """
    return (delta * (2 - delta)) ** 0.5 / (1 - delta)


def jump_distance(tangent: Any) -> Any:
    """Cosine distance δ of the angle with this tangent, the inverse of `jump_tangent`: δ = 1 - 1/√(1+κ²).

    Returns:
        δ in [0, 1), without the cancellation at small angles.

    Example:
        >>> round(float(jump_distance(jump_tangent(1e-9))), 15)
        1e-09
    """
    root = (1 + tangent**2) ** 0.5
    return tangent**2 / (root * (1 + root))


def delta_jump(effective_lr: Any, effective_grad_norm: Any, lr: Any, weight_decay: Any, delta: Any) -> Any:
    """Whether one plain SGD step is a δ-jump, 1 - cos θ > δ: exactly when η̃g̃ > aκ(δ).

    Args:
        effective_lr: η̃ before the step.
        effective_grad_norm: g̃ at the step.
        lr: η.
        weight_decay: λ.
        delta: δ in [0, 1).

    Returns:
        Truth values of the broadcast shape.

    Example:
        >>> bool(delta_jump(0.1, 10.0, 0.0, 0.0, 0.29)), bool(delta_jump(0.1, 10.0, 0.0, 0.0, 0.3))
        (True, False)
    """
    return effective_lr * effective_grad_norm > shrink(lr, weight_decay) * jump_tangent(delta)


def growth_tangent(lr: Any, weight_decay: Any) -> Any:
    """Tangent beyond which a plain SGD step makes the norm grow: √(1-a²)/a, that is κ(ηλ). Exact.

    Example:
        >>> round(float(growth_tangent(0.5, 0.4)), 6) == round(float(jump_tangent(0.5 * 0.4)), 6)
        True
    """
    return jump_tangent(lr * weight_decay)


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
    xp = library_of(angular_step)
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
    xp = library_of(steps, first_norm, last_norm, lr, weight_decay)
    return steps * -xp.log1p(-lr * weight_decay) + xp.log(last_norm / first_norm)
