"""What follows for plain SGD where the effective gradient norm stays between ℓ and L. Notation as in the package.

Assumed throughout: ℓ ≤ g̃ ≤ L in every step, no momentum, constant η and λ > 0, and a² ≥ ½.
"""

from typing import Any

from periodic_jax.dynamics.steps import jump_tangent, library_of, shrink


def attracting_interval(lowest: Any, highest: Any, lr: Any, weight_decay: Any) -> tuple[Any, Any]:
    """Interval of effective learning rates that attracts every trajectory and is never left again.

    [s/L, s/ℓ] where L/ℓ ≤ a²/(1-a²); otherwise the lower end is s/(a²ℓ + (1-a²)L²/ℓ). Tight.

    Args:
        lowest: ℓ > 0.
        highest: L.
        lr: η.
        weight_decay: λ.

    Returns:
        Lower and upper end.

    Example:
        >>> [round(float(end), 4) for end in attracting_interval(1.0, 10.0, 1.0, 1e-3)]
        [0.0045, 0.0447]
    """
    xp = library_of(lowest, highest, lr, weight_decay)
    kept = shrink(lr, weight_decay) ** 2
    lost = _lost(lr, weight_decay)
    narrow = highest * lost <= kept * lowest
    low = lost**0.5 / xp.where(narrow, highest, kept * lowest + lost * highest**2 / lowest)
    return low, lost**0.5 / lowest


def highest_effective_lr(lowest: Any, lr: Any, weight_decay: Any) -> Any:
    """Effective learning rate that is not exceeded after any step at all: 1/(2aℓ), wherever it started. Tight.

    Example:
        >>> highest_effective_lr(2.0, 1.0, 0.5)
        0.5
    """
    return 1 / (2 * shrink(lr, weight_decay) * lowest)


def largest_tangent(lowest: Any, highest: Any, lr: Any, weight_decay: Any) -> Any:
    """Largest tan θ once `attracting_interval` is reached: sL/(aℓ). No δ-jump happens with κ(δ) at or above. Tight.

    Args:
        lowest: ℓ > 0.
        highest: L.
        lr: η.
        weight_decay: λ.

    Returns:
        A tangent; `jump_distance` makes it δ, about ηλL²/ℓ².

    Example:
        >>> round(float(largest_tangent(1.0, 10.0, 1.0, 1e-3)), 4)
        0.4475
    """
    return _lost(lr, weight_decay) ** 0.5 * highest / (shrink(lr, weight_decay) * lowest)


def smallest_tangent(lowest: Any, highest: Any, lr: Any, weight_decay: Any) -> Any:
    """Smallest tan θ once `attracting_interval` is reached: its lower end times ℓ/a, so sℓ/(aL) where L/ℓ ≤ a²/(1-a²).

    Every step is a δ-jump with κ(δ) below. Tight where L/ℓ ≤ a²/(1-a²).

    Args:
        lowest: ℓ > 0.
        highest: L.
        lr: η.
        weight_decay: λ.

    Returns:
        A tangent; `jump_distance` makes it δ, about ηλℓ²/L².

    Example:
        >>> round(float(smallest_tangent(1.0, 10.0, 1.0, 1e-3)), 5)
        0.00448
    """
    return attracting_interval(lowest, highest, lr, weight_decay)[0] * lowest / shrink(lr, weight_decay)


def t_min(effective_lr: Any, highest: Any, delta: Any, lr: Any, weight_decay: Any) -> Any:
    """Steps before which no δ-jump can come: ⌊ln(aκ(δ)/(η̃_0 L)) / (-2 ln a)⌋, at least 0. Needs no ℓ. Tight.

    Args:
        effective_lr: η̃_0, now.
        highest: L, for all steps until then.
        delta: δ in (0, 1).
        lr: η.
        weight_decay: λ.

    Returns:
        The steps 0 ... t_min after now are no δ-jumps, as far as t_min is above 0.

    Example:
        >>> float(t_min(1e-3, 1.0, 5e-4, 1.0, 1e-3))
        1725.0
    """
    xp = library_of(effective_lr, highest, delta, lr, weight_decay)
    reach = xp.log(shrink(lr, weight_decay) * jump_tangent(delta) / (effective_lr * highest))
    return xp.maximum(xp.floor(reach / (-2 * xp.log1p(-lr * weight_decay))), 0)


def t_max(effective_lr: Any, lowest: Any, delta: Any, lr: Any, weight_decay: Any) -> Any:
    """Steps by which a δ-jump must have come, for δ < ηλ: ⌈ln(aκ(δ)/(η̃_0 ℓ)) / (2 ln((1-δ)/a))⌉, at least 0. Tight.

    Args:
        effective_lr: η̃_0, now.
        lowest: ℓ > 0, for all steps until then.
        delta: δ.
        lr: η.
        weight_decay: λ.

    Returns:
        One of the steps 0 ... t_max after now is a δ-jump; infinite for δ ≥ ηλ, which is never forced.

    Example:
        >>> float(t_max(1e-3, 1.0, 5e-4, 1.0, 1e-3)), float(t_max(1e-3, 1.0, 2e-3, 1.0, 1e-3))
        (3451.0, inf)
    """
    xp = library_of(effective_lr, lowest, delta, lr, weight_decay)
    reach = xp.log(shrink(lr, weight_decay) * jump_tangent(delta) / (effective_lr * lowest))
    pace = 2 * (xp.log1p(-delta) - xp.log1p(-lr * weight_decay))
    steps = xp.maximum(xp.ceil(reach / xp.where(pace > 0, pace, 1.0)), 0)
    return xp.where(pace > 0, steps, xp.inf)


def _lost(lr: Any, weight_decay: Any) -> Any:
    """s² = 1 - a² = ηλ(2-ηλ), without cancellation."""
    product = lr * weight_decay
    return product * (2 - product)
