"""Where a sweep's arrays are: rows of configurations, sharded over devices, and on the host in the grid's order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from periodic_jax.layouts import Arrangement
from periodic_jax.train import TrainState


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


def chosen(lower: Array, weights: Any, lowest: Any) -> Any:
    """Of the configurations ``(rows, members)`` that ``lower`` marks the first weights, of the others the second."""

    def of_leaf(new: Array, old: Array) -> Array:
        return jnp.where(lower.reshape(*lower.shape, *[1] * (new.ndim - lower.ndim)), new, old)

    return jax.tree.map(of_leaf, weights, lowest)


def named_leaves(states: Any) -> list[tuple[str, Any]]:
    """Every leaf with a name such as ``params.conv0.kernel``."""
    paths = jax.tree_util.tree_leaves_with_path(states)
    return [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in paths]
