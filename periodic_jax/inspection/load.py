"""The states that a run's checkpoints hold, as training states of some of its configurations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams, SweepGrid
from periodic_jax.runs import build
from periodic_jax.runs.config import RunConfig, check_images, from_manifest
from periodic_jax.storage import run_directory
from periodic_jax.sweeps.placement import named_leaves
from periodic_jax.training.state import TrainState


class LoadedRun(NamedTuple):
    """A run directory that was trained by this package."""

    path: Path
    config: RunConfig
    grid: SweepGrid

    def hparams(self, configs: Sequence[int]) -> HParams:
        """The hyperparameters of some configurations, ``(configs,)``."""
        return HParams(*(np.asarray(column)[np.asarray(configs)] for column in self.grid.hparams()))


def load_run(path: str | os.PathLike[str], *, dataset: str | None = None, data_dir: str | None = None) -> LoadedRun:
    """Open a run for a look at its checkpoints. Writes nothing.

    Args:
        path: the run directory.
        dataset: the npz file, where the data set is one: paths in config.json are not followed.
        data_dir: as for `RunConfig`.

    Raises:
        ConfigError: no run, or other images than it was trained on.
    """
    path = Path(path)
    manifest = run_directory.read_config(path)
    config = from_manifest(manifest, path, dataset=dataset, data_dir=data_dir)
    check_images(config, manifest)
    return LoadedRun(path, config, config.grid())


def select_checkpoints(run: LoadedRun, names: Sequence[str]) -> list[int]:
    """The checkpoints that are named: ``all``, ``last``, or numbers of updates.

    Raises:
        ConfigError: no such checkpoint.
    """
    saved = run_directory.checkpoint_steps(run.path)
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


def load_states(
    run: LoadedRun, step: int, configs: Sequence[int] | None = None, folder: Path | None = None
) -> TrainState:
    """The states of some configurations in a checkpoint, stacked ``(configs, ...)``. Within the run's precision.

    Args:
        run: the run.
        step: of the checkpoint.
        configs: the configurations, in the grid's order; all, if None.
        folder: that holds ``checkpoints``; the run directory, if None.

    Raises:
        CorruptedRunError: the checkpoint is corrupted.
    """
    template, arrays = abstract_state(run), load_arrays(run, step, folder)
    chosen = np.arange(len(run.grid)) if configs is None else np.asarray(configs)
    leaves = [
        jnp.asarray(arrays[name][chosen]) if leaf.size else jnp.zeros((len(chosen), *leaf.shape), leaf.dtype)
        for name, leaf in named_leaves(template)
    ]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def load_arrays(run: LoadedRun, step: int, folder: Path | None = None) -> dict[str, np.ndarray]:
    """All that a checkpoint holds, configurations first; arguments as for `load_states`.

    Raises:
        CorruptedRunError: the checkpoint is corrupted.
    """
    data = run.config.data
    like = build.abstract_states(run.config, data.image_shape, data.num_classes)
    return load_checkpoint(folder or run.path, step, like)


def abstract_state(run: LoadedRun) -> TrainState:
    """Shapes and dtypes of one configuration's training state. Within the run's precision."""
    return build.abstract_state(run.config, run.config.data.image_shape, run.config.data.num_classes)
