"""One session of a run: from where its directory stands to its end, or to where it is stopped.

A chunk of steps counts when its telemetry, and then a checkpoint at or after its end, are on disk. A session begins
at the newest verified checkpoint, forgets what was recorded after it, and goes on: to the same bits, where the programs
give the same bits again.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.checkpoints.writer import Checkpoints
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.runs.build import initial_minima
from periodic_jax.runs.callbacks import RunCallbacks
from periodic_jax.runs.minima_recorder import MinimaRecorder
from periodic_jax.storage import verification
from periodic_jax.storage.minima_files import WEIGHTS, discard_after, discard_corrupted, find_missing_minima
from periodic_jax.storage.run_directory import CHECKPOINTS, TELEMETRY, checkpoint_steps
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter
from periodic_jax.sweeps.chunks import ChunkEnds
from periodic_jax.sweeps.sweep import Sweep


@dataclass(frozen=True)
class SessionPlan:
    """What a run is to do, besides what its `Sweep` knows.

    Attributes:
        path: the run directory, claimed and locked.
        steps: number of the last step.
        eval_every: updates between evaluations.
        first_step: number of the first step; not 0 for a branch.
        ends: the ends of former plans, after which evaluations were made.
        keep, keep_every, seconds: of the checkpoints; see `Checkpoints`.
        keep_period_minima: steps between the candidates for the lowest point of each period; None: none are saved.
    """

    path: Path
    steps: int
    eval_every: int
    first_step: int = 0
    ends: tuple[int, ...] = ()
    keep: int = 2
    keep_every: int | None = None
    seconds: float = 10.0
    keep_period_minima: int | None = None

    @property
    def eval_steps(self) -> list[int]:
        """The updates after which evaluations are planned."""
        regular = range(self.first_step - self.first_step % self.eval_every, self.steps, self.eval_every)
        planned = {*regular, self.first_step, *self.ends, self.steps}
        return sorted(step for step in planned if self.first_step <= step <= self.steps)


class ResumePoint(NamedTuple):
    """Where a session begins."""

    step: int
    states: Mapping[str, np.ndarray] | None  # None: the initial ones


class SessionResult(NamedTuple):
    """How a session ended."""

    start_step: int  # updates made before
    step: int  # and now
    seconds: float  # from the end of the first chunk, whose program is compiled
    timed_steps: int  # made in that time


def train_session(sweep: Sweep, plan: SessionPlan, callbacks: RunCallbacks, *, truncate: bool = False) -> SessionResult:
    """Train to the planned end, recording every step.

    Args:
        sweep: at no step yet.
        plan: what to do.
        callbacks: what to call meanwhile.
        truncate: go back to before corrupted telemetry, and before saved minima that are corrupted or missing.

    Returns:
        Where the run stands now.

    Raises:
        CorruptedRunError: corrupted telemetry, and ``truncate`` is not set.
        OSError: something could not be written; all up to the last checkpoint is kept.
    """
    minima = MinimaRecorder(sweep, plan.path, plan.keep_period_minima) if plan.keep_period_minima else None
    start = find_resume_point(sweep, plan, truncate, callbacks.log)
    checkpoints = Checkpoints(
        plan.path, keep=plan.keep, keep_every=plan.keep_every, seconds=plan.seconds, first_step=plan.first_step,
    )  # fmt: skip
    layout = TelemetryLayout(
        sweep.grid, plan.steps, plan.eval_steps, sweep.empty_telemetry(), sweep.evaluations, sweep.layer_names(),
        plan.first_step,
    )  # fmt: skip
    writer = TelemetryWriter(plan.path, layout)
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
    ends = ChunkEnds(origin=plan.first_step, mark_every=plan.keep_every, weights_every=plan.keep_period_minima)
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
                checkpoints.save(end, {**states, **minima.export()} if minima else states)
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
    return SessionResult(start.step, sweep.step, seconds, timed_steps)


def find_resume_point(sweep: Sweep, plan: SessionPlan, truncate: bool, log: Callable[[str], None]) -> ResumePoint:
    """The newest verified checkpoint before which all telemetry is there; the first step, where there is none.

    Without ``truncate``, saved minima are not looked at: nothing that is still to come depends on them.

    Raises:
        CorruptedRunError: corrupted telemetry, and ``truncate`` is not set.
    """
    store = plan.path / TELEMETRY
    if truncate and plan.keep_period_minima:
        states = sweep.placement.fetch(sweep.states)
        like = {name: array[0] for name, array in states.items() if name.startswith(WEIGHTS)}  # of one minimum
        for error in discard_corrupted(plan.path, like):
            log(f"removed, to be found again: {error}")
    start = newest_checkpoint(sweep, plan, plan.steps, log, with_minima=truncate)
    corruptions: list[verification.Corruption] = []
    if store.exists():
        lengths = {
            "config": len(sweep.grid), "step": plan.steps - plan.first_step, "eval_step": len(plan.eval_steps),
            "layer": len(sweep.layer_names()),
        }  # fmt: skip
        corruptions += verification.find_corruptions(store, plan.first_step, start.step, lengths)
    elif start.step != plan.first_step:
        corruptions.append(verification.Corruption("", None, "missing"))
    if corruptions:
        last_good = min(plan.first_step if c.first_step is None else c.first_step for c in corruptions)
        if not truncate:
            raise _corrupted_telemetry(plan, corruptions, last_good)
        start = newest_checkpoint(sweep, plan, last_good, log, with_minima=True)
        if start.step == plan.first_step:
            shutil.rmtree(store, ignore_errors=True)
    if truncate:
        log(f"corrupted files of telemetry: {len(corruptions)}; going on from step {start.step}")
    return start


def newest_checkpoint(
    sweep: Sweep, plan: SessionPlan, most: int, log: Callable[[str], None], *, with_minima: bool = False
) -> ResumePoint:  # fmt: skip
    """The newest verified checkpoint of at most ``most`` steps; ``with_minima``: with all minima found by then."""
    like = sweep.placement.fetch(sweep.states)
    if plan.keep_period_minima:
        like |= initial_minima(like, plan.keep_period_minima)
    for step in reversed(checkpoint_steps(plan.path)):
        if not plan.first_step <= step <= most:
            continue
        try:
            states = load_checkpoint(plan.path, step, like)
            if with_minima and plan.keep_period_minima:
                for reason in find_missing_minima(plan.path, states, step).values():
                    raise CorruptedRunError(plan.path / CHECKPOINTS / str(step), reason, "use an earlier checkpoint")
            return ResumePoint(step, states)
        except CorruptedRunError as error:
            log(f"checkpoint {step} cannot be gone on from ({error.reason}): falling back to the one before it")
    if plan.first_step:
        first = plan.path / CHECKPOINTS / str(plan.first_step)
        raise CorruptedRunError(
            first, "missing or not verified, where this run was branched", "branch again from its parent"
        )
    return ResumePoint(0, None)


def _corrupted_telemetry(
    plan: SessionPlan, corruptions: list[verification.Corruption], last_good: int
) -> CorruptedRunError:
    """Name the first corrupted file, and the step to which truncation would go back."""
    more = f", and {len(corruptions) - 1} more files" if len(corruptions) > 1 else ""
    step = max((step for step in checkpoint_steps(plan.path) if step <= last_good), default=plan.first_step)
    remedy = f"periodic-jax resume {plan.path} --truncate computes it again from step {step} on"
    return CorruptedRunError(plan.path / TELEMETRY / corruptions[0].file, f"{corruptions[0].reason}{more}", remedy)
