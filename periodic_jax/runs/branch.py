"""What-if runs: some configurations of a run, from one of its checkpoints on, with other hyperparameters."""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np
from typing_extensions import Unpack

from periodic_jax.core.errors import ConfigError, PeriodicJaxError, UnreadableError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import INITIAL_SEEDS, RUN_AXES
from periodic_jax.runs.build import abstract_states, initial_minima
from periodic_jax.runs.callbacks import RunCallbacks
from periodic_jax.runs.config import RunConfig, check, planned_steps
from periodic_jax.runs.manifest import difference, from_manifest
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


class BranchOptions(TypedDict, total=False):
    """What a branch may be told beside its checkpoint, as `branch_run` has it."""

    select: Axes | None
    change: Axes | None
    steps: int | None
    dataset: str | None
    data_dir: str | None
    model: str | None


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
    options = BranchOptions(
        select=select, change=change, steps=steps, dataset=dataset, data_dir=data_dir, model=model
    )  # fmt: skip
    return _start(_plan(path, out, step, options), callbacks)


def branch_from_each(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    checkpoints: Sequence[int],
    *,
    callbacks: RunCallbacks | None = None,
    **options: Unpack[BranchOptions],
) -> list[RunResult]:
    """Start the same branch from each of several checkpoints, one after the other, or go on with these very ones.

    Each is a run directory of its own, ``out/branch_step=STEP``: runs that begin at different steps cannot be one
    compiled program. ``open_run(out)`` gives all as one Dataset, with a dimension ``branch_step``.

    Args:
        path, callbacks: as for `branch_run`.
        out: the folder of the new runs.
        checkpoints: their steps.
        **options: ``select``, ``change``, ``steps``, ``dataset``, ``data_dir`` and ``model``, as for `branch_run`.

    Returns:
        The runs, in the order of the checkpoints.

    Raises:
        ConfigError: as `branch_run`, of any of them and before the first one is begun.
        CorruptedRunError: a checkpoint is corrupted.
        RunInterrupted: as `run_sweep`; the same call goes on.
    """
    if not checkpoints or len(set(checkpoints)) < len(checkpoints):
        given = " ".join(map(str, checkpoints)) or "no checkpoint"
        raise ConfigError("--step", given, "checkpoints, each once")
    run_directory.check_unused(Path(out))
    plans = [_plan(path, run_directory.branch_folder(Path(out), step), step, options) for step in checkpoints]
    for plan in plans:
        if not _is_there(plan.config, plan.origin):
            run_directory.check_unused(plan.config.folder)
    return [_start(plan, callbacks) for plan in plans]


class _BranchPlan(NamedTuple):
    """What a branch is, with nothing computed or written."""

    parent: RunConfig
    config: RunConfig
    origin: dict[str, Any]  # what config.json says of the parent
    parts: list[tuple[RunConfig, np.ndarray]]  # the run directories of the parent, and their configurations
    parents: np.ndarray  # of each configuration, its parent's place
    files: dict[str, Any]  # data set, its folder and model, as for `resume_run`


def _plan(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    step: int | None,
    options: BranchOptions,
) -> _BranchPlan:
    """Refuse a branch that cannot be; arguments as for `branch_run`."""
    path, out = Path(path).absolute(), Path(out).absolute()  # as in `run_sweep`
    steps, files = options.get("steps"), {name: options.get(name) for name in ("dataset", "data_dir", "model")}
    select, change = (
        {name: list(values) for name, values in (axes or {}).items()}
        for axes in (options.get("select"), options.get("change"))
    )
    shards = read_shards(path)
    manifest = run_directory.read_config(path) if shards is None else shards.manifest
    parent = from_manifest(manifest, path, **files)
    _check_seeds(parent, change)
    axes, parents = branched_axes({name: getattr(parent, name) for name in RUN_AXES}, select, change, parent.points)
    parts = [(part, members) for part, members in run_parts(parent) if np.isin(parents, members).any()]
    if not np.isin(parents, [i for _, members in parts for i in members]).all():
        raise UsageError(path, "shards of selected configurations are not there", "train them first, or select others")
    checkpoints = sorted(set.intersection(*(set(run_directory.checkpoint_steps(part.folder)) for part, _ in parts)))
    if not checkpoints:
        raise UsageError(path, "it has no checkpoint to branch from", f"periodic-jax resume {path} goes on with it")
    is_newest, step = step is None, checkpoints[-1] if step is None else step
    if step not in checkpoints:
        raise ConfigError("--step", step, f"a checkpoint of {path}: {', '.join(map(str, checkpoints))}")
    planned = steps or planned_steps(parent)
    points = tuple(name for name in axes if name in parent.points or (parent.points and name in change))
    eval_at = tuple(at for at in parent.eval_at if at <= planned)
    config = dataclasses.replace(
        parent, out=out, steps=planned, points=points, eval_at=eval_at, shards=None, shard=None, **axes
    )
    if planned_steps(config) <= step and steps is None and is_newest:
        raise UsageError("--steps", f"not given, and {path} ends where the branch begins", f"give more than {step}")
    if planned_steps(config) <= step and steps is None:
        raise ConfigError("--step", step, f"one below the parent's end, {planned_steps(config)}, or --steps above it")
    if planned_steps(config) <= step:
        raise ConfigError("--steps", steps, f"above {step}, where the branch begins")
    check(config)
    origin = {
        "name": path.resolve().name, "path": os.fspath(path.resolve()), "step": step,
        "selected": select, "changed": change, "config": manifest["config"],
    }  # fmt: skip
    return _BranchPlan(parent, config, origin, parts, parents, files)


def _start(plan: _BranchPlan, callbacks: RunCallbacks | None) -> RunResult:
    """Begin a branch, or go on with it."""
    from periodic_jax.checkpoints.reader import load_checkpoint

    parent, config, origin, parts, parents, files = plan
    out, step = config.folder, origin["step"]
    if _is_there(config, origin):
        return resume_run(out, callbacks=callbacks, **files)
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
        prepare = functools.partial(_write_first_checkpoint, config, states, step, "fixed_norm" in origin["changed"])
        return run_session(config, {"parent": origin}, callbacks, prepare=prepare)


def _check_seeds(parent: RunConfig, change: Axes) -> None:
    """Refuse seeds that would change nothing, since the weights are the parent's."""
    for name in INITIAL_SEEDS:
        if name in change:
            raise UsageError(flag_of(name), "the weights are the parent's", "leave it out")
    if "seed" in change and "data_seed" not in change and max(parent.data_seed) >= 0:
        raise UsageError("--seed", "the parent has a --data-seed for the order of its data", "give --data-seed")


def branched_axes(
    parent: Axes, select: Axes, change: Axes, points: Sequence[str] = ()
) -> tuple[dict[str, tuple[float, ...]], np.ndarray]:
    """The axes of a branch: the new values where there are some, else those selected of the parent's.

    Args:
        parent: the values of its axes.
        select, change: as for `branch_run`.
        points: the axes whose values the parent has together, and the branch too, with those that are changed.

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
    if points:
        return _branched_points(parent, select, change, points)
    axes: dict[str, tuple[float, ...]] = {}
    positions: list[list[int]] = []  # of each axis's values on the parent's axis
    for name, values in parent.items():
        chosen = [_nearest(name, wanted, values) for wanted in select.get(name, values)]
        if name in change and len(chosen) != 1:
            raise _ambiguous(name, select, values)
        axes[name] = tuple(change[name]) if name in change else tuple(values[i] for i in chosen)
        positions.append(chosen * len(axes[name]) if name in change else chosen)
    indices = np.arange(math.prod(map(len, parent.values()))).reshape([len(values) for values in parent.values()])
    return axes, indices[np.ix_(*positions)].ravel()


def _branched_points(
    parent: Axes, select: Axes, change: Axes, points: Sequence[str]
) -> tuple[dict[str, tuple[float, ...]], np.ndarray]:
    """`branched_axes` of a parent that is no product: each selected point with all combinations of the new values."""
    configs = len(parent[points[0]])
    columns = {name: np.asarray(values if name in points else [*values] * configs) for name, values in parent.items()}
    chosen = np.ones(configs, bool)
    for name, wanted in select.items():
        chosen &= np.isin(columns[name], [columns[name][_nearest(name, value, columns[name])] for value in wanted])
    rows = np.flatnonzero(chosen)
    if not len(rows):
        raise ConfigError("--select", " ".join(select), "values that one configuration has together")
    for name in change:
        if len(of_rows := np.unique(columns[name][rows])) != 1:
            raise _ambiguous(name, select, of_rows)
    news = list(itertools.product(*change.values()))
    axes = {name: values[rows].repeat(len(news)).tolist() for name, values in columns.items()}
    axes |= {name: [new[k] for new in news] * len(rows) for k, name in enumerate(change)}
    together = {*points, *change}
    return {name: tuple(v if name in together else v[:1]) for name, v in axes.items()}, rows.repeat(len(news))


def _ambiguous(name: str, select: Axes, values: Sequence[float] | np.ndarray) -> UsageError:
    """Several configurations of the parent, of which a changed one could be the branch."""
    of = "several values" if select.get(name) else "no value"
    remedy = f"give one value that it had: {' '.join(f'{v:.15g}' for v in values)}"
    return UsageError("--select", f"{of} of {name}, which is changed by {flag_of(name)}", remedy)


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


def _nearest(name: str, wanted: float, values: Sequence[float] | np.ndarray) -> int:
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
