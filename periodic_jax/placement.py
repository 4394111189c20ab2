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

from periodic_jax.distributed import Team
from periodic_jax.errors import ConfigError
from periodic_jax.grid import counted
from periodic_jax.layouts import Arrangement, device_shape
from periodic_jax.train import TrainState


@dataclass(frozen=True)
class Placement:
    """The configurations of a grid among processes, and those of this process among its devices.

    Attributes:
        own: the configurations of this process, which are all if it is alone.
        arrangement: of these, in rows.
        mesh: of the devices of all processes.
    """

    own: slice
    arrangement: Arrangement
    mesh: Mesh

    @staticmethod
    def of(seeds: np.ndarray, devices: Sequence[Any], team: Team, share: int | None = None) -> "Placement":
        """Share the configurations out.

        Args:
            seeds: of each configuration.
            devices: of all processes.
            team: the processes.
            share: configurations of each process but the last, which has the rest; None: as even as can be.

        Raises:
            ConfigError: a process is left without any.
        """
        count, share = len(seeds), share or -(-len(seeds) // team.count)
        shares = [slice(k * share, min((k + 1) * share, count)) for k in range(team.count)]
        if shares[-1].start >= count:
            accepted = f"at most {-(-count // share)} for {counted(count, 'configuration')}"
            raise ConfigError("--num-processes", team.count, accepted)
        held = [[d for d in devices if d.process_index == host] for host in team.hosts]
        each = min(shares[0].stop, *(len(local) for local in held))
        mesh = Mesh(np.array([device for local in held for device in local[:each]]), ("device",))
        of_shares = [seeds[part] for part in shares]
        arrangement = Arrangement.of(of_shares[team.index], each, device_shape(of_shares, each))
        return Placement(shares[team.index], arrangement, mesh)

    @property
    def devices(self) -> list[Any]:
        """The devices of all processes, in the order of the mesh."""
        return list(self.mesh.devices.flat)

    def rows(self, rows: Any) -> Array:
        """Rows of this process ``(rows, members, ...)`` on its devices."""
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, P("device")), np.asarray(rows))

    def spread(self, values: np.ndarray) -> Array:
        """Values of this process's configurations ``(configs, ...)`` on its devices."""
        return self.rows(values[self.arrangement.source])

    def everywhere(self, array: Any) -> Array:
        """What all devices are to hold."""
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, P()), np.asarray(array))

    def flat(self, array: Array, axis: int = 0) -> np.ndarray:
        """This process's configurations, on the host, of an array whose axis ``axis`` are the rows."""
        shards = sorted(array.addressable_shards, key=lambda shard: shard.index[axis].start or 0)
        return self.arrangement.flatten(np.concatenate([shard.data for shard in shards], axis), axis)

    def fetch(self, states: Any) -> dict[str, np.ndarray]:
        """States of this process's configurations as host arrays by name, ``(configs, ...)`` in the grid's order,
        whatever the number of devices.

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
