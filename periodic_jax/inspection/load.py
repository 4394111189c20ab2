"""The states that a run's checkpoints hold, as training states of some of its configurations."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.core.errors import ConfigError, CorruptedRunError
from periodic_jax.core.grid import AXES, HParams, SweepGrid
from periodic_jax.runs import build
from periodic_jax.runs.config import RunConfig
from periodic_jax.runs.manifest import check_images, from_manifest
from periodic_jax.runs.shards import run_parts
from periodic_jax.storage import run_directory
from periodic_jax.storage.schema import describe
from periodic_jax.storage.shards import LOG, Shards, read_shards
from periodic_jax.sweeps.placement import named_leaves
from periodic_jax.training.state import TrainState


class LoadedRun(NamedTuple):
    """A run directory, or the folder of a grid in shards."""

    path: Path
    config: RunConfig
    grid: SweepGrid
    first_step: int = 0  # that was recorded; not 0 for a branch
    is_finished: bool = False
    shards: Shards | None = None

    def hparams(self, configs: Sequence[int]) -> HParams:
        """The hyperparameters of some configurations, ``(configs,)``."""
        return HParams(*(np.asarray(column)[np.asarray(configs)] for column in self.grid.hparams()))

    def parts(self) -> Iterator[tuple["LoadedRun", np.ndarray]]:
        """The run directories that hold the configurations, and which they are, as places in the grid: the run itself,
        or the shards that were begun.
        """
        if self.shards is None:
            yield self, np.arange(len(self.grid))
            return
        for config, members in run_parts(self.config):
            path = config.folder
            try:
                is_finished = "summary" in run_directory.read_config(path)
            except CorruptedRunError as error:
                LOG.warning("shard %d is left out: %s", config.shard, error)
                continue
            yield LoadedRun(path, config, config.grid(), is_finished=is_finished), members

    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints, ascending; of shards, of any of them."""
        return sorted({step for part, _ in self.parts() for step in run_directory.checkpoint_steps(part.path)})


def load_run(
    path: str | os.PathLike[str], *, dataset: str | None = None, data_dir: str | None = None, model: str | None = None
) -> LoadedRun:
    """Open a run for a look at its checkpoints. Writes nothing.

    Args:
        path: the run directory, or the folder of a grid in shards.
        dataset: the npz file, where the data set is one: paths in config.json are not followed.
        data_dir: as for `RunConfig`.
        model: as for `resume_run`.

    Raises:
        ConfigError: no run, or other images than it was trained on.
    """
    path, shards = Path(path), read_shards(path)
    manifest = run_directory.read_config(path) if shards is None else shards.manifest
    config = from_manifest(manifest, path, dataset=dataset, data_dir=data_dir, model=model)
    check_images(config, manifest)
    start_step, is_finished = run_directory.first_step(manifest), "summary" in manifest
    return LoadedRun(path, config, config.grid(), start_step, is_finished, shards)


def select_checkpoints(run: LoadedRun, names: Sequence[str]) -> list[int]:
    """The checkpoints of some names: ``all``, ``last``, or numbers of updates.

    Raises:
        ConfigError: no such checkpoint.
    """
    saved = run.checkpoint_steps()
    accepted = f"all, last, or of {', '.join(map(str, saved)) or 'none: the run has no checkpoint'}"
    if not saved:
        raise ConfigError("--checkpoints", " ".join(names), accepted)
    chosen: set[int] = set()
    for name in names:
        if name in ("all", "last"):
            chosen.update(saved if name == "all" else saved[-1:])
        elif name.isdecimal() and int(name) in saved:
            chosen.add(int(name))
        else:
            raise ConfigError("--checkpoints", name or "an empty word", accepted)
    return sorted(chosen)


def select_configurations(run: LoadedRun, select: Mapping[str, Sequence[float]]) -> list[int]:
    """The configurations whose hyperparameters are among the selected values.

    Raises:
        ConfigError: an axis or a value that the run has not.
    """
    selected = np.ones(len(run.grid), bool)
    for name, wanted in select.items():
        if name not in run.grid.coords:
            raise ConfigError("--select", name, "one of " + ", ".join(run.grid.coords))
        column = run.grid.coords[name].astype(np.float64)
        match = np.isclose(column[:, None], np.asarray(wanted), rtol=1e-9, atol=0)
        if not match.any(0).all():
            missing = np.asarray(wanted)[~match.any(0)][0]
            values = ", ".join(f"{v:.15g}" for v in np.unique(column))
            raise ConfigError("--select", f"{name}={missing:.15g}", f"one of {values}")
        selected &= match.any(1)
    if not selected.any():
        raise ConfigError("--select", " ".join(select), "values that one configuration has together")
    return np.flatnonzero(selected).tolist()


def load_states(run: LoadedRun, step: int, configs: Sequence[int]) -> TrainState:
    """The states of some configurations in a checkpoint, stacked ``(configs, ...)``. Within the run's precision.

    Args:
        run: the run.
        step: of the checkpoint.
        configs: the configurations, in the grid's order.

    Raises:
        CorruptedRunError: the checkpoint is corrupted.
    """
    template, arrays = abstract_state(run), load_arrays(run, step)
    leaves = [
        jnp.asarray(arrays[name][list(configs)]) if leaf.size else jnp.zeros((len(configs), *leaf.shape), leaf.dtype)
        for name, leaf in named_leaves(template)
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def load_arrays(run: LoadedRun, step: int) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, configurations first.

    Of a shard that has no such checkpoint, numbers are NaN and whole numbers -1.

    Raises:
        CorruptedRunError: the checkpoint is corrupted.
    """
    data = run.config.data
    if run.shards is None:
        like = build.abstract_states(run.config, data.image_shape, data.num_classes)
        return load_checkpoint(run.path, step, like)
    whole: dict[str, np.ndarray] = {}
    for part, members in run.parts():
        if step not in run_directory.checkpoint_steps(part.path):
            continue
        for name, array in load_arrays(part, step).items():
            if name not in whole:
                missing = np.nan if array.dtype.kind == "f" else -1 if array.dtype.kind == "i" else 0
                whole[name] = np.full((len(run.grid), *array.shape[1:]), missing, array.dtype)
            whole[name][members] = array
    return whole


def abstract_state(run: LoadedRun) -> TrainState:
    """Shapes and dtypes of one configuration's training state. Within the run's precision."""
    return build.abstract_state(run.config, run.config.data.image_shape, run.config.data.num_classes)


def with_metadata(measured: xr.Dataset, run: LoadedRun, configs: Sequence[int]) -> xr.Dataset:
    """Numbers of some configurations, with their hyperparameters, and with long names and units."""
    for name, array in measured.data_vars.items():
        if name != "reason":
            array.attrs = describe(str(name)).attributes
    return measured.assign_coords({name: ("config", run.grid.coords[name][list(configs)]) for name in AXES})


def check_least(name: str, value: int | None, least: int, more: str = "") -> None:
    """Refuse a setting with which nothing can be computed; None is none.

    Raises:
        ConfigError: it is below the least value.
    """
    if value is not None and value < least:
        raise ConfigError(f"--{name}", value, f"a whole number from {least}{more}")
