"""How configurations are arranged and laid out in one compiled program.

They are arranged as (rows, members): the members of a row have one seed, and share every mini-batch and its first-layer
patches. Every device holds the same number of rows, so it gathers mini-batches for its own seeds only. What does not
fill the rows is padded with copies, whose results are dropped. How the members are laid out is one knob, ``layout``:

    vmap       all members as one batched computation
    unroll     one after the other, in straight-line code
    map        one after the other, in a loop
    map:K      blocks of K batched members, in a loop

No layout changes what is computed.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from periodic_jax.errors import ConfigError

ROW_COST = 0.1  # of a mini-batch's gather and patches, in steps of one configuration; more with small networks
LAYOUTS = "auto, vmap, unroll, map or map:K with K configurations to a block"


def check_layout(layout: str) -> str:
    """Return a layout's name, or refuse it.

    Raises:
        ConfigError: none of `LAYOUTS`.
    """
    if layout in ("auto", "vmap", "unroll", "map") or re.fullmatch(r"map:[1-9][0-9]{0,5}", layout):
        return layout
    raise ConfigError("--layout", layout, LAYOUTS)


def lay_out(function: Callable[..., Any], layout: str) -> Callable[..., Any]:
    """Lift a function of one member's trees to one of stacked trees, in the given layout.

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
    return _in_blocks(function, int(layout.partition(":")[2]))


def _in_blocks(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """As `jax.lax.map` with a ``batch_size``, which refuses leaves without elements, such as the norms of no layers."""
    batched = jax.vmap(function)

    def blocked(*trees: Any) -> Any:
        count = jax.tree.leaves(trees)[0].shape[0]
        whole = count // size

        def split(leaf: jax.Array) -> jax.Array:
            return leaf[: whole * size].reshape(whole, size, *leaf.shape[1:])

        def join(leaf: jax.Array) -> jax.Array:
            return leaf.reshape(whole * size, *leaf.shape[2:])

        rest = jax.tree.map(lambda leaf: leaf[whole * size :], trees)
        if not whole:
            return batched(*rest)
        done = jax.tree.map(join, jax.lax.map(lambda packed: batched(*packed), jax.tree.map(split, trees)))
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


class Arrangement(NamedTuple):
    """Where each configuration sits among (rows, members)."""

    seeds: np.ndarray  # (rows,) the seed of each
    source: np.ndarray  # (rows, members) configuration shown there, padding included
    row: np.ndarray  # (configs,) where configuration i is: its row ...
    column: np.ndarray  # (configs,) ... and its member

    @staticmethod
    def of(seeds: np.ndarray, devices: int) -> "Arrangement":
        """Cut the groups of one seed into rows, in the shape that leaves each device the least to do.

        Args:
            seeds: of each configuration.
            devices: among which the rows are divided.
        """
        rows, members = device_shape(seeds, devices)
        groups = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
        cut = [group[k : k + members] for group in groups for k in range(0, len(group), members)]
        row, column = np.zeros(len(seeds), int), np.zeros(len(seeds), int)
        for k, part in enumerate(cut):
            row[part], column[part] = k, np.arange(len(part))
        cut += [cut[-1]] * (rows * devices - len(cut))
        source = np.stack([np.resize(part, members) for part in cut])
        return Arrangement(seeds[source[:, 0]], source, row, column)

    def flatten(self, array: Any, axis: int = 0) -> np.ndarray:
        """Pick the configurations, in grid order, from an array whose axes ``axis`` and ``axis + 1`` are (rows,
        members).
        """
        index = (slice(None),) * axis + (self.row, self.column)
        return np.asarray(array)[index]


def device_shape(seeds: np.ndarray, devices: int) -> tuple[int, int]:
    """The number of rows of a device, and of members of a row, that leave each device the least to do.

    Args:
        seeds: of each configuration.
        devices: among which the rows are divided.

    Example:
        >>> device_shape(np.array([0, 0, 0, 0, 0]), 2), device_shape(np.array([0, 0, 1, 1]), 2)
        ((1, 3), (1, 2))
    """
    sizes = np.unique(seeds, return_counts=True)[1]
    candidates = {-(-int(size) // parts) for size in np.unique(sizes) for parts in range(1, int(size) + 1)}
    rows = {m: -(-int((-(-sizes // m)).sum()) // devices) for m in candidates}
    members = min(candidates, key=lambda m: (rows[m] * (m + ROW_COST), rows[m]))
    return rows[members], members
