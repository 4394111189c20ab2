"""Arrays that several processes write to, and read from, one checkpoint together."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from periodic_jax.distributed import Team


@contextlib.contextmanager
def between_processes(orbax: Any, team: Team, *, padding: bool = False) -> Iterator[None]:
    """Orbax's settings: all processes, named, so that it waits for them without their devices.

    Orbax 0.12 compares the paths of all processes by a collective on their devices, here from another thread than
    training: they could wait for each other, so that is left out. The paths are compared at the start of a run.

    Args:
        orbax: version 1 of its interface.
        team: the processes.
        padding: let it read arrays of another length than was written.
    """
    with contextlib.suppress(ImportError):
        from orbax.checkpoint.experimental.v1._src.saving import execution

        if hasattr(execution, "_check_directory_consistency"):
            execution._check_directory_consistency = lambda directory: None
    options = orbax.options
    arrays = options.ArrayOptions(loading=options.ArrayOptions.Loading(enable_padding_and_truncation=padding))
    processes = options.MultiprocessingOptions(active_processes=set(range(team.count)))
    with orbax.Context(multiprocessing_options=processes, array_options=arrays):
        yield


def spread(content: Mapping[str, Any], team: Team, share: int) -> dict[str, Any]:
    """What each process has as one array of all, padded to the same share of each."""
    sharding = _by_process(team)

    def whole(array: np.ndarray, length: int) -> jax.Array:
        padded = np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])
        return jax.make_array_from_process_local_data(sharding, padded)

    states = {name: whole(array, share) for name, array in content["states"].items()}
    return {"states": states, "check": whole(content["check"], 1)}


def shares_of(like: Mapping[str, np.ndarray], team: Team, share: int) -> dict[str, Any]:
    """Descriptions of arrays of all, of which each process is to read its share."""
    sharding, length = _by_process(team), team.count * share
    return {n: jax.ShapeDtypeStruct((length, *a.shape[1:]), a.dtype, sharding=sharding) for n, a in like.items()}


def _by_process(team: Team) -> NamedSharding:
    """The first axis over the processes, each with one device."""
    devices = [next(d for d in jax.devices() if d.process_index == host) for host in team.hosts]
    return NamedSharding(Mesh(np.array(devices), ("process",)), P("process"))
