"""The operations of `primitives` for accelerators, in the layout of `direct`; see `direct_blocks`."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops import direct
from periodic_jax.ops.direct import Images, SharedImages, Tuning, precise
from periodic_jax.ops.layout import Kernel
from periodic_jax.ops.packing import Packing, stacked, stacked_with_vjp
from periodic_jax.ops.primitives import Affine, BatchMoments

Features = Float[Array, "channels batch"]
NO_KERNEL: frozenset[int] = frozenset()


class Strided(NamedTuple):
    """What a convolution is, besides its arrays: see `conv`."""

    stride: int
    tuning: Tuning


def conv(x: Images | SharedImages, kernel: Kernel, stride: int, tuning: Tuning = direct.GPU) -> Images:
    """As `primitives.conv`; of `SharedImages`, which get no gradient, too."""
    return _conv(x, kernel, Strided(stride, tuning))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Any, kernel: Kernel, how: Strided) -> Images:
    return _conv_forward(x, kernel, how)[0]


def _conv_forward(x: Any, kernel: Kernel, how: Strided) -> tuple[Images, Any]:
    (y,) = stacked(partial(_conv_core, how.stride), limit=how.tuning.limit_of(x))(x, kernel)
    return y, (x, kernel)


def _conv_backward(how: Strided, residuals: Any, dy: Images) -> Any:
    x, kernel = residuals
    dw, *dx = stacked(partial(_conv_backward_core, how.stride), limit=how.tuning.limit_of(x))(x, kernel, dy)
    return dx[0] if dx else None, dw.astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _conv_core(stride: int, packing: Packing, x: Images | SharedImages, kernels: Array) -> tuple[Array, ...]:
    return (direct.convolve(packing, x, kernels, stride),)


def _conv_backward_core(
    stride: int, packing: Packing, x: Images | SharedImages, kernels: Array, dy: Images
) -> tuple[Array, ...]:
    return direct.gradients(packing, x, kernels, dy, stride)


class Norm(NamedTuple):
    """What a normalisation is, besides its arrays: see `batch_norm`."""

    eps: float
    relu: bool
    tuning: Tuning


def batch_norm(
    x: Images,
    affine: Affine | None,
    eps: float,
    relu: bool,
    tuning: Tuning = direct.GPU,
    about: Float[Array, "channels"] | None = None,
) -> tuple[Images, BatchMoments]:
    """As `primitives.batch_norm`, followed by a ReLU if ``relu``.

    Args:
        x: activations.
        affine: scale and bias, or ``None`` for 1 and 0.
        eps: added to the variance.
        relu: whether a ReLU follows.
        tuning: for the platform.
        about: numbers near the means, about which squares lose no digits, known before x, such as the running means.
            Where passes are fused, sums are taken about them; elsewhere, and for ``None``, about the pilot of x.
    """
    return _batch_norm(x, affine, about if tuning.fused else None, Norm(eps, relu, tuning))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x: Images, affine: Affine | None, about: Array | None, norm: Norm) -> Any:
    return _norm_forward(x, affine, about, norm)[0]


def _norm_forward(x: Images, affine: Affine | None, about: Array | None, norm: Norm) -> tuple[Any, Any]:
    forward = stacked(partial(_norm_forward_core, norm, about is not None), NO_KERNEL)
    z, mean, var, inv = forward(x, *([] if about is None else [about]), *(affine or ()))
    return (z, BatchMoments(mean, var)), (x, affine, mean, inv)


def _norm_backward(norm: Norm, residuals: Any, cotangents: Any) -> Any:
    x, affine, mean, inv = residuals
    backward = stacked(partial(_norm_backward_core, norm), NO_KERNEL)
    dx, sum_g, sum_gn = backward(x, mean, inv, cotangents[0], *(affine or ()))
    return dx, None if affine is None else Affine(sum_gn, sum_g), None


_batch_norm.defvjp(_norm_forward, _norm_backward)


def _norm_forward_core(norm: Norm, known: bool, packing: Packing, x: Images, *affine: Array) -> tuple[Array, ...]:
    eps, relu, tuning = norm
    about, affine = (lax.stop_gradient(precise(affine[0])), affine[1:]) if known else (direct.pilot(x), affine)
    away = precise(x) - about
    mean, var = direct.moments_about(about, *tuning.two_sums(away, away * away), x.size // x.shape[-1])
    mean, var, inv = tuning.materialise(mean, var, lax.rsqrt(var + eps))
    return _scaled((precise(x) - mean) * inv, affine, relu).astype(x.dtype), mean, var, inv


def _norm_backward_core(
    norm: Norm, packing: Packing, x: Images, mean: Array, inv: Array, dz: Images, *affine: Array
) -> tuple[Array, ...]:
    _, relu, tuning = norm
    count, away = x.size // x.shape[-1], precise(x) - mean
    gain = inv * affine[0] if affine else inv
    g = precise(dz)
    if relu:
        g = jnp.where((away * gain + affine[1] if affine else away) > 0, g, 0)
    sum_g, sum_ga = tuning.materialise(*tuning.two_sums(g, g * away))
    sum_gn = sum_ga * inv  # of the normalised x
    offset, slope = gain * sum_g / count, gain * inv * sum_gn / count
    return (gain * g - (offset + slope * away)).astype(x.dtype), sum_g, sum_gn


def _scaled(normal: Array, affine: tuple[Array, ...], relu: bool) -> Array:
    out = normal * affine[0] + affine[1] if affine else normal
    return jnp.maximum(out, 0) if relu else out


def normalise(x: Images, statistics: BatchMoments, eps: float, affine: Affine | None, relu: bool) -> Images:
    """`batch_norm` with given statistics, as at test time."""
    core = partial(_normalise_core, relu)
    (z,) = stacked_with_vjp(core, NO_KERNEL)(x, statistics.mean, lax.rsqrt(statistics.var + eps), *(affine or ()))
    return z


def _normalise_core(
    relu: bool, packing: Packing, x: Images, mean: Array, inv: Array, *affine: Array
) -> tuple[Array, ...]:
    return (_scaled((precise(x) - mean) * inv, affine, relu).astype(x.dtype),)


@jax.custom_vjp
def global_max_pool(x: Images) -> Features:
    """The maximum over all pixels, features first; the first maximum takes the gradient."""
    return _max_forward(x)[0]


def _max_forward(x: Images) -> tuple[Features, Images]:
    (peak,) = stacked(_max_core, NO_KERNEL)(x)
    return precise(peak).T, x


def _max_backward(x: Images, gradient: Features) -> tuple[Images]:
    return stacked(_max_backward_core, NO_KERNEL)(x, gradient.T)


global_max_pool.defvjp(_max_forward, _max_backward)


def _max_core(packing: Packing, x: Images) -> tuple[Array, ...]:
    return (x.max((1, 2)),)


def _max_backward_core(packing: Packing, x: Images, gradient: Array) -> tuple[Array, ...]:
    batch, height, width, channels = x.shape
    first = x.reshape(batch, -1, channels).argmax(1)[:, None, None]
    place = jnp.arange(height * width).reshape(height, width, 1)
    return (jnp.where(first == place, gradient[:, None, None], 0).astype(x.dtype),)


def global_average_pool(x: Images) -> Features:
    """The mean over all pixels, features first."""
    return precise(x).mean((1, 2)).T
