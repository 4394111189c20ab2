"""Where a sweep's arrays are: rows of configurations, sharded over devices, and on the host in the grid's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from periodic_jax.training.state import TrainState

ROW_COST = 0.1  # of a mini-batch's gather and patches, in steps of one configuration; more with small networks


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


@dataclass(frozen=True)
class Placement:
    """The configurations of a grid among devices.

    Attributes:
        arrangement: of the configurations, in rows.
        mesh: of the devices.
    """

    arrangement: Arrangement
    mesh: Mesh

    @staticmethod
    def of(seeds: np.ndarray, devices: Sequence[Any]) -> "Placement":
        """Share the configurations out.

        Args:
            seeds: of each configuration.
            devices: all that may be used; none is left without a configuration.
        """
        used = devices[: len(seeds)]
        return Placement(Arrangement.of(seeds, len(used)), Mesh(np.array(used), ("device",)))

    @property
    def devices(self) -> list[Any]:
        """The devices, in the order of the mesh."""
        return list(self.mesh.devices.flat)

    def rows(self, rows: Any) -> Array:
        """Rows ``(rows, members, ...)`` on the devices."""
        return jax.device_put(np.asarray(rows), NamedSharding(self.mesh, P("device")))

    def spread(self, values: np.ndarray) -> Array:
        """Values of configurations ``(configs, ...)`` on the devices."""
        return self.rows(values[self.arrangement.source])

    def everywhere(self, array: Any) -> Array:
        """What all devices are to hold."""
        return jax.device_put(np.asarray(array), NamedSharding(self.mesh, P()))

    def flat(self, array: Array, axis: int = 0) -> np.ndarray:
        """The configurations, on the host, of an array whose axis ``axis`` are the rows."""
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
        return self.arrangement.flatten(np.concatenate([shard.data for shard in shards], axis), axis)

    def fetch(self, states: Any) -> dict[str, np.ndarray]:
        """States of all configurations as host arrays by name, ``(configs, ...)`` in the grid's order, whatever the
        number of devices.

        Leaves without elements are left out.
        """
        return {name: self.flat(leaf) for name, leaf in named_leaves(states) if leaf.size}

    def put(self, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
        """A tree such as ``like`` on the devices, of what `fetch` gave of one."""
        leaves = [self.spread(arrays[name]) if leaf.size else leaf for name, leaf in named_leaves(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def weights_of(states: TrainState) -> dict[str, Any]:
    """Parameters and running statistics."""
    return {"params": states.params, "batch_stats": states.batch_stats}


def choose_where(lower: Array, weights: Any, lowest: Any) -> Any:
    """Of the configurations ``(rows, members)`` that ``lower`` marks the first weights, of the others the second."""

    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(lower.reshape(*lower.shape, *[1] * (new.ndim - lower.ndim)), new, old)

    return jax.tree.map(of_leaf, weights, lowest)


def named_leaves(states: Any) -> list[tuple[str, Any]]:
    """Every leaf with a name such as ``params.conv0.kernel``."""
    paths = jax.tree_util.tree_leaves_with_path(states)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
