"""Fused convolution blocks that stay fast when many networks train side by side.

A stack of kernels under ``vmap`` would make `jax.lax.conv` a grouped convolution, and inside a loop XLA's CPU
backend computes its gradient 40 - 80 times slower than outside. The blocks here are patches times kernel instead: one
(batched) matrix product, whatever transformation surrounds it.

Activations are laid out as ``(groups, channels, height, width, lanes)``: the batch is split into ``groups x lanes``
with the lanes innermost, so that elementwise work, pooling and reductions run along contiguous lanes, and one group's
patches fit the cache.

Each block is one `jax.custom_vjp` over convolution, batch normalisation without affine part, ReLU and optional 2x2
max-pooling. As normalisation (a positive factor) and ReLU are increasing, the maximum is taken first and the rest runs
on a quarter of the data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activations = Float[Array, "groups channels height width lanes"]
Kernel = Float[Array, "3 3 channels_in channels_out"]


class BatchMoments(NamedTuple):
    """Moments of one mini-batch before normalisation, for the running statistics."""

    mean: Float[Array, "channels"]  # batch mean
    var: Float[Array, "channels"]  # biased batch variance


class InputPatches(NamedTuple):
    """3x3 patches of a mini-batch of images with their moments, computed once and shared by all networks that see the
    batch.
    """

    columns: Float[Array, "groups patch height width lanes"]  # patch = 9 * channels, ordered (row, column, channel)
    mean: Float[Array, "patch"]
    covariance: Float[Array, "patch patch"]


def to_activations(images: Float[Array, "batch height width channels"], group_size: int | None = None) -> Activations:
    """Lay images out as ``(groups, channels, height, width, lanes)``.

    Args:
        images: ``(batch, height, width, channels)``.
        group_size: lanes of one group; ``None`` picks the measured default: one group for small images, and groups of
            8 from 16x16 pixels on, so that a group's patches fit the cache. A batch that it does not divide is one
            group.

    Returns:
        The same numbers in the layout of the blocks.
    """
    batch, height, width, channels = images.shape
    if group_size is None:
        group_size = 8 if height * width >= 256 else batch
    lanes = group_size if batch % group_size == 0 else batch
    return images.reshape(batch // lanes, lanes, height, width, channels).transpose(0, 4, 2, 3, 1)


def materialise(function: Callable[..., Any], *args: Any) -> Any:
    """Evaluate ``function(*args)`` into memory before its consumers run.

    XLA's CPU backend otherwise fuses cheap producers into each consumer and computes them again and again; it drops
    `lax.optimization_barrier` before fusing, but it does not fuse across a conditional. Measured: 1.3 - 1.5 times
    faster steps at 8x8. Elsewhere, and under ``vmap``, where a conditional would become a select, this is a plain call.
    """
    if jax.default_backend() != "cpu":
        return function(*args)

    @jax.custom_batching.custom_vmap
    def barrier(*args: Any) -> Any:
        probe = jnp.ravel(jax.tree.leaves(args)[0])[0]
        # True for every number and for NaN, except one that no training meets; the compiler cannot know.
        always = jnp.logical_not(probe == jnp.asarray(-1.17549435e-38, probe.dtype))
        shapes = jax.eval_shape(function, *args)
        fill = lambda *_: jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)  # noqa: E731
        return lax.cond(always, function, fill, *args)

    @barrier.def_vmap
    def _(axis_size: int, in_batched: list[Any], *args: Any) -> Any:
        del axis_size
        axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        out = jax.vmap(function, in_axes=tuple(axes))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return barrier(*args)


def im2col(x: Float[Array, "channels height width lanes"]) -> Float[Array, "patch pixels"]:
    """All 3x3 patches with zero padding 1: shifts along the width, then along the height (6 copies, not 9)."""
    channels, height, width, lanes = x.shape
    edge = jnp.zeros((channels, height, 1, lanes), x.dtype)
    rows = jnp.stack([jnp.concatenate([edge, x[:, :, :-1]], 2), x, jnp.concatenate([x[:, :, 1:], edge], 2)], 0)
    edge = jnp.zeros((3, channels, 1, width, lanes), x.dtype)
    both = jnp.stack([jnp.concatenate([edge, rows[:, :, :-1]], 2), rows, jnp.concatenate([rows[:, :, 1:], edge], 2)], 0)
    return both.reshape(9 * channels, height * width * lanes)


def col2im(
    columns: Float[Array, "patch pixels"], shape: tuple[int, int, int, int]
) -> Float[Array, "channels height width lanes"]:
    """The transpose of `im2col`: add each patch entry back to its pixel."""
    channels, height, width, lanes = shape
    taps = columns.reshape(3, 3, channels, height, width, lanes)
    zero = jnp.zeros((), columns.dtype)
    pad = lambda tap, i, j: lax.pad(tap, zero, ((0, 0, 0), (i - 1, 1 - i, 0), (j - 1, 1 - j, 0), (0, 0, 0)))  # noqa: E731
    return sum((pad(taps[i, j], i, j) for i in range(3) for j in range(3)), start=jnp.zeros(shape, columns.dtype))


def _scan_groups(function: Callable[..., Any], init: Any, xs: Any) -> Any:
    """`lax.scan` over the groups; a single group needs no loop, which would cost its copies."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        carry, out = function(init, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda x: x[None], out)
    return lax.scan(function, init, xs)


def as_matrix(kernel: Kernel) -> Float[Array, "channels_out patch"]:
    """A Flax kernel ``(3, 3, in, out)`` as the left factor of kernel x patches."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def _windows(y: Array) -> tuple[Array, Array, Array, Array]:
    """The four entries of each 2x2 window of ``(channels, height, width, lanes)``, in reading order."""
    channels, height, width, lanes = y.shape
    v = y.reshape(channels, height // 2, 2, width // 2, 2, lanes)
    return v[:, :, 0, :, 0], v[:, :, 0, :, 1], v[:, :, 1, :, 0], v[:, :, 1, :, 1]


def _max_pool(y: Array) -> Array:
    a, b, c, d = _windows(y)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def max_pool(x: Activations) -> Activations:
    """2x2 max-pooling; a tie's gradient is split, which after a ReLU concerns zeros only."""
    return jax.vmap(_max_pool)(x)


def _lane_sums(*terms: Array) -> tuple[Array, ...]:
    """Sum each (channels, height, width, lanes) over all but the channels: first over pixels, where the lanes
    vectorise.
    """
    return tuple(t.reshape(t.shape[0], -1, t.shape[-1]).sum(1).sum(-1) for t in terms)


def _per_channel(v: Array) -> Array:
    return v[:, None, None, None]


def conv_bn_relu(x: Activations, kernel: Kernel, pool: bool, eps: float) -> tuple[Activations, BatchMoments]:
    """3x3 convolution (zero padding 1), batch normalisation with batch statistics, ReLU, and 2x2 max-pooling if
    ``pool``.

    z = maxpool(relu((y - mean(y)) / sqrt(var(y) + eps))), y = kernel * x

    Args:
        x: activations ``(groups, channels_in, height, width, lanes)``; height and width even if ``pool``.
        kernel: ``(3, 3, channels_in, channels_out)``.
        pool: whether a 2x2 max-pool follows.
        eps: added to the variance.

    Returns:
        The activations ``(groups, channels_out, height', width', lanes)`` and the batch moments, which carry no
        gradient.
    """
    return _conv_bn_relu(x, kernel, pool, eps)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_bn_relu(x: Activations, kernel: Kernel, pool: bool, eps: float) -> Any:
    return _conv_bn_relu_forward(x, kernel, pool, eps)[0]


def _conv_bn_relu_forward(x: Activations, kernel: Kernel, pool: bool, eps: float) -> tuple[Any, Any]:
    groups, _, height, width, lanes = x.shape
    w = as_matrix(kernel)
    count = groups * height * width * lanes

    def one_group(_: None, xg: Array) -> tuple[None, tuple[Array, ...]]:
        columns = im2col(xg)
        y = (w @ columns).reshape(-1, height, width, lanes)
        (total,) = _lane_sums(y)
        # Chan et al.: squares about the group's own mean lose no digits, and combine exactly over the groups.
        mean = total / (height * width * lanes)
        (spread,) = _lane_sums((y - _per_channel(mean)) ** 2)
        kept = (columns,) if groups == 1 else ()
        return None, (y, mean, spread, _max_pool(y) if pool else y, *kept)

    _, (y, means, spreads, peak, *columns) = _scan_groups(one_group, None, x)
    mean = means.mean(0)
    var = (spreads.sum(0) + ((means - mean) ** 2).sum(0) * (height * width * lanes)) / count
    inv = lax.rsqrt(var + eps)
    z = jnp.maximum((peak - _per_channel(mean)) * _per_channel(inv), 0)
    return (z, BatchMoments(mean, var)), (x, kernel, y, peak, mean, inv, columns)


def _conv_bn_relu_backward(pool: bool, eps: float, residuals: Any, cotangents: Any) -> tuple[Array, Array]:
    del eps
    x, kernel, y, peak, mean, inv, columns = residuals
    groups, channels, height, width, lanes = x.shape
    w = as_matrix(kernel)
    count = groups * height * width * lanes
    normal = (peak - _per_channel(mean)) * _per_channel(inv)
    g = jnp.where(normal > 0, cotangents[0], 0)
    # Gradients reach only the maxima, so both sums of the normalisation's backward pass run on the pooled tensor.
    mean_g = jax.vmap(lambda t: _lane_sums(t)[0])(g).sum(0) / count
    mean_gn = jax.vmap(lambda t: _lane_sums(t)[0])(g * normal).sum(0) / count

    def gradient_of_y(y: Array, peak: Array, g: Array, inv: Array, mean: Array, mean_g: Array, mean_gn: Array) -> Array:
        offset = _per_channel(inv * (inv * mean_gn * mean - mean_g))
        slope = _per_channel(-inv * inv * mean_gn)
        scaled = g * _per_channel(inv)
        if not pool:
            return scaled + offset + slope * y
        a, b, c, _ = _windows(y)
        # The first maximum of each window takes the gradient, as in PyTorch.
        first = jnp.where(a == peak, 0, jnp.where(b == peak, 1, jnp.where(c == peak, 2, 3)))
        place = jnp.array([[0, 1], [2, 3]])[None, None, :, None, :, None]
        wide = lambda t: t[:, :, None, :, None, :]  # noqa: E731
        routed = jnp.where(wide(first) == place, wide(scaled), 0).reshape(y.shape)
        return routed + offset + slope * y

    def one_group(dw: Array, group: tuple[Array, ...]) -> tuple[Array, Array]:
        xg, yg, peak, g, *kept = group
        patches = kept[0] if kept else im2col(xg)
        dy = materialise(gradient_of_y, yg, peak, g, inv, mean, mean_g, mean_gn).reshape(w.shape[0], -1)
        dw = dw + materialise(lambda p, d: p @ d.T, patches, dy)
        return dw, col2im(w.T @ dy, (channels, height, width, lanes))

    dw, dx = _scan_groups(one_group, jnp.zeros_like(w.T), (x, y, peak, g, *columns))
    return dx, dw.reshape(kernel.shape)


_conv_bn_relu.defvjp(_conv_bn_relu_forward, _conv_bn_relu_backward)


def input_patches(x: Activations) -> InputPatches:
    """Patches of the images and their mean and covariance, from which the first layer's batch statistics follow.

    With patches c: mean(w c) = w mean(c) and var(w c) = w cov(c) w^T, so no pass over the first layer's output is
        needed.
    """
    groups, channels, height, width, lanes = x.shape
    count = groups * height * width * lanes
    _, columns = _scan_groups(lambda carry, xg: (carry, im2col(xg)), None, x)
    ones = jnp.ones(
        (columns.shape[-1],), x.dtype
    )  # sums as matrix products: exact where XLA's float32 reductions were not
    mean = (columns @ ones).sum(0) / count

    def add(total: Array, group: Array) -> tuple[Array, None]:
        centred = group - mean[:, None]
        return total + centred @ centred.T, None

    covariance = _scan_groups(add, jnp.zeros((9 * channels, 9 * channels), x.dtype), columns)[0] / count
    return InputPatches(columns.reshape(groups, -1, height, width, lanes), mean, covariance)


@jax.custom_vjp
def _affine_relu(columns: Array, matrix: Array, bias: Array) -> Any:
    return _affine_relu_forward(columns, matrix, bias)[0]


def _affine_relu_forward(columns: Array, matrix: Array, bias: Array) -> tuple[Array, Any]:
    _, z = _scan_groups(lambda _, c: (None, jnp.maximum(matrix @ c + bias[:, None], 0)), None, columns)
    return z, (columns, z)


def _affine_relu_backward(residuals: Any, gradient: Array) -> tuple[None, Array, Array]:
    columns, z = residuals
    ones = jnp.ones((columns.shape[-1],), columns.dtype)

    def add(total: tuple[Array, Array], group: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        c, zg, gg = group
        masked = jnp.where(zg > 0, gg, 0)
        return (total[0] + c @ masked.T, total[1] + masked @ ones), None

    zero = (jnp.zeros((columns.shape[1], z.shape[1]), z.dtype), jnp.zeros(z.shape[1], z.dtype))
    (d_matrix, d_bias), _ = _scan_groups(add, zero, (columns, z, gradient))
    return None, d_matrix.T, d_bias


_affine_relu.defvjp(_affine_relu_forward, _affine_relu_backward)


def first_conv_bn_relu(patches: InputPatches, kernel: Kernel, eps: float) -> tuple[Activations, BatchMoments]:
    """`conv_bn_relu` without pooling, of images given as shared `input_patches`; images get no gradient."""
    groups, patch, height, width, lanes = patches.columns.shape
    w = as_matrix(kernel)
    mean = w @ patches.mean
    var = jnp.sum((w @ patches.covariance) * w, axis=1)
    scale = lax.rsqrt(var + eps)
    columns = patches.columns.reshape(groups, patch, -1)
    z = _affine_relu(columns, w * scale[:, None], -mean * scale)
    return z.reshape(groups, -1, height, width, lanes), BatchMoments(mean, var)


def conv_bn_relu_inference(
    x: Activations | InputPatches,
    kernel: Kernel,
    mean: Float[Array, "channels_out"],
    var: Float[Array, "channels_out"],
    pool: bool,
    eps: float,
) -> Activations:
    """The block with given statistics instead of those of the batch, as at test time."""
    if isinstance(x, InputPatches):
        columns = x.columns.reshape(*x.columns.shape[:2], -1)
        groups, height, width, lanes = (x.columns.shape[i] for i in (0, 2, 3, 4))
    else:
        groups, _, height, width, lanes = x.shape
        columns = jax.vmap(im2col)(x)
    scale = lax.rsqrt(var + eps)
    z = jnp.maximum((as_matrix(kernel) * scale[:, None]) @ columns - (mean * scale)[:, None], 0)
    z = z.reshape(groups, -1, height, width, lanes)
    return max_pool(z) if pool else z
