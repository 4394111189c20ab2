"""Configurations side by side in one operation: under ``vmap``, channels stand beside channels.

An accelerator runs one convolution of many channels faster than many convolutions of few. All that a network does
between two products is done channel by channel, so K configurations are one network with K times the channels,
``(batch, height, width, K channels)``. Their kernels become one, block-diagonal: up to some number of channels its
products with zeros cost nothing, as the product units would be idle. Where there are more channels, the configurations
stay apart, and their products are batched; or the convolution is one with groups.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Packing(NamedTuple):
    """How an operation finds the configurations in its arrays.

    Attributes:
        configs: side by side.
        apart: it is one of many under a plain ``vmap``: a convolution of its own would be slow there.
        grouped: their convolutions are one with a group of channels for each, and not one of a block-diagonal kernel.
    """

    configs: int
    apart: bool = False
    grouped: bool = False


class Limit(NamedTuple):
    """Up to where configurations share one block-diagonal kernel.

    Attributes:
        channels: of all configurations, of the output; None: any number.
        grouped: whether those beyond stay side by side, in grouped convolutions, or are apart.
    """

    channels: int | None
    grouped: bool = False


Core = Callable[..., Any]  # of (`Packing`, *arrays)
ONE = Packing(1)
APART = Packing(1, True)
UNLIMITED = Limit(None)


def beside(x: Float[Array, "configs ... channels"]) -> Float[Array, "... all_channels"]:
    """Configurations side by side: the channels of the first, then those of the second, and so on."""
    return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)


def apart(y: Float[Array, "... all_channels"], configs: int) -> Float[Array, "configs ... channels"]:
    """The inverse of `beside`."""
    return jnp.moveaxis(y.reshape(*y.shape[:-1], configs, -1), -2, 0)


def stacked(core: Core, kernels: frozenset[int] = frozenset({1}), limit: Limit = UNLIMITED) -> Callable[..., Any]:
    """An operation of one configuration whose batching rule is the same operation of many, side by side.

    Args:
        core: a function of (`Packing`, *arrays) that returns a tuple. Results of five axes are kernels ``(configs,
            size, size, channels_in, channels_out)``, as are some of the arrays. All others have the channels of all
            configurations on their last axis. An array may be a tuple of arrays that all of them share.
        kernels: which of the arrays are kernels.
        limit: of a block-diagonal kernel.

    Returns:
        A function of the arrays of one configuration. Its forward derivative is stacked likewise, so products with the
        Hessian batch too; what is shared counts as constant. A second level of ``vmap`` batches what the first one has
        made.
    """
    operation = jax.custom_jvp(_batchable(core, kernels, limit))

    @operation.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        count, moving = len(primals), _moving(primals)

        def both(packing: Packing, *arrays: Any) -> Any:
            function = _of_moving(partial(core, packing), arrays[:count], moving)
            out, dots = jax.jvp(function, tuple(arrays[i] for i in moving), arrays[count:])
            return out, tuple(None if dot.dtype == jax.dtypes.float0 else dot for dot in dots)

        of_tangents = {count + place for place, i in enumerate(moving) if i in kernels}
        out, dots = _batchable(both, kernels | of_tangents, limit)(*primals, *(tangents[i] for i in moving))
        constant = (np.zeros(o.shape, jax.dtypes.float0) if d is None else d for o, d in zip(out, dots, strict=True))
        return out, tuple(constant)

    return operation


def stacked_with_vjp(
    core: Core, kernels: frozenset[int] = frozenset({1}), limit: Limit = UNLIMITED
) -> Callable[..., Any]:
    """`stacked`, with a reverse derivative: the core's own, stacked likewise. What is shared gets none."""

    @jax.custom_vjp
    def operation(*arrays: Any) -> Any:
        return forward(*arrays)[0]

    def forward(*arrays: Any) -> tuple[Any, Any]:
        return stacked(core, kernels, limit)(*arrays), arrays

    def backward(arrays: Any, cotangents: Any) -> tuple[Any, ...]:
        moving = _moving(arrays)

        def pull(packing: Packing, *given: Any) -> Any:
            function = _of_moving(partial(core, packing), given[: len(arrays)], moving)
            return jax.vjp(function, *(given[i] for i in moving))[1](tuple(given[len(arrays) :]))

        gradients = stacked(pull, kernels, limit)(*arrays, *cotangents)
        found = dict(zip(moving, gradients, strict=True))
        return tuple(found.get(i) for i in range(len(arrays)))

    operation.defvjp(forward, backward)
    return operation


def _moving(arrays: Any) -> list[int]:
    """Which of an operation's arrays have derivatives: numbers that are not shared."""
    return [i for i, a in enumerate(arrays) if not isinstance(a, tuple) and jnp.issubdtype(a.dtype, jnp.floating)]


def _of_moving(function: Callable[..., Any], arrays: Any, moving: list[int]) -> Callable[..., Any]:
    """The function of those arrays alone."""

    def of_moving(*values: Array) -> Any:
        whole = list(arrays)
        for i, value in zip(moving, values, strict=True):
            whole[i] = value
        return function(*whole)

    return of_moving


def _batchable(core: Core, kernels: frozenset[int] | set[int], limit: Limit) -> Callable[..., Any]:
    def of_one(packing: Packing, *arrays: Any) -> Any:
        out = core(packing, *(array[None] if i in kernels else array for i, array in enumerate(arrays)))
        return jax.tree.map(lambda a: a[0] if a.ndim == 5 else a, out)

    def alone(*arrays: Any) -> Any:
        return of_one(ONE, *arrays)

    operation = jax.custom_batching.custom_vmap(alone)

    @operation.def_vmap
    def _(configs: int, batched: Any, *arrays: Any) -> Any:
        differ = any(isinstance(a, tuple) and any(jax.tree.leaves(b)) for a, b in zip(arrays, batched, strict=True))
        channels = arrays[min(kernels, default=0)].shape[-1]
        beyond = limit.channels is not None and configs > 1 and configs * channels > limit.channels
        if differ or (beyond and not limit.grouped):
            axes = jax.tree.map(lambda b: 0 if b else None, tuple(batched))
            out = jax.vmap(lambda *a: of_one(APART, *a), in_axes=axes)(*arrays)
        else:

            def whole(i: int, array: Any, is_batched: Any) -> Any:
                if isinstance(array, tuple):
                    return array
                array = array if is_batched else jnp.broadcast_to(array, (configs, *array.shape))
                return array if i in kernels else beside(array)

            packed = [whole(i, a, b) for i, (a, b) in enumerate(zip(arrays, batched, strict=True))]
            out = core(Packing(configs, grouped=beyond), *packed)
            out = jax.tree.map(lambda a: a if a.ndim == 5 else apart(a, configs), out)
        return out, jax.tree.map(lambda _: True, out)

    return operation


def joined(kernels: Float[Array, "configs h w channels_in channels_out"]) -> Float[Array, "h w all_in all_out"]:
    """One kernel, block-diagonal over the configurations."""
    configs, height, width, channels_in, channels_out = kernels.shape
    if configs == 1:
        return kernels[0]
    eye = jnp.eye(configs, dtype=kernels.dtype)[:, None, :, None]  # (of the input, 1, of the output, 1)
    blocks = kernels.transpose(1, 2, 0, 3, 4)[..., None, :] * eye
    return blocks.reshape(height, width, configs * channels_in, configs * channels_out)


def taken_apart(
    gradient: Float[Array, "h w all_in all_out"], configs: int
) -> Float[Array, "configs h w channels_in channels_out"]:
    """The transpose of `joined`: the gradients of the kernels from that of the joined one."""
    if configs == 1:
        return gradient[None]
    height, width, all_in, all_out = gradient.shape
    blocks = gradient.reshape(height, width, configs, all_in // configs, configs, all_out // configs)
    return jnp.moveaxis(jnp.diagonal(blocks, axis1=2, axis2=4), -1, 0)
