"""The layout of activations, and sums and loops over it.

Activations are laid out as ``(groups, channels, height, width, lanes)``: the batch is split into ``groups x lanes``
with the lanes innermost, so that elementwise work, pooling and reductions run along contiguous lanes, and one group's
patches fit the cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activations = Float[Array, "groups channels height width lanes"]
Kernel = Float[Array, "size size channels_in channels_out"]


def to_activations(images: Float[Array, "batch height width channels"], group_size: int | None = None) -> Activations:
    """Lay images out as ``(groups, channels, height, width, lanes)``.

    Args:
        images: ``(batch, height, width, channels)``.
        group_size: wanted lanes of one group, of which the divisor of the batch nearest by ratio is taken; ``None``
            picks the measured default: groups of 4 from 32x32 pixels on and of 8 from 16x16 on, so that a group's
            patches fit the cache, and one group of all otherwise.

    Returns:
        The same numbers in the layout of the blocks.
    """
    batch, height, width, channels = images.shape
    if group_size is None:
        group_size = batch if height * width < 256 else 8 if height * width < 1024 else 4
    divisors = [d for d in range(1, batch + 1) if batch % d == 0]
    lanes = min(reversed(divisors), key=lambda d: max(d / group_size, group_size / d))
    return images.reshape(batch // lanes, lanes, height, width, channels).transpose(0, 4, 2, 3, 1)


def materialise(function: Callable[..., Any], *args: Any) -> Any:
    """Evaluate ``function(*args)`` into memory before its consumers run.

    XLA's CPU backend otherwise fuses cheap producers into each consumer and computes them again and again; it drops
    `lax.optimization_barrier` before fusing, but it does not fuse across a conditional. Measured: 1.3 - 1.5 times
    faster steps at 8x8. Under ``vmap``, where a conditional would become a select, this is a plain call.
    """

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
    def _(_axis_size: int, in_batched: list[Any], *args: Any) -> Any:
        if not any(jax.tree.leaves(in_batched)):  # of the derivative along many directions at one point
            out = function(*args)
            return out, jax.tree.map(lambda _: False, out)
        axes = jax.tree.map(lambda batched: 0 if batched else None, in_batched)
        out = jax.vmap(function, in_axes=tuple(axes))(*args)
        return out, jax.tree.map(lambda _: True, out)

    return barrier(*args)


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
