"""The layout of activations, and convolution as patches times kernel.

A stack of kernels under ``vmap`` would make `jax.lax.conv` a grouped convolution, and inside a loop XLA's CPU
backend computes its gradient 40 - 80 times slower than outside. Everything here is patches times kernel instead: one
(batched) matrix product, whatever transformation surrounds it.

Activations are laid out as ``(groups, channels, height, width, lanes)``: the batch is split into ``groups x lanes``
with the lanes innermost, so that elementwise work, pooling and reductions run along contiguous lanes, and one group's
patches fit the cache.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activations = Float[Array, "groups channels height width lanes"]
Kernel = Float[Array, "size size channels_in channels_out"]


class InputPatches(NamedTuple):
    """3x3 patches of a mini-batch of images with their moments, computed once and shared by all networks that see the
    batch.
    """

    # The patches less their mean; patch = 9 * channels, ordered (row, column, channel).
    columns: Float[Array, "groups patch height width lanes"]
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


def input_patches(x: Activations) -> InputPatches:
    """Patches of the images, centred, with their mean and covariance, from which the first layer's statistics follow.

    With patches c: mean(w c) = w mean(c) and var(w c) = w cov(c) w^T, so no pass over the first layer's output is
    needed; and w (c - mean(c)) is normalised without subtracting nearly equal numbers again.
    """
    groups, channels, height, width, lanes = x.shape
    count = groups * height * width * lanes
    mean = _patch_sums(jax.vmap(lambda xg: xg.sum(-1))(x).sum(0)) / count

    def add(total: Array, xg: Array) -> tuple[Array, Array]:
        c = im2col(xg) - mean[:, None]
        return total + c @ c.T, c

    outer, columns = scan_groups(add, jnp.zeros((9 * channels,) * 2, x.dtype), x)
    return InputPatches(columns.reshape(groups, -1, height, width, lanes), mean, outer / count)


def _patch_sums(x: Float[Array, "channels height width"]) -> Float[Array, "patch"]:
    """Sum of each entry of all 3x3 patches: an entry sees all pixels but the edge from which it is moved away."""

    def seen(length: int) -> Array:
        return jnp.ones((3, length), x.dtype).at[0, -1].set(0).at[2, 0].set(0)

    sums = jnp.einsum("chw,ih,jw->ijc", x, seen(x.shape[1]), seen(x.shape[2]), precision=lax.Precision.HIGHEST)
    return sums.reshape(-1)


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


def _shifts(x: Array, axis: int, stride: int) -> Array:
    """``x`` at the places s·i - 1, s·i and s·i + 1 of an axis, zero outside, stacked first."""
    length = x.shape[axis]
    places = -(-length // stride)
    edge = jnp.zeros((*x.shape[:axis], 1, *x.shape[axis + 1 :]), x.dtype)
    take = lambda start, stop: lax.slice_in_dim(x, start, max(start, stop), stride, axis)  # noqa: E731
    before = jnp.concatenate([edge, take(stride - 1, length - 1)], axis)
    after = take(1, length)
    if after.shape[axis] < places:
        after = jnp.concatenate([after, edge], axis)
    return jnp.stack([before, take(0, length), after], 0)


def im2col(
    x: Float[Array, "channels height width lanes"], size: int = 3, stride: int = 1
) -> Float[Array, "patch pixels"]:
    """All patches of a 3x3 convolution with zero padding 1, or of a 1x1 convolution without: shifts along the width,
    then along the height (6 copies, not 9).
    """
    if size == 1:
        kept = x[:, ::stride, ::stride]
        return kept.reshape(kept.shape[0], -1)
    both = _shifts(_shifts(x, 2, stride), 2, stride)
    return both.reshape(9 * x.shape[0], -1)


def col2im(
    columns: Float[Array, "patch pixels"], shape: tuple[int, int, int, int], size: int = 3, stride: int = 1
) -> Float[Array, "channels height width lanes"]:
    """The transpose of `im2col`: add each patch entry back to its pixel."""
    channels, height, width, lanes = shape
    rows, cols = (-(-length // stride) for length in (height, width))
    taps = columns.reshape(size, size, channels, rows, cols, lanes)
    zero = jnp.zeros((), columns.dtype)

    def spread(tap: Array, i: int, j: int) -> Array:
        row, col = i - size // 2, j - size // 2
        rest = (height - row - stride * (rows - 1) - 1, width - col - stride * (cols - 1) - 1)
        return lax.pad(tap, zero, ((0, 0, 0), (row, rest[0], stride - 1), (col, rest[1], stride - 1), (0, 0, 0)))

    return sum((spread(taps[i, j], i, j) for i in range(size) for j in range(size)), start=jnp.zeros(shape, zero.dtype))


def as_matrix(kernel: Kernel) -> Float[Array, "channels_out patch"]:
    """A Flax kernel ``(size, size, in, out)`` as the left factor of kernel x patches."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def scan_groups(function: Callable[..., Any], init: Any, xs: Any) -> Any:
    """`lax.scan` over the groups; a single group needs no loop, which would cost its copies."""
    if jax.tree.leaves(xs)[0].shape[0] == 1:
        carry, out = function(init, jax.tree.map(lambda x: x[0], xs))
        return carry, jax.tree.map(lambda x: x[None], out)
    return lax.scan(function, init, xs)


def lane_sums(x: Float[Array, "channels height width lanes"]) -> Float[Array, "channels"]:
    """Sum over all but the channels: over rows, then over the rest as a product with ones.

    Two sums after each other XLA would merge into one, a running sum of each channel's numbers one by one: on CPU that
    is 2 - 3 times slower, and of 50,000 squares it is wrong by 4e-6, against 2e-7.
    """
    rows = x.sum(1).reshape(x.shape[0], -1)
    return jnp.matmul(rows, jnp.ones(rows.shape[1], rows.dtype), precision=lax.Precision.HIGHEST)


def channel_sums(x: Activations) -> Float[Array, "channels"]:
    """Sum over all but the channels, group by group."""
    return jax.vmap(lane_sums)(x).sum(0)


def per_channel(v: Float[Array, "channels"]) -> Float[Array, "channels 1 1 1"]:
    """Numbers of each channel, to broadcast against ``(..., channels, height, width, lanes)``."""
    return v[:, None, None, None]
