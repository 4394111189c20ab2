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
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from periodic_jax.core.errors import ConfigError

LAYOUTS = "auto, vmap, unroll, map or map:K with K configurations to a block"
SMALL = 20_000  # numbers of a result that joins others in one array


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
    """As `lay_out`, with all small results of a dtype in one array while the loop runs.

    On an accelerator each array that a loop's body returns costs a kernel that writes it to its place.
    """

    def joined(*trees: Any) -> tuple[dict[str, Array], list[Array]]:
        leaves = jax.tree.leaves(function(*trees))
        parts: dict[str, list[Array]] = {}  # joined across dtypes, whole numbers would be rounded
        for leaf in leaves:
            if 0 < leaf.size < SMALL:  # XLA's CPU compiler ends the process over some that are empty
                parts.setdefault(str(leaf.dtype), []).append(leaf.ravel())
        return {dtype: jnp.concatenate(part) for dtype, part in parts.items()}, _large(leaves)

    def laid_out(*trees: Any) -> Any:
        shapes, tree = jax.tree.flatten(jax.eval_shape(function, *jax.tree.map(lambda leaf: leaf[0], trees)))
        small, large = lay_out(joined, layout)(*trees)
        count = jax.tree.leaves(trees)[0].shape[0]
        rest, ends, leaves = iter(large), dict.fromkeys(small, 0), []
        for shape in shapes:
            if shape.size >= SMALL:
                leaf = next(rest)
            elif not shape.size:
                leaf = jnp.zeros((count, *shape.shape), shape.dtype)
            else:
                dtype, end = str(shape.dtype), ends[str(shape.dtype)] + shape.size
                leaf = small[dtype][:, ends[dtype] : end].reshape(count, *shape.shape)
                ends[dtype] = end
            leaves.append(leaf)
        return jax.tree.unflatten(tree, leaves)

    return laid_out


def _large(leaves: list[Array]) -> list[Array]:
    return [leaf for leaf in leaves if leaf.size >= SMALL]


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
