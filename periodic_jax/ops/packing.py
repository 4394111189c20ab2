"""Configurations side by side in one operation: under ``vmap``, channels stand beside channels.

An accelerator runs one convolution of many channels faster than many convolutions of few. All that a network does
between two products is done channel by channel, so K configurations are one network with K times the channels,
``(batch, height, width, K channels)``. Their kernels become one grouped convolution: each group is a dense kernel,
block-diagonal over as many configurations as the product units take for the price of one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Core = Callable[..., Any]


def beside(x: Float[Array, "configs ... channels"]) -> Float[Array, "... all_channels"]:
    """Configurations side by side: the channels of the first, then those of the second, and so on."""
    return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)


def apart(y: Float[Array, "... all_channels"], configs: int) -> Float[Array, "configs ... channels"]:
    """The inverse of `beside`."""
    return jnp.moveaxis(y.reshape(*y.shape[:-1], configs, -1), -2, 0)


def stacked(core: Core, kernels: frozenset[int] = frozenset({1})) -> Callable[..., Any]:
    """An operation of one configuration whose batching rule is the same operation of many, side by side.

    Args:
        core: a function of (configurations, *arrays) that returns a tuple. Results of five axes are kernels ``(configs,
            size, size, channels_in, channels_out)``, as are some of the arrays. All others have the channels of all
            configurations on their last axis. An array may be a tuple of arrays that all of them share.
        kernels: which of the arrays are kernels.

    Returns:
        A function of the arrays of one configuration. Its forward derivative is stacked likewise, so products with the
        Hessian batch too; what is shared counts as constant. A second level of ``vmap`` batches what the first one has
        made.
    """
    operation = jax.custom_jvp(_batchable(core, kernels))

    @operation.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        count = len(primals)
        moving = [
            i for i, p in enumerate(primals) if not isinstance(p, tuple) and jnp.issubdtype(p.dtype, jnp.floating)
        ]

        def both(configs: int, *arrays: Any) -> Any:
            def of_moving(*values: Array) -> Any:
                whole = list(arrays[:count])
                for i, value in zip(moving, values, strict=True):
                    whole[i] = value
                return core(configs, *whole)

            out, dots = jax.jvp(of_moving, tuple(arrays[i] for i in moving), arrays[count:])
            return out, tuple(None if dot.dtype == jax.dtypes.float0 else dot for dot in dots)

        of_tangents = {count + place for place, i in enumerate(moving) if i in kernels}
        out, dots = _batchable(both, kernels | of_tangents)(*primals, *(tangents[i] for i in moving))
        constant = (np.zeros(o.shape, jax.dtypes.float0) if d is None else d for o, d in zip(out, dots, strict=True))
        return out, tuple(constant)

    return operation


def _batchable(core: Core, kernels: frozenset[int] | set[int]) -> Callable[..., Any]:
    def alone(*arrays: Any) -> Any:
        out = core(1, *(array[None] if i in kernels else array for i, array in enumerate(arrays)))
        return jax.tree.map(lambda a: a[0] if a.ndim == 5 else a, out)

    operation = jax.custom_batching.custom_vmap(alone)

    @operation.def_vmap
    def _(configs: int, batched: Any, *arrays: Any) -> Any:
        if any(isinstance(a, tuple) and any(jax.tree.leaves(b)) for a, b in zip(arrays, batched, strict=True)):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))  # what is shared elsewhere differs here
            out = jax.vmap(alone, in_axes=axes)(*arrays)
        else:

            def whole(i: int, array: Any, is_batched: Any) -> Any:
                if isinstance(array, tuple):
                    return array
                array = array if is_batched else jnp.broadcast_to(array, (configs, *array.shape))
                return array if i in kernels else beside(array)

            packed = [whole(i, a, b) for i, (a, b) in enumerate(zip(arrays, batched, strict=True))]
            out = jax.tree.map(lambda a: a if a.ndim == 5 else apart(a, configs), core(configs, *packed))
        return out, jax.tree.map(lambda _: True, out)

    return operation


def group_of(configs: int, channels: int, most: int) -> int:
    """How many configurations share a dense kernel: as many as divide them, and have at most ``most`` channels.

    Example:
        >>> group_of(8, 16, 64), group_of(8, 256, 64)
        (4, 1)
    """
    return next(
        size for size in range(configs, 0, -1) if configs % size == 0 and (size * channels <= most or size == 1)
    )


def joined(kernels: Float[Array, "configs h w channels_in channels_out"], each: int) -> Float[Array, "h w wide all"]:
    """One kernel of a grouped convolution, each group of which is block-diagonal over ``each`` configurations."""
    configs, height, width, channels_in, channels_out = kernels.shape
    if each == 1:
        return beside(kernels)
    eye = jnp.eye(each, dtype=kernels.dtype)[:, None, None, :, None]  # (input's, 1, 1, output's, 1)
    groups = kernels.reshape(configs // each, each, height, width, channels_in, channels_out)
    blocks = groups.transpose(2, 3, 1, 4, 0, 5)[..., None, :] * eye  # (h, w, input's, in, groups, output's, out)
    return blocks.reshape(height, width, each * channels_in, configs * channels_out)


def taken_apart(
    gradient: Float[Array, "h w wide all"], configs: int, each: int
) -> Float[Array, "configs h w channels_in channels_out"]:
    """The transpose of `joined`: the gradients of the kernels from that of the joined one."""
    if each == 1:
        return apart(gradient, configs)
    height, width, wide, every = gradient.shape
    blocks = gradient.reshape(height, width, each, wide // each, configs // each, each, every // configs)
    own = jnp.diagonal(blocks, axis1=2, axis2=5)  # (h, w, in, groups, out, each)
    return own.transpose(3, 5, 0, 1, 2, 4).reshape(configs, height, width, wide // each, -1)
