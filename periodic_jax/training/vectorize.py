"""How configurations are arranged and laid out in one compiled program.

They are arranged as (seeds, configurations per seed): those of one seed share every mini-batch and its first-layer
patches. Every device holds the same number of seeds, so it gathers mini-batches for its own seeds only. What does not
fill them is padded with copies, whose results are dropped. How the configurations of a seed are laid out is one knob,
``layout``:

    vmap       all configurations as one batched computation
    unroll     one after the other, in straight-line code
    map        one after the other, in a loop
    map:K      blocks of K batched configurations, in a loop

No layout changes what is computed.
"""

import re
from collections.abc import Callable
from functools import partial
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from periodic_jax.core.errors import ConfigError

LAYOUTS = "auto, vmap, unroll, map or map:K with K configurations to a block"
SMALL = 20_000  # an array of fewer numbers joins others of its dtype


def check_layout(layout: str) -> str:
    """Return a layout's name, or refuse it.

    Raises:
        ConfigError: none of `LAYOUTS`.
    """
    if layout in ("auto", "vmap", "unroll", "map") or re.fullmatch(r"map:[1-9][0-9]{0,5}", layout):
        return layout
    raise ConfigError("--layout", layout, LAYOUTS)


def block_size(layout: str) -> int | None:
    """K of ``map:K``.

    Example:
        >>> block_size("map:8"), block_size("map")
        (8, None)
    """
    return int(layout.split(":")[1]) if ":" in layout else None


def lay_out(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """Lift a function of one configuration's trees to one of stacked trees, in the given layout.

    Args:
        function: of any number of trees.
        layout: ``vmap``, ``unroll``, ``map`` or ``map:K``.

    Returns:
        The function of trees whose leaves have one more leading axis; its results have it too.
    """
    if layout == "vmap":
        return jax.vmap(function)
    if layout == "unroll":

        def unrolled(*trees: Any) -> Any:
            count = jax.tree.leaves(trees)[0].shape[0]
            results = [function(*jax.tree.map(lambda leaf, i=i: leaf[i], trees)) for i in range(count)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

        return unrolled
    if layout == "map":
        return lambda *trees: jax.lax.map(lambda packed: function(*packed), trees)
    return _in_blocks(function, block_size(layout) or 1)


def lay_out_joined(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """As `lay_out`, with vectors that are given, and results, of less than `SMALL` numbers joined: one array for each
    dtype, while the loop runs.

    On an accelerator each small array that a loop's body reads or returns may cost a kernel, which takes it from its
    place or writes it there.
    """

    def laid_out(*trees: Any) -> Any:
        given, of_given = jax.tree.flatten(trees)
        shapes, of_results = jax.tree.flatten(jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], trees)))
        ones = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in given]
        # Joined with others, a weakly typed one would promote what it meets.
        vectors = [leaf.ndim == 2 and 0 < leaf.shape[1] < SMALL and not jax.typeof(leaf).weak_type for leaf in given]
        few = [shape.size < SMALL for shape in shapes]

        def joined(together: Any, others: Any) -> Any:
            of_one = _part(together, others, ones, vectors)
            return _join(jax.tree.leaves(function(*of_given.unflatten(of_one))), few)

        together, others = lay_out(joined, layout)(*jax.vmap(partial(_join, small=vectors))(given))
        return of_results.unflatten(_part(together, others, shapes, few, given[0].shape[:1]))

    return laid_out


def _join(leaves: list[Array], small: list[bool]) -> tuple[dict[str, Array], list[Array]]:
    """All small leaves of each dtype in one array, and the others: across dtypes, whole numbers would be rounded."""
    parts: dict[str, list[Array]] = {}
    for leaf in compress(leaves, small):
        if leaf.size:  # XLA's CPU compiler ends the process over some that are empty
            parts.setdefault(str(leaf.dtype), []).append(leaf.ravel())
    others = [leaf for leaf, is_small in zip(leaves, small, strict=True) if not is_small]
    return {dtype: jnp.concatenate(part) for dtype, part in parts.items()}, others


def _part(
    joined: dict[str, Array], others: list[Array], shapes: list[Any], small: list[bool], batch: tuple[int, ...] = ()
) -> list[Array]:
    """The leaves that `_join` was given; of a batch of them."""
    rest, ends, leaves = iter(others), dict.fromkeys(joined, 0), []
    for shape, is_small in zip(shapes, small, strict=True):
        if not is_small:
            leaves.append(next(rest))
        elif not shape.size:
            leaves.append(jnp.zeros((*batch, *shape.shape), shape.dtype))
        else:
            dtype, start = str(shape.dtype), ends[str(shape.dtype)]
            ends[dtype] = start + shape.size
            leaves.append(joined[dtype][..., start : ends[dtype]].reshape(*batch, *shape.shape))
    return leaves


def _in_blocks(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """As `jax.lax.map` with a ``batch_size``, which refuses leaves without elements, such as the norms of no layers."""
    batched = jax.vmap(function)

    def blocked(*trees: Any) -> Any:
        count = jax.tree.leaves(trees)[0].shape[0]
        whole = count // size

        rest = jax.tree.map(lambda leaf: leaf[whole * size :], trees)
        if not whole:
            return batched(*rest)
        blocks = jax.tree.map(lambda leaf: leaf[: whole * size].reshape(whole, size, *leaf.shape[1:]), trees)
        done = jax.lax.map(lambda packed: batched(*packed), blocks)
        done = jax.tree.map(lambda leaf: leaf.reshape(whole * size, *leaf.shape[2:]), done)
        if count == whole * size:
            return done
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), done, batched(*rest))

    return blocked


def over_seeds(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """Lift a function of one seed's trees to all seeds.

    Seeds are batched under ``vmap`` only; a loop over them keeps each mini-batch's patches in the cache
    otherwise.
    """
    return lay_out(function, layout if layout in ("vmap", "unroll") else "map")
