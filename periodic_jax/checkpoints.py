"""Checkpoints of a run, in orbax's format: the states of all configurations at the end of a chunk.

    DIR/checkpoints/STEP/    a flat tree of arrays, configurations first and in the grid's order, with a checksum

The order is the grid's, without padding, so that a run can go on with another number of devices. A folder named STEP
is a whole checkpoint: orbax writes it beside its place and renames it. Nothing in one is unpickled or run.
"""

import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint.experimental.v1 as ocp

from periodic_jax.results import CHECKPOINTS, checkpoint_steps

Tree = Mapping[str, np.ndarray]

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells of every file it writes


class DamagedCheckpoint(Exception):
    """A checkpoint that is not what was written."""


def load(path: Path, step: int, like: Tree | None = None) -> dict[str, np.ndarray]:
    """Read a checkpoint.

    Args:
        path: the run directory.
        step: one of `results.checkpoint_steps`.
        like: arrays of the names, shapes and dtypes that are wanted; None takes what there is.

    Returns:
        The arrays, configurations first.

    Raises:
        DamagedCheckpoint: anything else than what was written.
    """
    wanted = None if like is None else _packed(step, like)
    try:
        content = ocp.load(os.path.abspath(path / CHECKPOINTS / str(step)), wanted)
        states = {name: np.asarray(array) for name, array in content["states"].items()}
        written = np.asarray(content["check"]).tolist()
    except Exception as error:  # whatever a damaged checkpoint makes orbax or tensorstore raise
        raise DamagedCheckpoint(str(error).partition("\n")[0][:200] or type(error).__name__) from None
    if written != [step, checksum(states)]:
        raise DamagedCheckpoint("its checksum is another one")
    return states


def checksum(states: Tree) -> int:
    """CRC-32 over names, shapes, dtypes and bytes."""
    crc = 0
    for name in sorted(states):
        array = states[name]
        crc = zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc


class Checkpoints:
    """Writes a run's checkpoints, in the background, and removes old ones.

    Args:
        path: the run directory.
        keep: how many of the last to keep.
        keep_every: keep all whose step is a multiple of it; None: only the last.
        seconds: least time between two checkpoints; it grows so that writing takes at most a hundredth of the time.
        first_step: of the run; a branch keeps its checkpoint there, which nothing could bring back.
    """

    def __init__(
        self, path: Path, *, keep: int = 2, keep_every: int | None = None, seconds: float = 10.0, first_step: int = 0
    ) -> None:
        self._path, self._keep, self._keep_every, self._first_step = path, keep, keep_every, first_step
        self._seconds, self._last, self._took = seconds, time.monotonic(), 0.0
        self._pending: tuple[Any, float] | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after ``step`` updates."""
        marked = self._keep_every is not None and step % self._keep_every == 0
        return marked or time.monotonic() - self._last >= max(self._seconds, 100 * self._took)

    def save(self, step: int, states: Tree) -> None:
        """Begin to write a checkpoint, as soon as the one before is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._last = time.monotonic()
        self._drop(step)
        begun = time.monotonic()
        try:
            response = ocp.save_async(os.path.abspath(self._path / CHECKPOINTS / str(step)), _packed(step, states))
        except Exception as error:
            raise _unwritten(error) from error
        self._pending = (response, begun)

    def wait(self) -> None:
        """Wait until the last checkpoint is written, and remove those that are no longer wanted.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is None:
            return
        (response, begun), self._pending = self._pending, None
        try:
            response.result()
        except Exception as error:
            raise _unwritten(error) from error
        self._took = time.monotonic() - begun
        for step in checkpoint_steps(self._path)[: -self._keep]:
            if step != self._first_step and (self._keep_every is None or step % self._keep_every):
                self._drop(step)

    def discard_after(self, step: int) -> None:
        """Remove all later checkpoints, and what a killed process left half-written or half-removed."""
        for folder in (self._path / CHECKPOINTS).glob("*"):
            if not folder.name.isdecimal():
                shutil.rmtree(folder)
            elif int(folder.name) > step:
                self._drop(int(folder.name))

    def _drop(self, step: int) -> None:
        """Remove a checkpoint: under another name first, so that a half-removed one is not taken for whole."""
        folder = self._path / CHECKPOINTS / str(step)
        if folder.exists():
            shutil.rmtree(folder.rename(folder.with_name(f"{step}.removed")))


def _packed(step: int, states: Tree) -> dict[str, Any]:
    return {"states": dict(states), "check": np.array([step, checksum(states)], np.int64)}


def _unwritten(error: Exception) -> OSError:
    if isinstance(error, OSError):
        return error
    return OSError(None, str(error).partition("\n")[0] or type(error).__name__)
