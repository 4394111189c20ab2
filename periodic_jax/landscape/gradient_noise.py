"""Statistics of the gradients of mini-batches: their mean, their spread, the noise scale."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Moments(NamedTuple):
    """Running moments of the mini-batches' gradients, each of the mean loss of its counted images, by their shares."""

    share: Float[Array, ""]  # Σ s_b of the mini-batches so far
    squares: Float[Array, ""]  # Σ s_b²
    loss: Float[Array, ""]  # Σ s_b loss_b
    mean: Float[Array, "size"]  # Σ s_b g_b / Σ s_b
    spread: Float[Array, ""]  # Σ s_b |g_b - mean|²
    norm: Float[Array, ""]  # Σ s_b |g_b|


class GradientNoise(NamedTuple):
    """What gradients of mini-batches say; NaN where they do not tell."""

    loss: float
    gradient_norm: float  # |ḡ| of the mean over the mini-batches
    gradient_std_norm: float  # norm of the standard deviations of all entries, (Σ_j var_j)^½
    mean_gradient_norm: float  # mean of |g_b|
    noise_scale: float  # images of a mini-batch whose noise would be as large as the gradient
    reason: str  # why the noise scale is NaN


def no_moments(size: int, dtype: Any) -> Moments:
    """Moments of no mini-batch."""
    zero = jnp.zeros((), dtype)
    return Moments(zero, zero, zero, jnp.zeros(size, dtype), zero, zero)


def with_gradient(moments: Moments, share: Array, loss: Array, gradient: Array) -> Moments:
    """Moments with one mini-batch more (Welford's update, which loses no digits).

    Args:
        moments: so far.
        share: s_b, the mini-batch's share in the whole loss; 0 leaves the moments as they are.
        loss, gradient: s_b times its mean loss, and the gradient of that.
    """
    counted = share > 0
    own = gradient / jnp.where(counted, share, 1)
    total = moments.share + share
    step = jnp.where(counted, share / jnp.where(counted, total, 1), 0)
    off = own - moments.mean
    return Moments(
        total,
        moments.squares + share**2,
        moments.loss + loss,
        moments.mean + step * off,
        moments.spread + share * (1 - step) * jnp.vdot(off, off),
        moments.norm + share * jnp.sqrt(jnp.vdot(own, own)),
    )


def merge_moments(one: Moments, other: Moments) -> Moments:
    """Moments of two sets of mini-batches, NumPy arrays in float64, as one (Chan's formula)."""
    total = one.share + other.share
    off = other.mean - one.mean
    weight = other.share / total if total > 0 else 0.0
    spread = one.spread + other.spread + one.share * weight * float(off @ off)
    return Moments(
        total,
        one.squares + other.squares,
        one.loss + other.loss,
        one.mean + weight * off,
        spread,
        one.norm + other.norm,
    )


def gradient_noise(moments: Moments, images: float) -> GradientNoise:
    """Norms and the noise scale of all mini-batches.

    |std|² = Σ s_b |g_b - ḡ|² / (1 - Σ s_b²), and the noise scale B = n |std|² / |G|² with n images in a mini-batch and
    |G|² = |ḡ|² - |std|² Σ s_b², the squared norm of the gradient without the noise of its estimate. Batch
    normalisation makes the images of a mini-batch depend on each other, so B is that of mini-batches near this size.

    Args:
        moments: NumPy arrays in float64, of shares that sum to 1.
        images: n, counted in the loss of a mini-batch on average.

    Returns:
        The numbers; the noise scale is NaN, with a reason, where there is one mini-batch only, where the gradient is
        zero, or not above its noise.

    Source: noise scale of McCandlish, Kaplan, Amodei, An Empirical Model of Large-Batch Training, 2018.
    """
    if not np.isfinite(moments.mean).all() or not moments.share > 0:
        reason = "not finite" if moments.share > 0 else "no such image in the mini-batches"
        return GradientNoise(math.nan, math.nan, math.nan, math.nan, math.nan, reason)
    size = math.sqrt(float(moments.mean @ moments.mean))
    loss, norm = float(moments.loss), float(moments.norm)
    if 1 - moments.squares < 1e-9:
        return GradientNoise(loss, size, math.nan, norm, math.nan, "one mini-batch")
    variance = float(moments.spread / (1 - moments.squares))
    clean = size**2 - variance * float(moments.squares)
    reason = "zero gradient" if norm == 0 else "" if clean > 0 else "gradient not above its noise"
    scale = math.nan if reason else images * variance / clean
    return GradientNoise(loss, size, math.sqrt(variance), norm, scale, reason)
