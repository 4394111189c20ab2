"""What follows where the effective gradient norm stays the same, or is nothing. Notation as in the package."""

from typing import Any

from periodic_jax.dynamics.steps import library_of, shrink


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


def equilibrium_effective_lr(effective_grad_norm: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Effective learning rate at the equilibrium: η̃* = η/ρ*² = √(ηλ(1-μ)(2-ηλ/(1+μ)))/G.

    Example:
        >>> round(float(equilibrium_effective_lr(50.2, 1.0, 1e-3)), 6)
        0.000891
    """
    product = lr * weight_decay
    return (product * (1 - momentum) * (2 - product / (1 + momentum))) ** 0.5 / effective_grad_norm


def equilibrium_angular_step(lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Angular step at the equilibrium, whatever G is: cos θ* = 1 - ηλ/(1+μ), so θ* = 2 asin √(ηλ/(2(1+μ))), radians.

    Example:
        >>> round(float(equilibrium_angular_step(1.0, 1e-3)), 5)
        0.04473
    """
    xp = library_of(lr, weight_decay, momentum)
    return 2 * xp.arcsin((lr * weight_decay / (2 * (1 + momentum))) ** 0.5)


def equilibrium_contraction(lr: Any, weight_decay: Any) -> Any:
    """Factor by which ρ² - ρ*² shrinks in a step near the equilibrium of plain SGD: 2a² - 1, about 1 - 4ηλ.

    Example:
        >>> round(equilibrium_contraction(0.1, 0.01), 6)
        0.996002
    """
    return 2 * shrink(lr, weight_decay) ** 2 - 1


def approach_weight_norm(steps: Any, first_norm: Any, effective_grad_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Weight norm on the way from above to the equilibrium of plain SGD: ρ_t⁴ ≈ a^{4t}ρ_0⁴ + (1-a^{4t})ρ*⁴.

    An approximation, to first order in ηλ.

    Args:
        steps: t.
        first_norm: ρ_0, above ρ*.
        effective_grad_norm: G, constant.
        lr: η.
        weight_decay: λ > 0.

    Returns:
        ρ_t.

    Example:
        >>> round(float(approach_weight_norm(1e5, 100.0, 50.2, 1.0, 1e-3)), 1)
        33.5
    """
    kept = shrink(lr, weight_decay) ** (4 * steps)
    target = equilibrium_weight_norm(effective_grad_norm, lr, weight_decay)
    return (kept * first_norm**4 + (1 - kept) * target**4) ** 0.25


def falling_edge_steps(highest_norm: Any, lowest_norm: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Steps that decay alone needs to fall from one norm to another: ln(ρ_max/ρ_min)/(-ln a).

    The length of a period's quiet phase, where g̃ ≈ 0; so periods are proportional to 1/(ηλ) as far as that ratio
    stays the same. With momentum a is `coasting_factor`. λ > 0.

    Example:
        >>> round(float(falling_edge_steps(2.0, 1.0, 0.1, 0.01)))
        693
    """
    xp = library_of(highest_norm, lowest_norm, lr, weight_decay, momentum)
    product = lr * weight_decay
    # 1 - coasting factor without cancellation: 2ηλ / (1-μ+ηλ+√((1-μ+ηλ)²-4ηλ)), the smaller root's complement.
    base = 1 - momentum + product
    inner = base**2 - 4 * product
    lost = 2 * product / (base + xp.sqrt(xp.where(inner >= 0, inner, xp.nan)))
    return xp.log(highest_norm / lowest_norm) / -xp.log1p(-lost)


def sharpness_limit(sharpness: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> Any:
    """Effective learning rate at which a minimum of sharpness S on the unit sphere is left: η̃S/a = 2(1+μ).

    Without momentum the tangent component is multiplied by 1 - (η̃/a)S in each step; with it approximate.

    Args:
        sharpness: S, the largest eigenvalue of the Hessian at x/ρ.
        lr: η.
        weight_decay: λ.
        momentum: μ.

    Returns:
        η̃.

    Example:
        >>> sharpness_limit(200.0, 0.1, 0.0)
        0.01
    """
    return 2 * (1 + momentum) * shrink(lr, weight_decay) / sharpness
