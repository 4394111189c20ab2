"""The blocks of `fused` and the operations of `primitives` for accelerators, in the layout of `direct`.

Each is one `jax.custom_vjp` whose passes are operations of many configurations side by side. On a GPU, what XLA would
compute again for each reader stands behind a barrier: then every large map is read and written about as often as it
must be. On a TPU, sums are computed where a convolution makes its numbers, and two barriers are left; see
`direct.Tuning`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from periodic_jax.ops import direct
from periodic_jax.ops.direct import Images, SharedImages, Tuning, materialise, precise
from periodic_jax.ops.layout import Kernel
from periodic_jax.ops.packing import Packing, apart, beside, stacked, stacked_with_vjp
from periodic_jax.ops.primitives import Affine, BatchMoments, with_positive_scale


class Block(NamedTuple):
    """What a block is, besides its arrays: see `conv_bn_relu`."""

    pool: bool
    eps: float
    tuning: Tuning


def conv_bn_relu(
    x: Images | SharedImages,
    kernel: Kernel,
    pool: bool,
    eps: float,
    affine: Affine | None = None,
    tuning: Tuning = direct.GPU,
) -> tuple[Images, BatchMoments]:
    """As `fused.conv_bn_relu`, of activations ``(batch, height, width, channels)``.

    Args:
        x: activations, in the dtype in which they are stored; or `SharedImages`, which get no gradient.
        kernel: ``(3, 3, channels_in, channels_out)``.
        pool: whether a 2x2 max-pool follows.
        eps: added to the variance.
        affine: scale and bias of the normalisation, or ``None`` for 1 and 0.
        tuning: for the platform.

    Returns:
        The activations, in the dtype of x, and the batch moments, which carry no gradient.
    """
    block = Block(pool, eps, tuning)
    if affine is None:
        return _conv_bn_relu(x, kernel, None, block)
    return with_positive_scale(lambda w, positive: _conv_bn_relu(x, w, positive, block), kernel, affine)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv_bn_relu(x: Any, kernel: Kernel, affine: Affine | None, block: Block) -> Any:
    return _block_forward(x, kernel, affine, block)[0]


def _block_forward(x: Any, kernel: Kernel, affine: Affine | None, block: Block) -> tuple[Any, Any]:
    forward = stacked(partial(_block_forward_core, block), limit=block.tuning.limit_of(x))
    y, z, place, peak, mean, var, inv = forward(x, kernel, *(affine or ()))
    return (z, BatchMoments(mean, var)), (x, kernel, affine, y, z, place, peak, mean, inv)


def _block_backward(block: Block, residuals: Any, cotangents: Any) -> Any:
    x, kernel, affine, *rest = residuals
    backward = stacked(partial(_block_backward_core, block), limit=block.tuning.limit_of(x))
    scale = [] if affine is None else [affine.scale]
    dw, sum_g, sum_gn, *dx = backward(x, kernel, *rest, cotangents[0], *scale)
    gradient = None if affine is None else Affine(sum_gn, sum_g)
    return dx[0] if dx else None, dw.astype(kernel.dtype), gradient


_conv_bn_relu.defvjp(_block_forward, _block_backward)


def _block_forward_core(
    block: Block, packing: Packing, x: Images | SharedImages, kernels: Array, *affine: Array
) -> tuple[Array, ...]:
    pool, eps, tuning = block
    y = direct.convolve(packing, x, kernels, 1)
    count = y.size // y.shape[-1]
    about = direct.pilot_of_convolution(packing, x, kernels) if tuning.fused else direct.pilot(y)
    # Not fused, on the pooled shape: so the sums, the maxima and their places are one pass.
    parts: tuple[Array, ...] = _windows(y) if pool and not tuning.fused else (y,)
    away = [precise(part) - about for part in parts]
    s1, s2 = tuning.two_sums(sum(away[1:], away[0]), sum((d * d for d in away[1:]), away[0] * away[0]))
    peak, place = y, None
    if pool:
        a, b, c, d = _windows(y)
        peak = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
        place = jnp.where(a == peak, 0, jnp.where(b == peak, 1, jnp.where(c == peak, 2, 3))).astype(jnp.int8)
        s1, s2, peak, place = tuning.materialise(s1, s2, peak, place)
    mean, var = direct.moments_about(about, s1, s2, count)
    mean, var, inv = tuning.materialise(mean, var, lax.rsqrt(var + eps))
    normal = (precise(peak) - mean) * inv
    scaled = normal * affine[0] + affine[1] if affine else normal
    # Without a barrier, XLA for TPUs computes the scaled and shifted whole map again for each reader.
    barrier = materialise if affine and not pool else tuning.materialise
    (z,) = barrier(jnp.maximum(scaled, 0).astype(y.dtype))
    # Without affine the normalised maxima are z itself, where it is positive.
    return y, z, mean if place is None else place, peak if pool and affine else mean, mean, var, inv


def _block_backward_core(
    block: Block,
    packing: Packing,
    x: Images | SharedImages,
    kernels: Array,
    y: Images,
    z: Images,
    place: Array,
    peak: Array,
    mean: Array,
    inv: Array,
    dz: Images,
    *scale: Array,
) -> tuple[Array, ...]:
    pool, _, tuning = block
    count = y.size // y.shape[-1]
    g = jnp.where(z > 0, precise(dz), 0)
    normal = precise(z) if not scale else (precise(peak if pool else y) - mean) * inv
    sum_g, sum_gn = tuning.two_sums(g, g * normal)
    sum_g, sum_gn, g = tuning.materialise(sum_g, sum_gn, g.astype(y.dtype))
    mean_g, mean_gn = sum_g / count, sum_gn / count
    gain = inv * scale[0] if scale else inv
    offset, slope = tuning.materialise(gain * (inv * mean_gn * mean - mean_g), -gain * inv * mean_gn)
    through, map_of_y = precise(g) * gain, y
    if pool:
        batch, height, width, channels = y.shape
        map_of_y = y.reshape(batch, height // 2, 2, width // 2, 2, channels)
        at = jnp.array([[0, 1], [2, 3]], jnp.int8)[None, None, :, None, :, None]
        through = jnp.where(place[:, :, None, :, None, :] == at, through[:, :, None, :, None, :], 0)
    # Behind a barrier in six axes: else XLA moves the reshape up, and on TPU writes every broadcast out.
    barrier = materialise if pool else tuning.materialise
    (dy,) = barrier((through + (offset + slope * precise(map_of_y))).astype(y.dtype))
    dy = dy.reshape(y.shape)
    of_kernels, *of_input = direct.gradients(packing, x, kernels, dy, 1)
    return of_kernels, sum_g, sum_gn, *of_input


def _windows(y: Images) -> tuple[Array, Array, Array, Array]:
    """The four entries of each 2x2 window, in reading order."""
    batch, height, width, channels = y.shape
    v = y.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return v[:, :, 0, :, 0], v[:, :, 0, :, 1], v[:, :, 1, :, 0], v[:, :, 1, :, 1]


def first_conv_bn_relu(
    shared: SharedImages, kernel: Kernel, eps: float, affine: Affine | None = None
) -> tuple[Images, BatchMoments]:
    """`conv_bn_relu` without pooling, of images that all configurations share; images get no gradient.

    The statistics follow from the covariance of the patches, so that convolution, normalisation and ReLU are one call.
    """
    return _first_block(shared, kernel, affine, eps)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _first_block(shared: SharedImages, kernel: Kernel, affine: Affine | None, eps: float) -> Any:
    return _first_forward(shared, kernel, affine, eps)[0]


def _first_forward(shared: SharedImages, kernel: Kernel, affine: Affine | None, eps: float) -> tuple[Any, Any]:
    z, mean, var, inv = stacked(partial(_first_forward_core, eps))(shared, kernel, *(affine or ()))
    return (z, BatchMoments(mean, var)), (shared, kernel, affine, z, inv)


def _first_backward(_eps: float, residuals: Any, cotangents: Any) -> Any:
    shared, kernel, affine, z, inv = residuals
    scale = [] if affine is None else [affine.scale]
    dw, sum_g, sum_gn = stacked(_first_backward_core)(shared, kernel, z, inv, cotangents[0], *scale)
    return None, dw, None if affine is None else Affine(sum_gn, sum_g)


_first_block.defvjp(_first_forward, _first_backward)


def _first_forward_core(
    eps: float, packing: Packing, shared: SharedImages, kernels: Array, *affine: Array
) -> tuple[Array, ...]:
    images, patch_mean, covariance, basis = shared
    kernel = beside(kernels)
    w = precise(kernel.reshape(-1, kernel.shape[-1]))
    turned = direct.matmul(basis, w)
    mean = direct.matmul(patch_mean, w)
    var = jnp.maximum((turned * direct.matmul(covariance, turned)).sum(0), 0)
    mean, var, inv = materialise(mean, var, lax.rsqrt(var + eps))
    gain = inv * affine[0] if affine else inv
    shift = (affine[1] if affine else 0) - mean * gain
    scaled = (precise(kernel) * gain).astype(images.dtype)
    product = direct.convolve(packing, shared, scaled[None], 1)
    # Behind a barrier: `z > 0` of the backward pass would else read the convolution before the ReLU.
    (z,) = materialise(jnp.maximum(product + shift.astype(images.dtype), 0))
    return z, mean, var, inv


def _first_backward_core(
    packing: Packing, shared: SharedImages, kernels: Array, z: Images, inv: Array, dz: Images, *scale: Array
) -> tuple[Array, ...]:
    _, patch_mean, covariance, basis = shared
    g = jnp.where(z > 0, dz, 0)
    sum_g, g = materialise(precise(g).sum((0, 1, 2)), g)
    along = precise(beside(direct.kernel_gradient(packing, shared, g, kernels.shape, 1))).reshape(-1, g.shape[-1])
    along = along - patch_mean[:, None] * sum_g  # of centred patches
    w = precise(beside(kernels).reshape(along.shape))
    sum_gn = (w * along).sum(0) * inv
    gain = inv * scale[0] if scale else inv
    dw = gain * (along - sum_gn * inv * direct.matmul(basis.T, direct.matmul(covariance, direct.matmul(basis, w))))
    return apart(dw.reshape(3, 3, -1, dw.shape[-1]), packing.configs).astype(kernels.dtype), sum_g, sum_gn


def conv_bn_relu_inference(
    x: Images | SharedImages,
    kernel: Kernel,
    statistics: BatchMoments,
    pool: bool,
    eps: float,
    affine: Affine | None = None,
    tuning: Tuning = direct.GPU,
) -> Images:
    """The block with given statistics instead of those of the batch, as at test time."""
    gain = lax.rsqrt(statistics.var + eps)
    gain = gain if affine is None else gain * affine.scale
    shift = (0 if affine is None else affine.bias) - statistics.mean * gain
    (z,) = stacked_with_vjp(partial(_inference_core, pool), limit=tuning.limit_of(x))(x, kernel * gain, shift)
    return z


def _inference_core(pool: bool, packing: Packing, x: Any, kernels: Array, shift: Array) -> tuple[Array, ...]:
    product = direct.convolve(packing, x, kernels, 1)
    z = jnp.maximum(product + shift.astype(product.dtype), 0)
    if pool:
        a, b, c, d = _windows(z)
        z = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    return (z,)
