"""Statistics of the gradients of mini-batches: their mean, their spread, the noise scale."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from periodic_jax.dynamics.steps import library_of


class Moments(NamedTuple):
    """Running moments of the mini-batches' gradients, each of the mean loss of its counted images, by their shares."""

    share: Float[Array, ""]  # Σ s_b of the mini-batches so far
    squares: Float[Array, ""]  # Σ s_b²
    loss: Float[Array, ""]  # Σ s_b loss_b
    mean: Float[Array, "size"]  # Σ s_b g_b / Σ s_b
    spread: Float[Array, ""]  # Σ s_b |g_b - mean|²
    norm: Float[Array, ""]  # Σ s_b |g_b|


class GradientNoise(NamedTuple):
    """Statistics of the gradients of mini-batches; NaN where they are undefined."""

    loss: float
    gradient_norm: float  # |ḡ| of the mean over the mini-batches
    gradient_std_norm: float  # norm of the standard deviations of all entries, (Σ_j var_j)^½
    mean_gradient_norm: float  # mean of |g_b|
    noise_scale: float  # images of a mini-batch whose noise would be as large as the gradient
    reason: str  # why the noise scale is NaN


def with_gradient(moments: Moments, share: Array, loss: Array, gradient: Array) -> Moments:
    """Moments with one mini-batch more (Welford's update, which loses no digits).

    Args:
        moments: so far.
        share: s_b, the mini-batch's share in the whole loss; 0 leaves the moments as they are.
        loss, gradient: s_b times its mean loss, and the gradient of that.
    """
    own = gradient / jnp.where(share > 0, share, 1)
    norm = share * jnp.sqrt(jnp.vdot(own, own))
    return merge_moments(moments, Moments(share, share**2, loss, own, jnp.zeros_like(share), norm))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of two sets of mini-batches as one (Chan's formula), of either array library."""
    xp = library_of(a.mean, b.mean)
    total, is_counted = a.share + b.share, b.share > 0
    weight = xp.where(is_counted, b.share / xp.where(is_counted, total, 1), 0)
    off = b.mean - a.mean
    return Moments(
        total,
        a.squares + b.squares,
        a.loss + b.loss,
        a.mean + weight * off,
        a.spread + b.spread + b.share * (1 - weight) * xp.vdot(off, off),
        a.norm + b.norm,
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
