"""One session of a run: from where its directory stands to its end, or to where it is stopped.

A chunk of steps counts when its telemetry, and then a checkpoint at or after its end, are on disk. A session begins
at the newest verified checkpoint, forgets what was recorded after it, and goes on: to the same bits, where the programs
give the same bits again.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.checkpoints.writer import Checkpoints
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.runs.build import initial_minima
from periodic_jax.runs.callbacks import RunCallbacks
from periodic_jax.runs.minima_recorder import MinimaRecorder
from periodic_jax.storage import verification
from periodic_jax.storage.checksums import TelemetryChecksums
from periodic_jax.storage.minima_files import WEIGHTS, discard_after, find_corrupted, find_missing_minima
from periodic_jax.storage.run_directory import (
    CHECKPOINTS,
    CONFIG_FILE,
    TELEMETRY,
    checkpoint_steps,
    read_config,
    recorded_checksums,
)
from periodic_jax.storage.verified_store import MISSING
from periodic_jax.storage.writer import Rebuilt, TelemetryLayout, TelemetryWriter, rebuild
from periodic_jax.sweeps.chunks import ChunkEnds
from periodic_jax.sweeps.sweep import Sweep


@dataclass(frozen=True)
class SessionPlan:
    """What a run is to do, besides what its `Sweep` knows.

    Attributes:
        path: the run directory, claimed and locked.
        steps: number of the last step.
        eval_every: updates between evaluations; None where they are given.
        eval_at: the updates after which to evaluate, ascending.
        first_step: number of the first step; not 0 for a branch.
        ends: the ends of former plans, after which evaluations were made.
        keep, keep_every, seconds: of the checkpoints; see `Checkpoints`.
        keep_period_minima: steps between the candidates for the lowest point of each period; None: none are saved.
        is_finished: whether the run had ended before.
        run_id: from config.json, by which files of another run are told; None in runs of earlier versions.
    """

    path: Path
    steps: int
    eval_every: int | None
    eval_at: tuple[int, ...] = ()
    first_step: int = 0
    ends: tuple[int, ...] = ()
    keep: int = 2
    keep_every: int | None = None
    seconds: float = 10.0
    keep_period_minima: int | None = None
    is_finished: bool = False
    run_id: str | None = None

    @property
    def eval_steps(self) -> list[int]:
        """The updates after which evaluations are planned."""
        regular: Sequence[int] = self.eval_at
        if self.eval_every:
            regular = range(self.first_step - self.first_step % self.eval_every, self.steps, self.eval_every)
        planned = {*regular, self.first_step, *self.ends, self.steps}
        return sorted(step for step in planned if self.first_step <= step <= self.steps)


class ResumePoint(NamedTuple):
    """Where a session begins."""

    step: int
    states: Mapping[str, np.ndarray] | None  # None: the initial ones
    rebuilt: Rebuilt = Rebuilt({}, [])  # what is to be written into the store first
    lost: Mapping[Path, str] = MappingProxyType({})  # what is to be removed first, and why: minima, older checkpoints


class SessionResult(NamedTuple):
    """How a session ended."""

    start_step: int  # updates made before
    step: int  # and now
    seconds: float  # from the end of the first chunk, whose program is compiled
    timed_steps: int  # made in that time
    checksums: TelemetryChecksums


def train_session(
    sweep: Sweep, plan: SessionPlan, callbacks: RunCallbacks, start: ResumePoint | None = None
) -> SessionResult:
    """Train to the planned end, recording every step.

    Args:
        sweep: at no step yet.
        plan: what to do.
        callbacks: what to call meanwhile.
        start: from `find_resume_point`, which is asked if it is not given.

    Returns:
        Where the run stands now.

    Raises:
        CorruptedRunError: corrupted telemetry, and ``start`` is not given.
        OSError: something could not be written; all up to the last checkpoint is kept.
    """
    minima = None
    if plan.keep_period_minima:
        minima = MinimaRecorder(sweep, plan.path, plan.keep_period_minima, plan.run_id)
    start = start or find_resume_point(sweep, plan, False, callbacks.log)
    checkpoints = Checkpoints(
        plan.path, keep=plan.keep, keep_every=plan.keep_every, seconds=plan.seconds, first_step=plan.first_step,
    )  # fmt: skip
    for file, reason in start.lost.items():
        if file.parent.name == CHECKPOINTS:
            checkpoints.drop(int(file.name))
            callbacks.log(f"removed, as no run can go on from it: {file}: {reason}")
        else:
            file.unlink(missing_ok=True)
            callbacks.log(f"removed, to be found again: {file}: {reason}")
    is_anew = start.step == plan.first_step  # nothing that is recorded counts, nor what a killed process left of it
    if start.rebuilt.files and not is_anew:
        start.rebuilt.write(plan.path)
        callbacks.log(f"rebuilt from {CONFIG_FILE}: {', '.join(sorted(start.rebuilt.files))}")
    writer = TelemetryWriter(plan.path, telemetry_layout(sweep, plan), anew=is_anew)
    writer.truncate(start.step)
    checkpoints.discard_after(start.step)
    discard_after(plan.path, start.step)
    if start.states is not None:
        sweep.restore(start.states, start.step)
        writer.write_diverged(start.states["diverged_at"])
        if minima:
            minima.restore(start.states, callbacks.log)
    callbacks.on_start(len(sweep.grid), start.step, plan.steps)  # nothing can be refused from here on

    timed_from, timed_steps = 0.0, 0
    ends = ChunkEnds(
        origin=plan.first_step, eval_at=plan.eval_at, mark_every=plan.keep_every, weights_every=plan.keep_period_minima
    )
    try:
        for chunk in sweep.chunks(
            plan.steps - start.step, eval_every=plan.eval_every, ends=ends, keep=checkpoints.due,
            stop=callbacks.should_stop,
        ):  # fmt: skip
            writer.write(chunk.first_step, chunk.telemetry)
            end = chunk.first_step + chunk.steps
            if chunk.evaluation:
                writer.write_evaluation(end, chunk.evaluation)
            writer.write_diverged(chunk.diverged_at)
            if minima:
                minima.update(chunk)
            if chunk.states is not None:
                writer.commit()
                states = sweep.placement.fetch(chunk.states)
                record = {"run": plan.run_id, **writer.checksums(end).as_json()}
                checkpoints.save(end, {**states, **minima.export()} if minima else states, record)
            callbacks.on_chunk(chunk)
            if timed_from:
                timed_steps += chunk.steps
            elif chunk.steps:
                timed_from = time.perf_counter()
    finally:
        checkpoints.wait()
    if minima and sweep.step == plan.steps:
        minima.write_unfinished()
    seconds = time.perf_counter() - timed_from if timed_from else 0.0
    return SessionResult(start.step, sweep.step, seconds, timed_steps, writer.checksums(sweep.step))


def find_resume_point(sweep: Sweep, plan: SessionPlan, truncate: bool, log: Callable[[str], None]) -> ResumePoint:
    """The newest verified checkpoint before which all telemetry is there; the first step, where there is none.

    Reads only, and compiles nothing. Without ``truncate``, saved minima are not looked at: nothing that is still to
    come depends on them.

    Raises:
        CorruptedRunError: corrupted telemetry or no verified checkpoint, and ``truncate`` is not set.
        UnreadableError: a file cannot be read now.
    """
    store, lost = plan.path / TELEMETRY, dict[Path, str]()
    if truncate and plan.keep_period_minima:
        weights = {name: array[0] for name, array in sweep.abstract_states().items() if name.startswith(WEIGHTS)}
        lost = find_corrupted(plan.path, weights, plan.run_id)
    start = newest_checkpoint(sweep, plan, plan.steps, log, truncate=truncate, lost=lost)
    if start.step == plan.first_step:
        return start
    if store.exists():
        rebuilt = rebuild(
            plan.path, telemetry_layout(sweep, plan), start.step, store_lengths(sweep, plan),
            recorded_checksums(plan.path, {}, start.step),
        )  # fmt: skip
    else:
        rebuilt = Rebuilt({}, [verification.Corruption("", None, MISSING)])
    # When each configuration diverged is in the checkpoint.
    left = [corruption for corruption in rebuilt.left if not corruption.file.startswith("diverged_at/c/")]
    if left:
        last_good = min(plan.first_step if c.first_step is None else c.first_step for c in left)
        if not truncate:
            raise _corrupted_telemetry(plan, left, last_good)
        start = newest_checkpoint(sweep, plan, last_good, log, truncate=True, lost=lost)
    if truncate:
        found = f"corrupted files of telemetry: {len(rebuilt.left)}; " if rebuilt.left else ""
        log(f"{found}going on from step {start.step}")
        start = start._replace(lost={**start.lost, **_corrupted_checkpoints(sweep, plan, start.step)})
    return start._replace(rebuilt=rebuilt)


def _corrupted_checkpoints(sweep: Sweep, plan: SessionPlan, before: int) -> dict[Path, str]:
    """The checkpoints before a step that nothing can go on from, and why: a session keeps those that are verified."""
    corrupted = {}
    for step in checkpoint_steps(plan.path):
        if step < before:
            try:
                load_checkpoint(plan.path, step, _recorded_like(sweep, plan))
            except CorruptedRunError as error:
                corrupted[plan.path / CHECKPOINTS / str(step)] = error.reason
    return corrupted


def _recorded_like(sweep: Sweep, plan: SessionPlan) -> Mapping[str, np.ndarray]:
    """Arrays of the names, shapes and dtypes that a checkpoint of the run has."""
    like = sweep.abstract_states()
    return {**like, **initial_minima(like, plan.keep_period_minima)} if plan.keep_period_minima else like


def newest_checkpoint(
    sweep: Sweep,
    plan: SessionPlan,
    most: int,
    log: Callable[[str], None],
    *,
    truncate: bool = False,
    lost: Mapping[Path, str] = MappingProxyType({}),
) -> ResumePoint:
    """The newest verified checkpoint of at most ``most`` steps.

    Args:
        sweep, plan, log: as for `find_resume_point`.
        most: the most steps.
        truncate: one with all minima found by then; the first step, where no checkpoint is verified.
        lost: the minima that are not verified.
    """
    like, reason = _recorded_like(sweep, plan), ""
    for step in reversed(checkpoint_steps(plan.path)):
        if not plan.first_step <= step <= most:
            continue
        try:
            states = load_checkpoint(plan.path, step, like)
            if truncate and plan.keep_period_minima:
                for missing in find_missing_minima(plan.path, states, step, without=lost).values():
                    raise CorruptedRunError(plan.path / CHECKPOINTS / str(step), missing, "use an earlier checkpoint")
            return ResumePoint(step, states, lost=lost)
        except CorruptedRunError as error:
            reason = reason or f"{step}: {error.reason}"
            log(f"checkpoint {step} cannot be gone on from ({error.reason}): falling back to the one before it")
    if plan.first_step:
        first = plan.path / CHECKPOINTS / str(plan.first_step)
        raise CorruptedRunError(
            first, "missing or not verified, where this run was branched", "branch again from its parent"
        )
    if (reason or plan.is_finished) and not truncate:
        remedy = f"periodic-jax resume {plan.path} --truncate computes all of the run again"
        raise CorruptedRunError(plan.path / CHECKPOINTS, reason or MISSING, remedy)
    return ResumePoint(0, None, lost=lost)


def rebuild_finished(sweep: Sweep, plan: SessionPlan) -> list[str]:
    """Make anew what config.json determines of a finished run's telemetry, where nothing else of it is corrupted.

    Returns:
        The files that were written.
    """
    recorded = recorded_checksums(plan.path, read_config(plan.path), plan.steps)
    rebuilt = rebuild(plan.path, telemetry_layout(sweep, plan), plan.steps, store_lengths(sweep, plan), recorded)
    if rebuilt.left:
        return []
    rebuilt.write(plan.path)
    return sorted(rebuilt.files)


def telemetry_layout(sweep: Sweep, plan: SessionPlan) -> TelemetryLayout:
    """What the telemetry has room for."""
    return TelemetryLayout(
        sweep.grid, plan.steps, plan.eval_steps, sweep.empty_telemetry(), sweep.evaluations, sweep.layer_names(),
        plan.first_step,
    )  # fmt: skip


def store_lengths(sweep: Sweep, plan: SessionPlan) -> dict[str, int]:
    """The most entries along each dimension, as `storage.verification` takes them."""
    return {
        "config": len(sweep.grid), "step": plan.steps - plan.first_step, "eval_step": len(plan.eval_steps),
        "layer": len(sweep.layer_names()),
    }  # fmt: skip


def _corrupted_telemetry(
    plan: SessionPlan, corruptions: list[verification.Corruption], last_good: int
) -> CorruptedRunError:
    """Name the first corrupted file, and the step to which truncation would go back."""
    more = f", and {len(corruptions) - 1} more files" if len(corruptions) > 1 else ""
    step = max((step for step in checkpoint_steps(plan.path) if step <= last_good), default=plan.first_step)
    remedy = f"periodic-jax resume {plan.path} --truncate computes it again from step {step} on"
    return CorruptedRunError(plan.path / TELEMETRY / corruptions[0].file, f"{corruptions[0].reason}{more}", remedy)


def what_is_kept(path: Path, plan: SessionPlan, error: OSError) -> str:
    """Why a run ended that could not write, and what is kept of it."""
    reason = error.strerror or str(error)
    if not (path / CONFIG_FILE).exists():
        return f"{path}: {reason}; nothing is recorded yet: the same command begins again"
    step = max(checkpoint_steps(path), default=plan.first_step)
    return f"{path}: {reason}; all up to step {step} is kept: periodic-jax resume {path} goes on from there"


@contextlib.contextmanager
def saying_how_to_go_on(plan: SessionPlan, log: Callable[[str], None]) -> Iterator[None]:
    """Log, where a cell of a notebook is interrupted, what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        kept = max(checkpoint_steps(plan.path), default=plan.first_step)
        log(
            f"{plan.path}: interrupted; all up to step {kept} is kept: the same call, or resume_run, goes on from there"
        )
        raise
