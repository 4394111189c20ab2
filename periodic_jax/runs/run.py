"""From a configuration to a run directory: data, network, grid, sweep, telemetry, checkpoints, summary."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from periodic_jax.core.errors import ConfigError, PeriodicJaxError, RunInterrupted
from periodic_jax.core.formatting import counted
from periodic_jax.runs.build import build_sweep, session_plan
from periodic_jax.runs.config import (
    RUN_AXES,
    RunConfig,
    check,
    difference,
    from_manifest,
    planned_steps,
    steps_of_epoch,
)
from periodic_jax.runs.manifest import next_manifest, write_summary
from periodic_jax.runs.verify import corruptions
from periodic_jax.storage import run_directory
from periodic_jax.storage.locks import LOCK_FILE, locked
from periodic_jax.storage.run_directory import checkpoint_steps
from periodic_jax.storage.writer import finalize_store
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.sweeps.sweep import Chunk, Sweep


__all__ = [
    "RUN_AXES",
    "RunConfig",
    "check",
    "planned_steps",
    "resumable_manifest",
    "resume_run",
    "run_sweep",
    "steps_of_epoch",
]

Progress = Callable[["Chunk", int], None]


def run_sweep(
    config: RunConfig,
    *,
    progress: Progress | None = None,
    stop: Callable[[], int] = lambda: 0,
    say: Callable[[str], None] = print,
    analysed: Callable[[xr.Dataset], None] = lambda found: None,
) -> Path:
    """Train all configurations and record every step in a run directory.

    Everything that can be wrong with the configuration is refused before anything is compiled or written. A directory
    that holds this very run, unfinished, is continued.

    Args:
        config: what to run.
        progress: called with a chunk and the number of configurations: with an empty chunk when all is accepted and
            training begins, then after each chunk.
        stop: asked once a chunk; anything but 0 stops the run after a checkpoint, and is the `RunInterrupted`'s status.
        say: called with what the user should know, a line at a time.
        analysed: called at the end with the analysis of the run.

    Returns:
        The run directory, for `open_run`.

    Raises:
        ConfigError: a setting that cannot be used, or a directory that holds another run, or a finished one.
        RunInterrupted: ``stop`` asked for it, or something could not be written.

    Example:
        >>> import tempfile, periodic_jax as pj
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pj.run_sweep(RunConfig(out=f"{folder}/run", lr=(0.1, 1.0), width=2, steps=3))
        ...     pj.open_run(path).loss.shape
        (2, 3)
    """
    check(config)
    path = Path(config.out)
    if resumable_manifest(config) is None:
        run_directory.claim_directory(path)
    with locked(path):
        record = resumable_manifest(config)
        if record is not None:
            config = dataclasses.replace(config, layout=from_manifest(record, path, dataset=config.dataset).layout)
        return run_session(config, record, progress=progress, stop=stop, say=say, analysed=analysed)


def resume_run(
    path: str | Path,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    truncate: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], int] = lambda: 0,
    say: Callable[[str], None] = print,
    analysed: Callable[[xr.Dataset], None] = lambda found: None,
) -> Path:
    """Continue an unfinished run to the bits it would have had undisturbed, or extend a finished one.

    Args:
        path: the run directory.
        steps: a new number of the last step, at least the planned one; a schedule keeps its end.
        epochs: the same in epochs.
        dataset: the npz file, where the data set is one: paths in config.json are not followed.
        data_dir: as for `RunConfig`.
        truncate: where telemetry is corrupted, go back to the checkpoint before it, and compute it again. Refused of a
            finished run that is verified.
        progress, stop, say, analysed: as for `run_sweep`.

    Returns:
        The run directory.

    Raises:
        ConfigError: a finished run without a new end.
        RunNotFoundError: there is no run.
        CorruptedRunError: the run is corrupted.
        RunInterrupted: as `run_sweep`.
    """
    path = Path(path)
    run_directory.read_config(path)  # before a lock is put where there is no run
    with locked(path):
        record = run_directory.read_config(path)
        config = from_manifest(record, path, dataset=dataset, data_dir=data_dir)
        if steps is not None and epochs is not None:
            raise ConfigError("--steps", f"{steps} with --epochs {epochs}", "either --steps or --epochs")
        before = planned_steps(config)
        if steps is not None or epochs is not None:
            check(dataclasses.replace(config, steps=steps, epochs=epochs))
            after = planned_steps(dataclasses.replace(config, steps=steps, epochs=epochs))
            if after < before:
                raise ConfigError("--steps", after, f"at least the {before} steps of the run")
            config = dataclasses.replace(config, steps=after)
        if planned_steps(config) == before and "summary" in record:
            if not truncate:
                raise ConfigError("run directory", path, f"an unfinished run, or --steps above {before} to extend it")
            _check_corrupted(path)
        check(config)
        return run_session(config, record, truncate=truncate, progress=progress, stop=stop, say=say, analysed=analysed)


def _check_corrupted(path: Path) -> None:
    """Refuse to truncate a finished run that is verified.

    Raises:
        ConfigError: it is.
    """
    if not any(corruptions(path, run_directory.read_config(path))):
        raise ConfigError("--truncate", path, "a corrupted run; this one is finished and verified")


def resumable_manifest(config: RunConfig) -> dict[str, Any] | None:
    """The record of the run that the configuration's directory holds; None where it may be a new one.

    Raises:
        ConfigError: it holds another run, or this one, finished.
    """
    path = Path(config.out)
    try:
        held = (path / run_directory.CONFIG_FILE).exists()
    except OSError:
        held = False
    if not held:
        run_directory.check_unused(path)
        return None
    try:
        record = run_directory.read_config(path)
    except PeriodicJaxError as error:
        raise ConfigError("--out", path, f"a folder that holds no run yet ({error})") from None
    if other := difference(config, record):
        raise ConfigError("--out", path, f"a folder that holds no run yet, or this one ({other})")
    if "summary" in record:
        raise ConfigError("--out", path, "a folder that holds no run yet (this run is finished)")
    return record


def run_session(
    config: RunConfig,
    record: dict[str, Any] | None,
    *,
    truncate: bool = False,
    progress: Progress | None = None,
    stop: Callable[[], int] = lambda: 0,
    say: Callable[[str], None] = print,
    analysed: Callable[[xr.Dataset], None] = lambda found: None,
    prepare: Callable[["Sweep"], None] = lambda sweep: None,
) -> Path:
    """One session of the run in a directory that is claimed and locked.

    Args:
        config: that of the run, checked.
        record: the content of config.json; None, or without ``config``, for a new run.
        truncate, progress, stop, say, analysed: as for `resume_run`.
        prepare: called before config.json is written.

    Returns:
        The run directory.

    Raises:
        ConfigError: no room, or other images than before.
        CorruptedRunError: corrupted telemetry.
        RunInterrupted: as `run_sweep`.
    """
    from periodic_jax.checkpoints.writer import finalize_first
    from periodic_jax.runs.build import abstract_states
    from periodic_jax.runs.disk import check_room
    from periodic_jax.runs.session import train_session

    started, path = time.perf_counter(), Path(config.out)
    with xla.precision(config.precision), _without_a_trace(path):
        xla.check_reductions()
        abstract_states(config, config.data.image_shape, config.data.num_classes)  # refused here, where they do not fit
        finalize_store(path)
        sweep = build_sweep(config)
        new, record = "config" not in (record or {}), next_manifest(config, record, sweep)
        plan = session_plan(config, record)
        check_room(sweep, plan)
        try:
            finalize_first(path, forget=new)
            prepare(sweep)
            run_directory.write_config(path, record)
            finalize_first(path, forget=False)
            outcome = train_session(
                sweep, plan, truncate=truncate, stop=stop, say=say,
                progress=lambda chunk: progress(chunk, len(sweep.grid)) if progress else None,
            )  # fmt: skip
            if outcome.step == plan.steps:
                analysed(write_summary(path, record, sweep, outcome, started))
        except OSError as error:
            kept = max(checkpoint_steps(path), default=plan.first_step)
            reason = error.strerror or str(error)
            message = f"{path}: {reason}; all up to step {kept} is kept: periodic-jax resume {path} goes on from there"
            raise RunInterrupted(message, 1) from error
    if outcome.step < plan.steps:
        raise RunInterrupted(
            f"stopped after {outcome.step} of {counted(plan.steps, 'step')}; to go on: periodic-jax resume {path}",
            sweep.stopped,
        )
    return path


@contextlib.contextmanager
def _without_a_trace(path: Path) -> Iterator[None]:
    """Leave no folder behind where a new run is refused."""
    try:
        yield
    except PeriodicJaxError:
        if not (path / run_directory.CONFIG_FILE).exists():
            with contextlib.suppress(OSError):  # there is something else in it
                (path / LOCK_FILE).unlink()
                path.rmdir()
        raise
