"""Fused convolution blocks that stay fast when many networks train side by side.

Each block is one `jax.custom_vjp` over convolution, batch normalisation, ReLU and optional 2x2 max-pooling, in the
layout of `layout`. As normalisation by a positive factor and ReLU are increasing, the maximum is taken first and the
rest runs on a quarter of the data; a negative factor changes places with the sign of the kernel.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from periodic_jax.ops.im2col import as_matrix, form_of, im2col
from periodic_jax.ops.layout import Activations, Kernel, channel_sums, lane_sums, materialise, per_channel, scan_groups
from periodic_jax.ops.patches import InputPatches
from periodic_jax.ops.primitives import (
    Affine,
    BatchMoments,
    max_pool,
    normalise,
    route_to_max,
    window_max,
    with_positive_scale,
)


def conv_bn_relu(
    x: Activations, kernel: Kernel, pool: bool, eps: float, affine: Affine | None = None
) -> tuple[Activations, BatchMoments]:
    """3x3 convolution (zero padding 1), batch normalisation with batch statistics, ReLU, and 2x2 max-pooling if
    ``pool``.

    z = maxpool(relu(scale · (y - mean(y)) / sqrt(var(y) + eps) + bias)), y = kernel * x

    Args:
        x: activations ``(groups, channels_in, height, width, lanes)``; height and width even if ``pool``.
        kernel: ``(3, 3, channels_in, channels_out)``.
        pool: whether a 2x2 max-pool follows.
        eps: added to the variance.
        affine: scale and bias of the normalisation, or ``None`` for 1 and 0.

    Returns:
        The activations ``(groups, channels_out, height', width', lanes)`` and the batch moments of y, which carry no
        gradient.
    """
    if affine is None:
        return _conv_bn_relu(x, kernel, None, pool, eps)
    return with_positive_scale(lambda w, positive: _conv_bn_relu(x, w, positive, pool, eps), kernel, affine)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _conv_bn_relu(x: Activations, kernel: Kernel, affine: Affine | None, pool: bool, eps: float) -> Any:
    return _conv_bn_relu_forward(x, kernel, affine, pool, eps)[0]


def _conv_bn_relu_forward(x: Array, kernel: Array, affine: Affine | None, pool: bool, eps: float) -> tuple[Any, Any]:
    groups, _, height, width, lanes = x.shape
    form = form_of(x.shape[1:])
    w = form.matrix(kernel)
    count = groups * height * width * lanes

    def one_group(_: None, xg: Array) -> tuple[None, tuple[Array, ...]]:
        columns = form.columns(xg)
        y = form.output(w @ columns)
        # Chan et al.: squares about the group's own mean lose no digits, and combine exactly over the groups.
        mean = lane_sums(y) / (height * width * lanes)
        spread = lane_sums((y - per_channel(mean)) ** 2)
        kept = (columns,) if groups == 1 else ()
        return None, (y, mean, spread, materialise(window_max, y) if pool else y, *kept)

    _, (y, means, spreads, peak, *columns) = scan_groups(one_group, None, x)
    mean = means.mean(0)
    var = (spreads.sum(0) + ((means - mean) ** 2).sum(0) * (height * width * lanes)) / count
    inv = lax.rsqrt(var + eps)
    z = jnp.maximum(normalise(peak, mean, inv, affine), 0)
    return (z, BatchMoments(mean, var)), (x, w, affine, y, peak, mean, inv, columns)


def _conv_bn_relu_backward(
    pool: bool, _eps: float, residuals: Any, cotangents: Any
) -> tuple[Array, Array, Affine | None]:
    x, w, affine, y, peak, mean, inv, columns = residuals
    groups, _, height, width, lanes = x.shape
    form = form_of(x.shape[1:])
    count = groups * height * width * lanes
    normal = normalise(peak, mean, inv, None)

    def through_relu(peak: Array, cotangent: Array, mean: Array, inv: Array, *affine: Array) -> Array:
        return jnp.where(normalise(peak, mean, inv, Affine(*affine) if affine else None) > 0, cotangent, 0)

    # Three readers follow: each would compute the end of the next layer's backward pass again.
    g = materialise(through_relu, peak, cotangents[0], mean, inv, *(affine or ()))
    # Gradients reach only the maxima, so both sums of the normalisation's backward pass run on the pooled tensor.
    sum_g, sum_gn = channel_sums(g), channel_sums(g * normal)
    mean_g, mean_gn = sum_g / count, sum_gn / count
    gain = inv if affine is None else inv * affine.scale

    def gradient_of_y(y: Array, peak: Array, g: Array, *numbers: Array) -> Array:
        gain, inv, mean, mean_g, mean_gn = numbers
        offset = per_channel(gain * (inv * mean_gn * mean - mean_g))
        slope = per_channel(-gain * inv * mean_gn)
        scaled = g * per_channel(gain)
        return (route_to_max(y, peak, scaled) if pool else scaled) + offset + slope * y

    def one_group(dw: Array, group: tuple[Array, ...]) -> tuple[Array, Array]:
        xg, yg, peak, g, *kept = group
        columns = kept[0] if kept else form.columns(xg)
        dy = form.rows(materialise(gradient_of_y, yg, peak, g, gain, inv, mean, mean_g, mean_gn))
        dw = dw + columns @ dy.mT
        return dw, form.image(w.mT @ dy)

    dw, dx = scan_groups(one_group, jnp.zeros_like(w.mT), (x, y, peak, g, *columns))
    return dx, form.kernel(dw), None if affine is None else Affine(sum_gn, sum_g)


_conv_bn_relu.defvjp(_conv_bn_relu_forward, _conv_bn_relu_backward)


def first_conv_bn_relu(
    patches: InputPatches, kernel: Kernel, eps: float, affine: Affine | None = None
) -> tuple[Activations, BatchMoments]:
    """`conv_bn_relu` without pooling, of images given as shared `InputPatches`; images get no gradient."""
    return _first_block(patches, kernel, affine, eps)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _first_block(patches: InputPatches, kernel: Kernel, affine: Affine | None, eps: float) -> Any:
    return _first_block_forward(patches, kernel, affine, eps)[0]


def _first_block_forward(patches: InputPatches, kernel: Kernel, affine: Affine | None, eps: float) -> tuple[Any, Any]:
    groups, patch, height, width, lanes = patches.columns.shape
    w = as_matrix(kernel)

    def one_group(spread: Array, columns: Array) -> tuple[Array, Array]:
        y = (w @ columns.reshape(patch, -1)).reshape(-1, height, width, lanes)  # of mean zero, as the patches
        return spread + lane_sums(y**2), y

    # w cov(c) w^T would do for the variance, but smooth images leave it few digits in float32.
    spread, y = scan_groups(one_group, jnp.zeros(w.shape[0], w.dtype), patches.columns)
    var = spread / (groups * height * width * lanes)
    inv = lax.rsqrt(var + eps)
    z = jnp.maximum(normalise(y, jnp.zeros_like(var), inv, affine), 0)
    return (z, BatchMoments(w @ patches.mean, var)), (patches, kernel, affine, z, inv)


def _first_block_backward(_eps: float, residuals: Any, cotangents: Any) -> tuple[None, Array, Affine | None]:
    patches, kernel, affine, z, inv = residuals
    patch = patches.columns.shape[1]
    w = as_matrix(kernel)
    g = jnp.where(z > 0, cotangents[0], 0)

    def add(total: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        columns, gg = group
        return total + columns.reshape(patch, -1) @ gg.reshape(gg.shape[0], -1).T, None

    # Σ g c and with it Σ g y = w Σ g c; the variance's own derivative is 2 w cov(c).
    along, _ = scan_groups(add, jnp.zeros_like(w.T), (patches.columns, g))
    sum_gn = (w * along.T).sum(1) * inv
    gain = inv if affine is None else inv * affine.scale
    dw = gain[:, None] * (along.T - (sum_gn * inv)[:, None] * (w @ patches.covariance))
    d_affine = None if affine is None else Affine(sum_gn, channel_sums(g))
    return None, dw.T.reshape(kernel.shape), d_affine


_first_block.defvjp(_first_block_forward, _first_block_backward)


def conv_bn_relu_inference(
    x: Activations | InputPatches,
    kernel: Kernel,
    statistics: BatchMoments,
    pool: bool,
    eps: float,
    affine: Affine | None = None,
) -> Activations:
    """The block with given statistics instead of those of the batch, as at test time.

    Normalisation is one affine map then: scale · (y - mean) / sqrt(var + eps) + bias = gain · y + shift.
    """
    mean, var = statistics
    if isinstance(x, InputPatches):
        columns = x.columns.reshape(*x.columns.shape[:2], -1)
        mean = mean - as_matrix(kernel) @ x.mean  # patches are centred
    else:
        columns = jax.vmap(im2col)(x)
    groups, _, height, width, lanes = (x.columns if isinstance(x, InputPatches) else x).shape
    gain = lax.rsqrt(var + eps)
    if affine is None:
        shift = -mean * gain
    else:
        gain = gain * affine.scale
        shift = affine.bias - mean * gain
    z = jnp.maximum((as_matrix(kernel) * gain[:, None]) @ columns + shift[:, None], 0)
    z = z.reshape(groups, -1, height, width, lanes)
    return max_pool(z) if pool else z
