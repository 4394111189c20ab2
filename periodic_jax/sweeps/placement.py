"""Where a sweep's arrays are: configurations in groups of one seed, sharded over devices, and on the host in the grid's
order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from periodic_jax.training.state import TrainState

# Of a mini-batch's gather and patches, in steps of one configuration; more with small networks.
SEED_COST = 0.1


class Arrangement(NamedTuple):
    """Where each configuration sits among (seeds, configurations per seed).

    A seed of many configurations may have several places along the first axis.
    """

    seeds: np.ndarray  # (seeds,) the seed of each group
    source: np.ndarray  # (seeds, configs per seed) configuration shown there, padding included
    row: np.ndarray  # (configs,) where configuration i is: its place among the seeds ...
    column: np.ndarray  # (configs,) ... and within its seed

    @staticmethod
    def of(seeds: np.ndarray, devices: int) -> "Arrangement":
        """Cut the configurations of one seed into groups, in the shape that leaves each device the least to do.

        Args:
            seeds: of each configuration.
            devices: among which the groups are divided.
        """
        groups_of_device, per_seed = device_shape(seeds, devices)
        of_seeds = [np.flatnonzero(seeds == seed) for seed in np.unique(seeds)]
        groups = [group for configs in of_seeds for group in _dealt(configs, -(-len(configs) // per_seed))]
        row, column = np.zeros(len(seeds), int), np.zeros(len(seeds), int)
        for k, group in enumerate(groups):
            row[group], column[group] = k, np.arange(len(group))
        groups += [groups[-1]] * (groups_of_device * devices - len(groups))
        source = np.stack([np.resize(group, per_seed) for group in groups])
        return Arrangement(seeds[source[:, 0]], source, row, column)

    def flatten(self, array: Any, axis: int = 0) -> np.ndarray:
        """Pick the configurations, in grid order, from an array whose axes ``axis`` and ``axis + 1`` are (seeds,
        configurations per seed).
        """
        index = (slice(None),) * axis + (self.row, self.column)
        return np.asarray(array)[index]


def _dealt(configs: np.ndarray, parts: int) -> list[np.ndarray]:
    """Parts of equal sizes, or all but equal, dealt there and back: 0 1 1 0 0 1 ...

    What diverges are neighbours in a grid, such as the largest learning rates; each part gets as many of them.
    """
    turn = np.arange(len(configs)) % (2 * parts)
    return [configs[(turn == part) | (turn == 2 * parts - 1 - part)] for part in range(parts)]


def device_shape(seeds: np.ndarray, devices: int) -> tuple[int, int]:
    """The number of seeds of a device, and of configurations per seed, that leave each device the least to do.

    Args:
        seeds: of each configuration.
        devices: among which the configurations are divided.

    Example:
        >>> device_shape(np.array([0, 0, 0, 0, 0]), 2), device_shape(np.array([0, 0, 1, 1]), 2)
        ((1, 3), (1, 2))
    """
    sizes = np.unique(seeds, return_counts=True)[1]
    candidates = {-(-int(size) // parts) for size in np.unique(sizes) for parts in range(1, int(size) + 1)}
    groups = {n: -(-int((-(-sizes // n)).sum()) // devices) for n in candidates}
    per_seed = min(candidates, key=lambda n: (groups[n] * (n + SEED_COST), groups[n]))
    return groups[per_seed], per_seed


@dataclass(frozen=True)
class Placement:
    """The configurations of a grid among devices.

    Attributes:
        arrangement: of the configurations, by seed.
        mesh: of the devices.
    """

    arrangement: Arrangement
    mesh: Mesh

    @staticmethod
    def of(seeds: np.ndarray, devices: Sequence[Any]) -> "Placement":
        """Divide the configurations among devices.

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

    @property
    def configs_per_seed(self) -> int:
        """Configurations of one seed that a device trains together, padding included."""
        return self.arrangement.source.shape[1]

    def shard(self, array: Any) -> Array:
        """An array ``(seeds, ...)`` on the devices, each with its part."""
        return jax.device_put(np.asarray(array), NamedSharding(self.mesh, P("device")))

    def shard_configs(self, values: np.ndarray) -> Array:
        """Values of configurations ``(configs, ...)`` on the devices, ``(seeds, configs per seed, ...)``."""
        return self.shard(values[self.arrangement.source])

    def distinct(self, values: np.ndarray) -> np.ndarray:
        """Values of configurations ``(configs, ...)`` as ``(seeds, configs per seed, ...)``, or ``(seeds, 1, ...)``
        where those of each group are the same.
        """
        placed = values[self.arrangement.source]
        return placed[:, :1] if (placed == placed[:, :1]).all() else placed

    def replicate(self, array: Any) -> Array:
        """An array on all devices, each with the whole."""
        return jax.device_put(np.asarray(array), NamedSharding(self.mesh, P()))

    def gather(self, array: Array, axis: int = 0) -> np.ndarray:
        """The configurations, on the host and in the grid's order, of an array whose axis ``axis`` are the seeds."""
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
        return self.arrangement.flatten(np.concatenate([shard.data for shard in shards], axis), axis)

    def fetch(self, states: Any) -> dict[str, np.ndarray]:
        """States of all configurations as host arrays by name, ``(configs, ...)`` in the grid's order, whatever the
        number of devices.

        Leaves without elements are left out.
        """
        return {name: self.gather(leaf) for name, leaf in named_leaves(states) if leaf.size}

    def put(self, arrays: Mapping[str, np.ndarray], like: Any) -> Any:
        """A tree such as ``like`` on the devices, of what `fetch` gave of one."""
        leaves = [self.shard_configs(arrays[name]) if leaf.size else leaf for name, leaf in named_leaves(like)]
        return jax.tree.unflatten(jax.tree.structure(like), leaves)


def weights_of(states: TrainState) -> dict[str, Any]:
    """Parameters and running statistics."""
    return {"params": states.params, "batch_stats": states.batch_stats}


@jax.jit
def copied(tree: Any) -> Any:
    """A copy on the devices, which the next chunk leaves alone."""
    return jax.tree.map(jnp.copy, tree)


@partial(jax.jit, donate_argnums=1)
def choose(is_lower: Array, weights: Any, lowest: Any) -> Any:
    """The first weights, whose memory is taken over, where ``is_lower``, and the second ones elsewhere.

    Args:
        is_lower: of each configuration, ``(seeds, configs per seed)``, sharded.
        weights, lowest: parameters and running statistics.
    """

    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(is_lower.reshape(*is_lower.shape, *[1] * (new.ndim - is_lower.ndim)), new, old)

    return jax.tree.map(of_leaf, weights, lowest)


def named_leaves(tree: Any, separator: str = ".") -> list[tuple[str, Any]]:
    """Every leaf with a name such as ``params.conv0.kernel``."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path, simple=True, separator=separator), leaf) for path, leaf in paths]
