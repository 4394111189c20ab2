"""What-if runs: some configurations of a run, from one of its checkpoints on, with other hyperparameters."""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from periodic_jax.core.errors import ConfigError, PeriodicJaxError, UnreadableError
from periodic_jax.core.formatting import flag_of
from periodic_jax.runs.build import abstract_states, initial_minima
from periodic_jax.runs.callbacks import RunCallbacks
from periodic_jax.runs.config import RUN_AXES, RunConfig, check, difference, from_manifest, planned_steps
from periodic_jax.runs.run import RunResult, resume_run, run_session
from periodic_jax.runs.shards import run_parts
from periodic_jax.storage import run_directory
from periodic_jax.storage.locks import locked
from periodic_jax.storage.minima_files import PREFIX
from periodic_jax.storage.shards import read_shards
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.sweeps.sweep import Sweep

Axes = Mapping[str, Sequence[float]]


def branch_run(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    callbacks: RunCallbacks | None = None,
    step: int | None = None,
    select: Axes | None = None,
    change: Axes | None = None,
    steps: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
) -> RunResult:
    """Start a new run from a checkpoint of another one, or go on with this very one.

    Weights, statistics and momentum are those of the parent, and so are the order of the data and the numbers of the
    steps. A negative ``fixed_norm`` among the changes means the norm at the branch. A configuration that had diverged
    stays so.

    Args:
        path: the parent's run directory, or the folder of a grid in shards.
        out: the new run's.
        callbacks: as for `run_sweep`.
        step: of the checkpoint; the newest, if None.
        select: for each axis named, the values of the configurations to take; all, of axes that are not named.
        change: for each axis named, the new values, all combinations of which are run. Of such an axis one value
            must be selected, so that each new configuration has one parent.
        steps: number of the last step; the parent's, if None.
        dataset, data_dir, model: as for `resume_run`.

    Returns:
        As `run_sweep`.

    Raises:
        ConfigError: no such checkpoint or configuration, or unusable changes.
        CorruptedRunError: the checkpoint is corrupted.
        RunInterrupted: as `run_sweep`.
    """
    from periodic_jax.checkpoints.reader import load_checkpoint

    path, out = Path(path).absolute(), Path(out).absolute()  # as in `run_sweep`
    select, change = ({name: list(values) for name, values in (axes or {}).items()} for axes in (select, change))
    shards = read_shards(path)
    manifest = run_directory.read_config(path) if shards is None else shards.manifest
    parent = from_manifest(manifest, path, dataset=dataset, data_dir=data_dir, model=model)
    axes, parents = branched_axes({name: getattr(parent, name) for name in RUN_AXES}, select, change)
    parts = [(part, members) for part, members in run_parts(parent) if np.isin(parents, members).any()]
    if not np.isin(parents, [i for _, members in parts for i in members]).all():
        raise ConfigError(
            "run directory", path, "one that holds the selected configurations (some shards are not there)"
        )
    checkpoints = sorted(set.intersection(*(set(run_directory.checkpoint_steps(part.folder)) for part, _ in parts)))
    if not checkpoints:
        raise ConfigError("run directory", path, "one with checkpoints to branch from")
    is_newest, step = step is None, checkpoints[-1] if step is None else step
    if step not in checkpoints:
        raise ConfigError("--step", step, f"a checkpoint of {path}: {', '.join(map(str, checkpoints))}")
    planned = steps or planned_steps(parent)
    config = dataclasses.replace(parent, out=out, steps=planned, shards=None, shard=None, **axes)
    if planned_steps(config) <= step and steps is None and is_newest:
        raise ConfigError("--steps", "none given", f"a number above {step}, where {path} ends and the branch begins")
    if planned_steps(config) <= step and steps is None:
        raise ConfigError("--step", step, f"one below the parent's end, {planned_steps(config)}, or --steps above it")
    if planned_steps(config) <= step:
        raise ConfigError("--steps", steps, f"above {step}, where the branch begins")
    check(config)
    origin = {
        "name": path.resolve().name, "path": os.fspath(path.resolve()), "step": step,
        "selected": select, "changed": change, "config": manifest["config"],
    }  # fmt: skip
    if _is_there(config, origin):
        return resume_run(out, callbacks=callbacks, dataset=dataset, data_dir=data_dir, model=model)
    with xla.precision(parent.precision):
        states: dict[str, np.ndarray] = {}
        for part, members in parts:
            like = abstract_states(part, parent.data.image_shape, parent.data.num_classes)
            here = np.isin(parents, members)
            places = np.searchsorted(members, parents[here])
            for name, array in load_checkpoint(part.folder, step, like).items():
                if not name.startswith(PREFIX):  # where minima are saved, the first period begins with the branch
                    whole = states.setdefault(name, np.empty((len(parents), *array.shape[1:]), array.dtype))
                    whole[here] = array[places]
    run_directory.claim_directory(out)
    with locked(out) as check_held, xla.precision(config.precision):
        callbacks = (callbacks or RunCallbacks()).checking(check_held)
        prepare = functools.partial(_write_first_checkpoint, config, states, step, "fixed_norm" in change)
        return run_session(config, {"parent": origin}, callbacks, prepare=prepare)


def branched_axes(parent: Axes, select: Axes, change: Axes) -> tuple[dict[str, tuple[float, ...]], np.ndarray]:
    """The axes of a branch: the new values where there are some, else those selected of the parent's.

    Returns:
        The axes, and for each configuration of the branch the index of the parent's configuration whose state it takes.

    Raises:
        ConfigError: an unknown axis, a value that the parent has not, or several parents for one configuration.

    Example:
        >>> axes, parents = branched_axes({"lr": (0.1, 1.0), "seed": (0, 1)}, {"lr": [1.0]}, {"lr": [0.3, 0.4]})
        >>> axes, parents.tolist()
        ({'lr': (0.3, 0.4), 'seed': (0, 1)}, [2, 3, 2, 3])
    """
    for name in (*select, *change):
        if name not in parent:
            raise ConfigError("--select", name, "one of " + ", ".join(parent))
    axes: dict[str, tuple[float, ...]] = {}
    positions: list[list[int]] = []  # of each axis's values on the parent's axis
    for name, values in parent.items():
        chosen = [_nearest(name, wanted, values) for wanted in select.get(name, values)]
        if name in change and len(chosen) != 1:
            wanted = f"one value in --select, since {flag_of(name)} is changed: {' '.join(f'{v:g}' for v in values)}"
            given = ",".join(f"{v:g}" for v in select.get(name, ()))
            raise ConfigError("--select", f"{name}={given}" if given else f"no {name}", wanted)
        axes[name] = tuple(change[name]) if name in change else tuple(values[i] for i in chosen)
        positions.append(chosen * len(axes[name]) if name in change else chosen)
    indices = np.arange(math.prod(map(len, parent.values()))).reshape([len(values) for values in parent.values()])
    return axes, indices[np.ix_(*positions)].ravel()


def _is_there(config: RunConfig, origin: Mapping[str, Any]) -> bool:
    """Whether the directory holds this very branch."""
    try:
        manifest = run_directory.read_config(config.folder)
    except UnreadableError:
        raise
    except PeriodicJaxError:
        return False
    before = {**manifest.get("parent", {}), "config": None}  # the parent may have been made longer meanwhile
    return before == json.loads(json.dumps({**origin, "config": None})) and not difference(config, manifest)


def _nearest(name: str, wanted: float, values: Sequence[float]) -> int:
    """The position of the axis's value that a rounded one such as 0.0316227766 means."""
    close = np.flatnonzero(np.isclose(wanted, values, rtol=1e-9, atol=0))
    if not len(close):
        accepted = "one of " + ", ".join(f"{v:.15g}" for v in sorted(set(values)))
        raise ConfigError("--select", f"{name}={wanted:.15g}", accepted)
    return int(close[0])


def _write_first_checkpoint(
    config: RunConfig, states: dict[str, np.ndarray], step: int, has_new_sphere: bool, sweep: "Sweep"
) -> None:
    """Write the first checkpoint, from which the branch can always be resumed."""
    import jax

    from periodic_jax.checkpoints.writer import write_first
    from periodic_jax.training.state import state_of

    if has_new_sphere:
        sweep.restore(states, step)
        task = sweep.states.task
        initial = jax.jit(jax.vmap(jax.vmap(lambda params: state_of(task, {"params": params}).opt_state)))
        replaced = sweep.placement.fetch(sweep.states.replace(opt_state=initial(sweep.states.params)))
        states = states | {name: array for name, array in replaced.items() if "initial_norms" in name}
    if config.keep_period_minima:
        states = states | initial_minima(states, config.keep_period_minima)
    write_first(config.folder, step, states)
