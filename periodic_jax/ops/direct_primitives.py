"""The operations of `primitives` for accelerators, in the layout of `direct`; see `direct_blocks`."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops import direct
from periodic_jax.ops.direct import Images, SharedImages, materialise, precise, two_sums
from periodic_jax.ops.layout import Kernel
from periodic_jax.ops.packing import Packing, stacked, stacked_with_vjp
from periodic_jax.ops.primitives import Affine, BatchMoments

Features = Float[Array, "channels batch"]
NO_KERNEL: frozenset[int] = frozenset()


def conv(x: Images | SharedImages, kernel: Kernel, stride: int) -> Images:
    """As `primitives.conv`; of `SharedImages`, which get no gradient, too."""
    return _conv(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Any, kernel: Kernel, stride: int) -> Images:
    return _conv_forward(x, kernel, stride)[0]


def _conv_forward(x: Any, kernel: Kernel, stride: int) -> tuple[Images, Any]:
    (y,) = stacked(partial(_conv_core, stride), most=direct.most_channels(x))(x, kernel)
    return y, (x, kernel)


def _conv_backward(stride: int, residuals: Any, dy: Images) -> Any:
    x, kernel = residuals
    dw, *dx = stacked(partial(_conv_backward_core, stride), most=direct.most_channels(x))(x, kernel, dy)
    return dx[0] if dx else None, dw.astype(kernel.dtype)


_conv.defvjp(_conv_forward, _conv_backward)


def _conv_core(stride: int, packing: Packing, x: Images | SharedImages, kernels: Array) -> tuple[Array, ...]:
    return (direct.convolve(packing, x, kernels, stride),)


def _conv_backward_core(
    stride: int, packing: Packing, x: Images | SharedImages, kernels: Array, dy: Images
) -> tuple[Array, ...]:
    return direct.gradients(packing, x, kernels, dy, stride)


def batch_norm(x: Images, affine: Affine | None, eps: float, relu: bool) -> tuple[Images, BatchMoments]:
    """As `primitives.batch_norm`, followed by a ReLU if ``relu``."""
    return _batch_norm(x, affine, eps, relu)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _batch_norm(x: Images, affine: Affine | None, eps: float, relu: bool) -> Any:
    return _norm_forward(x, affine, eps, relu)[0]


def _norm_forward(x: Images, affine: Affine | None, eps: float, relu: bool) -> tuple[Any, Any]:
    z, mean, var, inv = stacked(partial(_norm_forward_core, eps, relu), NO_KERNEL, None)(x, *(affine or ()))
    return (z, BatchMoments(mean, var)), (x, affine, mean, inv)


def _norm_backward(_eps: float, relu: bool, residuals: Any, cotangents: Any) -> Any:
    x, affine, mean, inv = residuals
    backward = stacked(partial(_norm_backward_core, relu), NO_KERNEL, None)
    dx, sum_g, sum_gn = backward(x, mean, inv, cotangents[0], *(affine or ()))
    return dx, None if affine is None else Affine(sum_gn, sum_g)


_batch_norm.defvjp(_norm_forward, _norm_backward)


def _norm_forward_core(eps: float, relu: bool, packing: Packing, x: Images, *affine: Array) -> tuple[Array, ...]:
    about = direct.pilot(x)
    away = precise(x) - about
    mean, var = direct.moments_about(about, *two_sums(away, away * away), x.size // x.shape[-1])
    mean, var, inv = materialise(mean, var, lax.rsqrt(var + eps))
    return _scaled((precise(x) - mean) * inv, affine, relu).astype(x.dtype), mean, var, inv


def _norm_backward_core(
    relu: bool, packing: Packing, x: Images, mean: Array, inv: Array, dz: Images, *affine: Array
) -> tuple[Array, ...]:
    count = x.size // x.shape[-1]
    normal = (precise(x) - mean) * inv
    g = jnp.where(_scaled(normal, affine, False) > 0, precise(dz), 0) if relu else precise(dz)
    sum_g, sum_gn = materialise(*two_sums(g, g * normal))
    gain = inv * affine[0] if affine else inv
    return (gain * (g - sum_g / count - normal * (sum_gn / count))).astype(x.dtype), sum_g, sum_gn


def _scaled(normal: Array, affine: tuple[Array, ...], relu: bool) -> Array:
    out = normal * affine[0] + affine[1] if affine else normal
    return jnp.maximum(out, 0) if relu else out


def normalise(x: Images, statistics: BatchMoments, eps: float, affine: Affine | None, relu: bool) -> Images:
    """`batch_norm` with given statistics, as at test time."""
    core = partial(_normalise_core, relu)
    (z,) = stacked_with_vjp(core, NO_KERNEL, None)(x, statistics.mean, lax.rsqrt(statistics.var + eps), *(affine or ()))
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
    (peak,) = stacked(_max_core, NO_KERNEL, None)(x)
    return precise(peak).T, x


def _max_backward(x: Images, gradient: Features) -> tuple[Images]:
    return stacked(_max_backward_core, NO_KERNEL, None)(x, gradient.T)


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
