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
        group_size: wanted lanes of one group, of which the divisor of the batch nearest by ratio is taken; ``None``
            picks the measured default: on CPU groups of 4 from 32x32 pixels on and of 8 from 16x16 on, so that a
            group's patches fit the cache, and one group of all otherwise.

    Returns:
        The same numbers in the layout of the blocks.
    """
    batch, height, width, channels = images.shape
    if group_size is None:
        group_size = _cached_lanes(height * width, batch) if jax.default_backend() == "cpu" else batch
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    lanes = min(reversed(divisors), key=lambda d: max(d / group_size, group_size / d))
    return images.reshape(batch // lanes, lanes, height, width, channels).transpose(0, 4, 2, 3, 1)


def _cached_lanes(pixels: int, batch: int) -> int:
    for least, lanes in ((1024, 4), (256, 8)):
        if pixels >= least:
            return lanes
    return batch


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

        def fill(*_: Any) -> Any:
            return jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)

        return lax.cond(always, function, fill, *args)

    @barrier.def_vmap
    def _(axis_size: int, in_batched: list[Any], *args: Any) -> Any:
        del axis_size
        if not any(jax.tree.leaves(in_batched)):  # of the derivative along many directions at one point
            out = function(*args)
            return out, jax.tree.map(lambda _: False, out)
        axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        out = jax.vmap(function, in_axes=tuple(axes))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return barrier(*args)


def im2col(
    x: Float[Array, "channels height width lanes"], size: int = 3, stride: int = 1
) -> Float[Array, "patch pixels"]:
    """All patches of a 3x3 convolution with zero padding 1, or of a 1x1 convolution without.

    First each row's left neighbours, itself and its right neighbours, between two rows of zeros; then three shifts
    along the height, which are copies without a condition.
    """
    if size == 1:
        kept = x[:, ::stride, ::stride]
        return kept.reshape(kept.shape[0], -1)
    channels, height, width, lanes = x.shape
    rows, cols = (-(-length // stride) for length in (height, width))

    def beside(x: Array) -> Array:
        flat, unit = _flat_rows(x, stride)
        shifted = [
            _pad(flat, (1, 1, 0), ((1 - j) * unit, (stride * (cols - 1) - width + j) * unit, 0)) for j in range(3)
        ]
        taken = [lax.slice_in_dim(s, 0, None, stride, 2) for s in shifted]
        return jnp.stack(taken).reshape(3 * channels, height + 2, cols * lanes)

    near = materialise(beside, x)
    stop = stride * (rows - 1) + 1
    return jnp.stack([lax.slice_in_dim(near, i, i + stop, stride, 1) for i in range(3)]).reshape(9 * channels, -1)


def col2im(
    columns: Float[Array, "patch pixels"], shape: tuple[int, int, int, int], size: int = 3, stride: int = 1
) -> Float[Array, "channels height width lanes"]:
    """The transpose of `im2col`: add each patch entry back to its pixel, along the width, then along the height."""
    channels, height, width, lanes = shape
    rows, cols = (-(-length // stride) for length in (height, width))
    if size == 1:
        taps = columns.reshape(channels, rows, cols, lanes)
        return _pad(taps, _spread(0, rows, height, stride), _spread(0, cols, width, stride))

    def along_rows(columns: Array) -> Array:
        taps = columns.reshape(3, 3, channels, rows, cols, lanes)
        total = jnp.zeros((), columns.dtype)
        for j in range(3):
            flat, unit = _flat_rows(taps[:, j].reshape(3 * channels, rows, cols, lanes), stride)
            low, high, gap = _spread(j - 1, cols, width, stride)
            total = total + _pad(flat, (0, 0, 0), (low * unit, high * unit, gap))
        return total.reshape(3, channels, rows, width * lanes)

    sums = materialise(along_rows, columns)
    spread = (_pad(sums[i], _spread(i - 1, rows, height, stride), (0, 0, 0)) for i in range(3))
    return sum(spread, start=jnp.zeros((), columns.dtype)).reshape(shape)


def _flat_rows(x: Array, stride: int) -> tuple[Array, int]:
    """Rows of pixels and lanes as one axis, where no stride tells pixels apart, and the length of a pixel on it.

    Long contiguous rows are what XLA's CPU backend copies fastest.
    """
    return (x.reshape(*x.shape[:2], -1), x.shape[3]) if stride == 1 else (x, 1)


def _pad(x: Array, rows: tuple[int, int, int], cols: tuple[int, int, int]) -> Array:
    """Zeros around axes 1 and 2: (low, high, between), as `lax.pad` takes them."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, cols, *[(0, 0, 0)] * (x.ndim - 3)))


def _spread(shift: int, places: int, length: int, stride: int) -> tuple[int, int, int]:
    """Padding that puts place i of ``places`` at stride · i + shift of an axis of that length."""
    return shift, length - shift - stride * (places - 1) - 1, stride - 1


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
