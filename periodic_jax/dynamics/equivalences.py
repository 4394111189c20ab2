"""Which other trainings walk the same path of directions, exactly. Notation as in the package.

Batch normalisation's ε breaks these slightly: about 1e-3 of the gradient after a rescaling by 3.7 at ε = 1e-5.
"""

from typing import Any

from periodic_jax.dynamics.steps import shrink


def sphere_lr(effective_lr: Any, radius: Any) -> Any:
    """Learning rate with which projected SGD on a sphere follows the same directions for every radius: η = η̃ρ².

    Example:
        >>> sphere_lr(0.001, 10.0)
        0.1
    """
    return effective_lr * radius**2


def sphere_effective_lr(weight_norm: Any, lr: Any, weight_decay: Any) -> Any:
    """Effective learning rate with which SGD on a sphere, without decay, makes the same step as SGD with decay:
    η̃_t = η/((1-ηλ)ρ_t²).

    Args:
        weight_norm: ρ_t of the training with decay.
        lr: η.
        weight_decay: λ.

    Returns:
        η̃_t for the sphere.

    Example:
        >>> round(sphere_effective_lr(2.0, 0.5, 0.2), 6)
        0.138889
    """
    return lr / (shrink(lr, weight_decay) * weight_norm**2)


def undecayed_lr(step: Any, lr: Any, weight_decay: Any) -> Any:
    """Learning rate with which SGD without decay follows the directions of SGD with decay: η_t = η a^(-2t-1).

    Args:
        step: t, from 0.
        lr: η.
        weight_decay: λ.

    Returns:
        η_t.

    Example:
        >>> round(undecayed_lr(0, 0.5, 0.2), 6)
        0.555556
    """
    return lr * shrink(lr, weight_decay) ** (-2.0 * step - 1.0)


def rescaled(factor: Any, weight_norm: Any, lr: Any, weight_decay: Any) -> tuple[Any, Any, Any]:
    """Norm, learning rate and decay that keep every direction when the weights are c times as long: cρ, c²η, λ/c².

    Args:
        factor: c > 0.
        weight_norm: ρ.
        lr: η.
        weight_decay: λ.

    Returns:
        The three.

    Example:
        >>> rescaled(2.0, 3.0, 0.1, 0.01)
        (6.0, 0.4, 0.0025)
    """
    return factor * weight_norm, factor**2 * lr, weight_decay / factor**2
