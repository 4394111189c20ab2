"""How far the shards of a grid are, as their run directories tell."""

from pathlib import Path
from typing import NamedTuple

from periodic_jax.core.errors import PeriodicJaxError
from periodic_jax.storage.run_directory import SHARDS, reached, read_config


class ShardProgress(NamedTuple):
    """How far one shard is."""

    steps: int
    is_finished: bool


def shard_progress(out: Path, index: int) -> ShardProgress:
    """How far a shard is, by its last checkpoint. One that cannot be read counts as not begun: its own process says
    why.

    Args:
        out: the folder of the grid.
        index: the shard.
    """
    folder = out / SHARDS / str(index)
    try:
        manifest = read_config(folder)
    except PeriodicJaxError:
        return ShardProgress(0, False)
    return ShardProgress(reached(folder, manifest), "summary" in manifest)
