"""Runs a configuration, or goes on with a run: from a `RunConfig` to a run directory and its analysis."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from periodic_jax import analysis
from periodic_jax.checkpoints.verification import corruptions
from periodic_jax.core.errors import (
    ConfigError,
    CorruptedRunError,
    PeriodicJaxError,
    RunInterrupted,
    RunNotFoundError,
    UnreadableError,
    UsageError,
)
from periodic_jax.core.formatting import counted
from periodic_jax.reporting import tables
from periodic_jax.runs import build
from periodic_jax.runs.callbacks import RunCallbacks
from periodic_jax.runs.config import RunConfig, check, planned_steps
from periodic_jax.runs.manifest import check_images, difference, finished_manifest, from_manifest, next_manifest
from periodic_jax.runs.shards import enter_shard, no_folder_of_shards
from periodic_jax.storage import run_directory
from periodic_jax.storage.locks import LEASE_FILE, LOCK_FILE, locked
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.writer import finalize_store
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.sweeps.sweep import Sweep

FINISHED = "{0}: the run is finished: nothing is left to train; periodic-jax analyze {0} prints its results"


@dataclass(frozen=True, eq=False)
class RunResult:
    """A finished run. It stands for the path of its directory in `open`, `pathlib.Path`, `open_run` and ``/``.

    Attributes:
        path: the run directory.
        analysis: the result of `analysis.analyze`.
        is_new: it was trained by the call that returned it, and not found finished.
    """

    path: Path
    analysis: xr.Dataset = field(repr=False)
    is_new: bool = True

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str | os.PathLike[str]) -> Path:
        return self.path / name


def run_sweep(config: RunConfig, *, callbacks: RunCallbacks | None = None) -> RunResult:
    """Train all configurations and record every step in a run directory.

    Everything that can be wrong with the configuration is refused before anything is compiled or written. A directory
    that holds this very run is continued, or read where the run is finished: a cell of a notebook can be run again.
    Without ``out`` that is looked for in runs/sweep, runs/sweep-2 ..., and a new one of these is taken where there is
    none.

    Args:
        config: what to run.
        callbacks: for an early stop, and for progress and messages other than a bar and prints.

    Returns:
        The run directory, for `open_run`, and its analysis.

    Raises:
        ConfigError: a setting that cannot be used, or a directory that holds another run.
        RunInterrupted: ``callbacks.should_stop`` asked for it, or something could not be written.

    Example:
        >>> import tempfile, periodic_jax as pj
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pj.run_sweep(RunConfig(out=f"{folder}/run", lr=(0.1, 1.0), width=2, steps=3))
        ...     pj.open_run(run).loss.shape, (run / "summary.csv").exists(), run.analysis.regime.item(0)
        ((2, 3), True, 'undecided')
    """
    callbacks = callbacks or RunCallbacks()
    if config.out is None:
        config = dataclasses.replace(config, out=_default_folder(config, callbacks.log))
    # Absolute, since a callback or another thread may change the working directory while the run goes on.
    config = claim_run(dataclasses.replace(config, out=config.folder.absolute()), callbacks.log)
    path = config.folder
    with locked(path) as check_held:
        callbacks = callbacks.checking(check_held)
        manifest = resumable_manifest(config) or {}
        if "summary" in manifest:
            check_images(config, manifest)
            return finished_result(path, callbacks.log)
        if manifest:
            callbacks.log(f"{path} holds this run, unfinished: going on with it")
            recorded = from_manifest(manifest, path, dataset=config.dataset, model=config.model)
            config = dataclasses.replace(config, layout=recorded.layout)
        return run_session(config, manifest, callbacks)


def _default_folder(config: RunConfig, log: Callable[[str], None]) -> Path:
    """Where this very run is, of the folders that runs without ``out`` have, or a new one of them."""
    if config.shards is not None:
        raise no_folder_of_shards()
    check(config)
    for folder in run_directory.default_folders("sweep"):
        if not folder.exists():
            log(f"run directory: {folder}")
            return folder
        with contextlib.suppress(ConfigError, RunNotFoundError, CorruptedRunError):  # it holds no run, or another one
            manifest = run_directory.read_config(folder)
            check_images(config, manifest)
            if not difference(config, manifest):
                return folder
    raise AssertionError("there is always a next folder")


def claim_run(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> RunConfig:
    """Refuse what cannot run before anything is compiled or written, and create the folder of a new run.

    Returns:
        The configuration of the run to train: that of the shard, where the grid has some.

    Raises:
        ConfigError: as `run_sweep`.
    """
    config = enter_shard(config, log)
    if config.shards is None:  # that of a shard is checked
        check(config)
    if resumable_manifest(config) is None:
        run_directory.claim_directory(config.folder)
    return config


def finished_result(path: Path, log: Callable[[str], None]) -> RunResult:
    """A run in which nothing is left to train, and a line that says so."""
    log(FINISHED.format(path))
    return RunResult(path, analysis.analyze(open_run(path, flat=True)), is_new=False)


def resume_run(
    path: str | os.PathLike[str],
    *,
    callbacks: RunCallbacks | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
    truncate: bool = False,
) -> RunResult:
    """Continue an unfinished run, on a CPU to the bits it would have had undisturbed, or extend a finished one. A run
    that has the steps already is read.

    Args:
        path: the run directory.
        callbacks: as for `run_sweep`.
        steps: a new number of the last step, at least the planned one; a schedule keeps its end.
        epochs: the same in epochs.
        dataset: the npz file, where the data set is one: paths in config.json are not followed.
        data_dir: as for `RunConfig`.
        model: the import path of the run's network, where it is one of your own: none in config.json is imported.
        truncate: where telemetry is corrupted, go back to the checkpoint before it, and compute it again. Refused of a
            finished run that is verified.

    Returns:
        As `run_sweep`.

    Raises:
        ConfigError: fewer steps than the run has.
        RunNotFoundError: there is no run.
        CorruptedRunError: the run is corrupted.
        RunInterrupted: as `run_sweep`.
    """
    path = Path(path).absolute()  # as in `run_sweep`
    run_directory.read_config(path)  # before a lock is put where there is no run
    with locked(path) as check_held:
        callbacks = (callbacks or RunCallbacks()).checking(check_held)
        manifest = run_directory.read_config(path)
        config = from_manifest(manifest, path, dataset=dataset, data_dir=data_dir, model=model)
        before = planned_steps(config)
        if steps is not None or epochs is not None:
            config = dataclasses.replace(config, steps=steps, epochs=epochs)
        check(config)
        if (after := planned_steps(config)) < before:
            given = ("--steps", steps) if epochs is None else (f"--epochs {epochs}", f"{after} steps")
            raise ConfigError(*given, f"at least the {before} steps of the run")
        is_finished = after == before and "summary" in manifest
        if is_finished and (result := _finished_or_mended(config, manifest, truncate, callbacks.log)):
            return result
        return run_session(config, manifest, callbacks, truncate=truncate)


def _finished_or_mended(
    config: RunConfig, manifest: dict[str, Any], truncate: bool, log: Callable[[str], None]
) -> RunResult | None:
    """A finished run, its metadata and coordinates made anew where they are corrupted; None where it must train again.

    Raises:
        ConfigError: it is verified, and ``truncate`` is set.
        CorruptedRunError: it is corrupted otherwise, and ``truncate`` is not set.
    """
    from periodic_jax.runs.session import rebuild_finished

    path, states = config.folder, partial(build.recorded_states, model=config.model)
    found = list(corruptions(path, manifest, states))
    if not found and truncate:
        raise UsageError("--truncate", f"{path} is finished, and nothing in it is corrupted", "leave it out")
    if not found:
        return finished_result(path, log)
    remedy = f"periodic-jax resume {path} --truncate computes it again"
    with xla.precision(config.precision):
        rebuilt = rebuild_finished(build.build_sweep(config), build.plan_session(config, manifest))
    if rebuilt:
        log(f"{path}: rebuilt from {run_directory.CONFIG_FILE}: {', '.join(rebuilt)}")
        found = list(corruptions(path, manifest, states))
    if found and truncate:
        return None
    file, _, reason = found[0].partition(": ") if found else ("", "", "")
    if (
        file.startswith(f"{run_directory.CHECKPOINTS}/")
        and file != f"{run_directory.CHECKPOINTS}/{planned_steps(config)}"
    ):
        remedy = f"periodic-jax resume {path} --truncate removes it"
    if not rebuilt:
        raise CorruptedRunError(path / file, reason, remedy)
    if found:
        log(f"{path / file}: still corrupted ({reason}); {remedy}")
    return finished_result(path, log)


def resumable_manifest(config: RunConfig) -> dict[str, Any] | None:
    """The config.json of the run that the configuration's directory holds; None where it may be a new one.

    Raises:
        ConfigError: it holds another run.
    """
    path = config.folder
    try:
        manifest = run_directory.read_config(path)
    except RunNotFoundError:
        run_directory.check_unused(path)
        return None
    except UnreadableError:
        raise
    except PeriodicJaxError as error:
        raise ConfigError("--out", path, f"a folder that holds no run yet ({error})") from None
    if differing := difference(config, manifest):
        remedy = f"give another folder; periodic-jax analyze {path} and open_run read the run there"
        raise UsageError("--out", f"{path} holds another run: {differing}", remedy)
    return manifest


def run_session(
    config: RunConfig,
    manifest: dict[str, Any],
    callbacks: RunCallbacks,
    *,
    truncate: bool = False,
    prepare: Callable[["Sweep"], None] = lambda sweep: None,
) -> RunResult:
    """One session of the run in a directory that is claimed and locked.

    Args:
        config: that of the run, checked.
        manifest: the content of config.json; without ``config``, for a new run.
        callbacks, truncate: as for `resume_run`.
        prepare: called before config.json is written.

    Raises:
        ConfigError: no room, or other images than before.
        CorruptedRunError: corrupted telemetry.
        RunInterrupted: as `run_sweep`.
    """
    from periodic_jax.checkpoints.writer import finalize_first
    from periodic_jax.runs.planning import check_room, estimate_resources
    from periodic_jax.runs.session import find_resume_point, saying_how_to_go_on, train_session, what_is_kept

    started, path, is_new = time.perf_counter(), config.folder, "config" not in manifest
    with _without_a_trace(path), xla.precision(config.precision):
        xla.check_reductions()
        xla.say_if_cores_share_a_device()
        finalize_store(path)
        sweep, plan = build.build_sweep(config), build.plan_session(config, manifest)
        check_room(estimate_resources(sweep, sweep.grid, plan), path)
        start = None
        if not is_new:  # verified before anything is compiled or written
            finalize_first(path, forget=False)
            start = find_resume_point(sweep, plan, truncate, callbacks.log)
        manifest = next_manifest(config, manifest, sweep.compile())
        plan = dataclasses.replace(plan, run_id=manifest.get("id"))
        try:
            if is_new:
                finalize_first(path, forget=True)
            prepare(sweep)
            run_directory.write_config(path, manifest)
            finalize_first(path, forget=False)
            with callbacks.showing_progress() as shown, saying_how_to_go_on(plan, callbacks.log):
                outcome = train_session(sweep, plan, shown, start)
            if outcome.step < plan.steps:
                done = f"{outcome.step} of {counted(plan.steps, 'step')}"
                raise RunInterrupted(f"stopped after {done}; to go on: periodic-jax resume {path}", sweep.stopped)
            analyzed = analysis.analyze(open_run(path, flat=True))
            tables.to_csv(analyzed, path / run_directory.SUMMARY_FILE)
            run_directory.write_config(path, finished_manifest(manifest, sweep, outcome, started))
        except OSError as error:
            raise RunInterrupted(what_is_kept(path, plan, error), 1) from error
    return RunResult(path, analyzed)


@contextlib.contextmanager
def _without_a_trace(path: Path) -> Iterator[None]:
    """Leave no folder behind where a new run is refused."""
    try:
        yield
    except (PeriodicJaxError, KeyboardInterrupt):
        if not (path / run_directory.CONFIG_FILE).exists():
            with contextlib.suppress(OSError):  # there is something else in it
                for name in (LOCK_FILE, LEASE_FILE):
                    (path / name).unlink(missing_ok=True)
                path.rmdir()
        raise
