"""Shards of a grid: which one a process trains, and the file that holds them to one grid; parts of a grid too large."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from periodic_jax.core.errors import ConfigError, CorruptedRunError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import RUN_AXES
from periodic_jax.core.limits import MOST_CONFIGS
from periodic_jax.runs.config import RunConfig, check
from periodic_jax.runs.manifest import NOT_FOLLOWED, check_images, difference, to_manifest
from periodic_jax.storage.run_directory import CONFIG_FILE, OWN_FILES, SHARDS, SHARDS_FILE, claim_directory
from periodic_jax.storage.shards import REMAKE, read_shards, write_shards

# The scheduler's variables for the number of a process, in this order, and for how many there are where one process
# sets the first too.
VARIABLES = (
    ("SLURM_ARRAY_TASK_ID", None),  # Slurm, job array
    ("JOB_COMPLETION_INDEX", None),  # Kubernetes, indexed job
    ("SLURM_PROCID", "SLURM_NTASKS"),  # Slurm, several tasks of one job
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("TPU_WORKER_ID", None),  # a host of a TPU pod slice
)


def scheduled_shard(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable by which a scheduler numbers this process, and its value; None where there is none.

    Example:
        >>> scheduled_shard({"SLURM_ARRAY_TASK_ID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
        ('SLURM_ARRAY_TASK_ID', '3')
    """
    for name, count in VARIABLES:
        if environment.get(name) and (count is None or environment.get(count, "1") != "1"):
            return name, environment[name]
    return None


def no_folder_of_shards() -> UsageError:
    """What to raise where a grid in shards has no folder, of which each shard would find another one."""
    return UsageError("--out", "not given", "with --shards, give the folder of the grid, the same for all shards")


def with_shard(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> RunConfig:
    """The configuration with the number of its shard, from the scheduler if it has none of its own.

    Args:
        config: of a sweep; one without ``shards`` is returned as it is.
        log: told where the number comes from.

    Raises:
        ConfigError: no number, or one that is not below the number of shards.
    """
    if config.shards is None:
        if config.shard is not None:
            raise UsageError("--shard", "given without --shards", "give --shards, the number of shards, too")
        return config
    config.whole_grid().members(config.shards)
    accepted = f"a whole number from 0 to {config.shards - 1}, below --shards {config.shards}"
    if config.shard is not None:
        if not 0 <= config.shard < config.shards:
            raise ConfigError("--shard", config.shard, accepted)
        return config
    scheduled = scheduled_shard(os.environ)
    if scheduled is None:
        variables = ", ".join(name + (" of several tasks" if count else "") for name, count in VARIABLES)
        raise UsageError("--shard", "not given, and no scheduler says which", f"give {accepted}, or set {variables}")
    name, number = scheduled
    if not number.isdecimal() or int(number) >= config.shards:
        raise ConfigError(name, number, accepted)
    log(f"shard {number} of {config.shards}, by {name}")
    return dataclasses.replace(config, shard=int(number))


def enter_shard(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> RunConfig:
    """The run that a sweep's process is to train: that of its shard, or the sweep itself where it has no shards.

    The first process writes ``shards.json``, which holds all of them to one grid.

    Args:
        config: of the sweep.
        log: as for `with_shard`.

    Raises:
        ConfigError: as `with_shard` and `runs.config.check`, or the folder holds another grid.
        CorruptedRunError: ``shards.json`` is corrupted.
    """
    config = with_shard(config, log)
    if config.shards is None:
        return config
    check(config)
    path, whole = config.folder, dataclasses.replace(config, shard=None)
    shards = read_shards(path)
    if shards is None:
        claim_directory(path, taken_by=(CONFIG_FILE,) if (path / SHARDS).is_dir() else OWN_FILES)
        settings = {name: value for name, value in to_manifest(whole, whole.layout).items() if name not in NOT_FOLLOWED}
        every = float(whole.whole_grid().coords["schedule_every"][0])
        try:
            write_shards(path, {"config": settings, "data": config.data.described()}, every)
        except OSError as error:
            raise ConfigError("--out", path, f"a folder that can be written ({error.strerror})") from None
        shards = read_shards(path)
        if shards is None:
            raise CorruptedRunError(path / SHARDS_FILE, "it is gone again", REMAKE)
    if differing := difference(whole, shards.manifest):
        unused = "" if (path / SHARDS).exists() else f", or remove {SHARDS_FILE}, since no shard is begun"
        raise UsageError("--out", f"{path} holds another grid: {differing}", f"give another folder{unused}")
    check_images(config, shards.manifest)
    return dataclasses.replace(config, out=shards.folder(config.shard or 0))


def run_parts(config: RunConfig) -> Iterator[tuple[RunConfig, np.ndarray]]:
    """The run directories that hold a grid: the run itself, or the shards that were begun.

    Args:
        config: of a run, of a shard, or of a whole grid in shards; ``out`` is its folder.

    Yields:
        The configuration of each, and its configurations as ascending places in the whole grid.
    """
    shards = read_shards(config.folder)
    if shards is None:
        grid = config.whole_grid()
        yield config, np.arange(len(grid)) if config.shard is None else grid.members(config.shards or 1)[config.shard]
        return
    for index, members in enumerate(shards.members()):
        if (shards.folder(index) / CONFIG_FILE).exists():
            yield dataclasses.replace(config, out=shards.folder(index), shard=index), members


def fitting_part(config: RunConfig) -> tuple[RunConfig, str]:
    """The first of the runs that a grid must be cut into because a run may not have so many configurations, and which
    it is, in words; the whole where it may.
    """
    if config.points:  # of which no grid has more than a run may have
        return config, ""
    configs = math.prod(len(getattr(config, axis)) for axis in RUN_AXES)
    name = max(RUN_AXES, key=lambda axis: len(getattr(config, axis)))
    values = getattr(config, name)
    each = max(MOST_CONFIGS * len(values) // configs, 1)
    if configs <= MOST_CONFIGS:
        return config, ""
    runs = -(-len(values) // each)
    note = (
        f"{configs} configurations, and a run may have {MOST_CONFIGS}: this is of one of {runs} runs, "
        f"with {each} of the {len(values)} values of {flag_of(name)}"
    )
    part: dict[str, Any] = {name: values[:each]}
    return dataclasses.replace(config, **part), note
