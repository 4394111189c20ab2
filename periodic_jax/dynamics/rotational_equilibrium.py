"""Equilibrium of norm and rotation under other optimisers than plain SGD. Notation as in the package, p = ηλ.

Let each gradient be white tangent noise: orthogonal to the weights at which it is taken, uncorrelated with earlier
gradients, of a size that stays. Then decay and gradients balance at a norm ρ*, and each step turns the weights by an
angle θ* that depends on the hyperparameters alone: the rotational equilibrium of Kosson, Messmer, Jaggi, ICML 2024,
arXiv 2305.17212, who give it to first order in p. Here it is exact. In such noise a linear optimiser makes of each
coordinate

    x₊ = φ₁x + φ₂x₋ - η(b₀g + b₁g₋),

whose stationary variance, in units of that of ηg, and correlation of neighbours, which is cos θ*, are

    V = ((1-φ₂)(b₀²+b₁²) + 2φ₁b₀b₁) / ((1+φ₂)(1-φ₁-φ₂)(1+φ₁-φ₂)),   cos θ* = (φ₁ + b₀b₁/V) / (1-φ₂):

    sgd        φ₁ = 1+μ-p     φ₂ = -μ     b₀ = 1      b₁ = 0
    sgdw       φ₁ = a+μ       φ₂ = -aμ    b₀ = 1      b₁ = 0
    nesterov   φ₁ = (1+μ)a    φ₂ = -μa    b₀ = 1+μ    b₁ = -μ
    adamw      φ₁ = a+β₁      φ₂ = -aβ₁   b₀ = 1-β₁   b₁ = 0, of g over the root of its averaged square, as β₂ → 1

Lion takes the sign of c = (1-β₁)g + β₁m, which is no linear step. Signs of Gaussian numbers of correlation r have
correlation (2/π) asin r, and c has r_k = r₁β₂^(k-1) over k steps; so with S = 1 + (4/π) Σ_k a^k asin r_k the norm is
ρ*² = η²D²S/(1-a²), where D² is the number of coordinates, and |x₊ - ax| = ηD gives the angle.
"""

from typing import Any, NamedTuple

import numpy as np

from periodic_jax.dynamics.steps import library_of, shrink

TERMS = 40  # of the series of asin: θ* is right to 1e-4 for r₁ up to 0.99


class RotationalEquilibrium(NamedTuple):
    """What an optimiser comes to, whatever the size of the gradients."""

    angular_step: Any  # θ*, radians
    gain: Any  # ρ*² = gain (η D)², D the root mean square of the gradient's, or of AdamW's and Lion's direction's, norm


def sgd_equilibrium(lr: Any, weight_decay: Any, momentum: Any = 0.0) -> RotationalEquilibrium:
    """Heavy ball with coupled decay: 1 - cos θ* = p/(1+μ), gain (1+μ)/((1-μ)p(2(1+μ)-p)). To first order √(2p/(1+μ)).

    Example:
        >>> round(float(sgd_equilibrium(1.0, 1e-3, 0.9).angular_step), 5)
        0.03245
    """
    product = lr * weight_decay
    gain = (1 + momentum) / ((1 - momentum) * product * (2 * (1 + momentum) - product))
    return RotationalEquilibrium(_angle(product / (1 + momentum)), gain)


def sgdw_equilibrium(lr: Any, weight_decay: Any, momentum: Any = 0.0) -> RotationalEquilibrium:
    """Heavy ball with decoupled decay: 1 - cos θ* = p(1-μ)/(1+aμ), gain (1+aμ)/((1-aμ)(1-μ²)(1-a²)).

    To first order θ* = √(2p(1-μ)/(1+μ)).

    Example:
        >>> round(float(sgdw_equilibrium(1.0, 1e-3, 0.9).angular_step), 5)
        0.01026
    """
    product, kept = lr * weight_decay, shrink(lr, weight_decay) * momentum
    gain = (1 + kept) / ((1 - kept) * (1 - momentum**2) * product * (2 - product))
    return RotationalEquilibrium(_angle(product * (1 - momentum) / (1 + kept)), gain)


def nesterov_equilibrium(lr: Any, weight_decay: Any, momentum: Any = 0.0) -> RotationalEquilibrium:
    """Nesterov's momentum with coupled decay, as `torch.optim.SGD` has it: to first order θ* = √(2p(1+2μ-2μ³)/(1+μ)).

    Exactly, 1 - cos θ* = (p + μ(1+μ)/V)/(1+aμ).

    Example:
        >>> round(float(nesterov_equilibrium(1.0, 1e-3, 0.9).angular_step), 5)
        0.03763
    """
    product, a = lr * weight_decay, shrink(lr, weight_decay)
    kept = a * momentum
    noise = (1 + kept) * ((1 + momentum) ** 2 + momentum**2) - 2 * (1 + momentum) ** 2 * kept
    gain = noise / ((1 - kept) * product * (1 + a + 2 * kept))
    return RotationalEquilibrium(_angle((product + momentum * (1 + momentum) / gain) / (1 + kept)), gain)


def adamw_equilibrium(lr: Any, weight_decay: Any, beta1: Any = 0.9) -> RotationalEquilibrium:
    """AdamW, where β₂ is close to 1: 1 - cos θ* = p(1-β₁)/(1+aβ₁), gain (1+aβ₁)/((1-aβ₁)(1-a²)) of its direction.

    To first order θ* = √(2p(1-β₁)/(1+β₁)), and ρ*² = ηC/(2λ) for C coordinates, of whose direction D² = C(1-β₁)/(1+β₁).

    Example:
        >>> round(float(adamw_equilibrium(1.0, 1e-3, 0.9).angular_step), 5)
        0.01026
    """
    product, kept = lr * weight_decay, shrink(lr, weight_decay) * beta1
    gain = (1 + kept) / ((1 - kept) * product * (2 - product))
    return RotationalEquilibrium(_angle(product * (1 - beta1) / (1 + kept)), gain)


def lion_equilibrium(lr: Any, weight_decay: Any, beta1: Any = 0.9, beta2: Any = 0.99) -> RotationalEquilibrium:
    """Lion, of Gaussian gradients: gain S/(1-a²), S = 1 + (4/π) Σ_k a^k asin r_k, 1 - cos θ* = ((1-a²)/S - p²)/(2a).

    To first order, with S ≈ 2/(πq²) of q² = (1-β₁)² + β₁²(1-β₂)/(1+β₂), θ* = q√(πp).

    Args:
        lr: η.
        weight_decay: λ.
        beta1: β₁, the share of the average in the number of which the sign is taken.
        beta2: β₂, of the average.

    Returns:
        θ* and the gain.

    Example:
        >>> round(float(lion_equilibrium(1.0, 1e-3).angular_step), 5)
        0.00684
    """
    xp = library_of(lr, weight_decay, beta1, beta2)
    product, a = lr * weight_decay, shrink(lr, weight_decay)
    size = (1 - beta1) ** 2 + beta1**2 * (1 - beta2) / (1 + beta2)
    first = beta1 * (1 - beta2) * (1 - beta1 + beta1 * beta2 / (1 + beta2)) / size
    total, coefficient = xp.zeros_like(xp.asarray(first * a)), 1.0
    for n in range(TERMS):  # Σ_k a^k (r₁β₂^(k-1))^(2n+1) is a geometric series
        total = total + coefficient / (2 * n + 1) * first ** (2 * n + 1) * a / (1 - a * beta2 ** (2 * n + 1))
        coefficient = coefficient * (2 * n + 1) / (2 * n + 2)
    correlated = 1 + 4 / np.pi * total
    lost = product * (2 - product)
    return RotationalEquilibrium(_angle((lost / correlated - product**2) / (2 * a)), correlated / lost)


def rotational_equilibrium(
    optimizer: str, lr: Any, weight_decay: Any, momentum: Any = 0.0, beta1: Any = 0.9, beta2: Any = 0.999
) -> RotationalEquilibrium:
    """The equilibrium of a built-in optimiser.

    Args:
        optimizer: ``sgd``, ``sgdw``, ``nesterov``, ``adamw`` or ``lion``. Of another one it is not known: Adam with
            coupled decay has one for each size of a coordinate's gradient, not one for all.
        lr: η.
        weight_decay: λ > 0.
        momentum: μ of the first three.
        beta1, beta2: β₁ and β₂ of the last two.

    Returns:
        θ* and the gain; NaN where the equilibrium is not known.

    Example:
        >>> float(rotational_equilibrium("adam", 1.0, 1e-3).angular_step)
        nan
    """
    with_momentum = {"sgd": sgd_equilibrium, "sgdw": sgdw_equilibrium, "nesterov": nesterov_equilibrium}
    if optimizer in with_momentum:
        return with_momentum[optimizer](lr, weight_decay, momentum)
    if optimizer == "adamw":
        return adamw_equilibrium(lr, weight_decay, beta1)
    if optimizer == "lion":
        return lion_equilibrium(lr, weight_decay, beta1, beta2)
    unknown = np.nan * (lr * weight_decay)
    return RotationalEquilibrium(unknown, unknown)


def equivalent_momentum(angular_step: Any, lr: Any, weight_decay: Any) -> Any:
    """The μ of a heavy ball that turns as far in each step of its equilibrium: 1+μ = p/(1 - cos θ*).

    What is compared with the heavy ball's rotation, such as `classify_regimes`, takes it as ``momentum``.

    Example:
        >>> round(float(equivalent_momentum(adamw_equilibrium(1.0, 1e-3).angular_step, 1.0, 1e-3)), 2)
        17.99
    """
    xp = library_of(angular_step, lr, weight_decay)
    return lr * weight_decay / (2 * xp.sin(angular_step / 2) ** 2) - 1


def _angle(distance: Any) -> Any:
    """θ of 1 - cos θ, without cancellation."""
    return 2 * library_of(distance).arcsin((distance / 2) ** 0.5)
