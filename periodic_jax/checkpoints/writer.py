"""Writes a run's checkpoints while it trains, and removes old ones.

Orbax writes a checkpoint beside its place and renames it; it counts when its checksums, written last, are there.
`checkpoints.reader` describes what it holds.
"""

import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.checkpoints.reader import Tree, checksum, file_checksums, orbax, packed
from periodic_jax.core.errors import first_line
from periodic_jax.core.files import write_json
from periodic_jax.storage.checksums import seal
from periodic_jax.storage.run_directory import CHECKPOINTS, CHECKSUMS, RECORD, checkpoint_steps

DRAFT = f"{CHECKPOINTS}.partial"


class Checkpoints:
    """Writes a run's checkpoints, in the background, and removes old ones.

    Args:
        path: the run directory.
        keep: how many of the last to keep.
        keep_every: keep all whose step is a multiple of it; None: only the last.
        seconds: least time between two checkpoints; it grows so that writing takes at most a hundredth of the time. 0:
            after every chunk.
        first_step: of the run; a branch keeps its checkpoint there, which nothing could bring back.
    """

    def __init__(
        self, path: Path, *, keep: int = 2, keep_every: int | None = None, seconds: float = 10.0, first_step: int = 0,
    ) -> None:  # fmt: skip
        self._path, self._keep, self._keep_every, self._first_step = path, keep, keep_every, first_step
        self._seconds, self._last, self._took = seconds, time.monotonic(), 0.0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after ``step`` updates."""
        marked = self._keep_every is not None and step % self._keep_every == 0
        interval = max(self._seconds, 100 * self._took) if self._seconds else 0.0
        return marked or time.monotonic() - self._last >= interval

    def save(self, step: int, states: Tree, record: Mapping[str, Any] | None = None) -> None:
        """Begin to write a checkpoint, as soon as the one before is written.

        Args:
            step: its step.
            states: of all configurations.
            record: what `storage.run_directory.checkpoint_record` is to give, where there is telemetry.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._last = time.monotonic()
        content = packed(states, np.array([[step, len(next(iter(states.values()))), checksum(states)]], np.uint32))
        self._pending = self._thread.submit(self._write, step, content, record)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def _write(self, step: int, content: dict[str, Any], record: Mapping[str, Any] | None) -> None:
        """Write a checkpoint, then remove those that are no longer wanted."""
        started = time.monotonic()
        folder = self._path / CHECKPOINTS / str(step)
        self.drop(step)
        try:
            # Where making folders in the background fails, orbax's threads wait for them for 20 minutes, also at exit.
            in_turn = orbax().options.AsyncOptions(create_directories_asynchronously=False)
            with orbax().Context(async_options=in_turn):
                orbax().save(os.path.abspath(folder), content)
        except Exception as error:  # tensorstore has its own errors for a full disk and its like
            raise OSError(None, first_line(error)) from error
        if record is not None:
            write_json(folder / RECORD, record)
        write_json(folder / CHECKSUMS, seal(file_checksums(folder)))
        for old in checkpoint_steps(self._path)[: -self._keep]:
            if old != self._first_step and (self._keep_every is None or old % self._keep_every):
                self.drop(old)
        self._took = time.monotonic() - started

    def discard_after(self, step: int) -> None:
        """Remove all later checkpoints, and what a killed process left half-written or half-removed."""
        complete = checkpoint_steps(self._path)
        for folder in (self._path / CHECKPOINTS).glob("*"):
            if not folder.name.isdecimal():
                shutil.rmtree(folder)
            elif int(folder.name) > step or int(folder.name) not in complete:
                self.drop(int(folder.name))

    def drop(self, step: int) -> None:
        """Remove a checkpoint: under another name first, so that a half-removed one is not taken for complete."""
        folder = self._path / CHECKPOINTS / str(step)
        if folder.exists():
            shutil.rmtree(folder.rename(folder.with_name(f"{step}.removed")))


def write_first(path: Path, step: int, states: Tree) -> None:
    """Write a branch's first checkpoint, beside its place: without a config.json it must not count.

    Raises:
        OSError: it could not be written.
    """
    checkpoints = Checkpoints(path / DRAFT, first_step=step)
    checkpoints.save(step, states)
    checkpoints.wait()


def finalize_first(path: Path, *, forget: bool) -> None:
    """Put a branch's first checkpoint in its place, or forget what a killed process left of one.

    Args:
        path: the run directory, locked.
        forget: no config.json belongs to it.
    """
    draft = path / DRAFT
    if draft.exists():
        if not forget and (draft / CHECKPOINTS).exists() and not (path / CHECKPOINTS).exists():
            (draft / CHECKPOINTS).rename(path / CHECKPOINTS)
        shutil.rmtree(draft)
