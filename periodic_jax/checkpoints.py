"""Checkpoints of a run, in orbax's format: the states of all configurations at the end of a chunk.

    DIR/checkpoints/STEP/                  a flat tree of arrays, configurations first and in the grid's order
    DIR/checkpoints/STEP/checksums.json    of all other files there

The order is the grid's, without padding but at the end, so that a run can go on with another number of devices or
processes, each of which writes and reads its own configurations. Orbax writes a checkpoint beside its place and renames
it; it counts when its checksums are there. They are compared before orbax reads anything, since its readers do not bear
damage well. Nothing in a checkpoint is unpickled or run.
"""

import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from periodic_jax.distributed import ALONE, Team
from periodic_jax.integrity import SEAL, is_whole, seal, write_json
from periodic_jax.results import CHECKPOINTS, CHECKSUMS, checkpoint_steps

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
    verify(path, step)
    return read(path, step, like)


def verify(path: Path, step: int) -> None:
    """Compare the checksums of a checkpoint's files.

    Raises:
        DamagedCheckpoint: they are not those that were written.
    """
    folder = path / CHECKPOINTS / str(step)
    try:
        sealed = json.loads((folder / CHECKSUMS).read_text())
        if not is_whole(sealed) or SEAL not in sealed:
            raise DamagedCheckpoint(f"{CHECKSUMS} has another checksum")
        for name, crc in file_checksums(folder).items():
            if sealed.pop(name, None) != crc:
                raise DamagedCheckpoint(f"{name} has another checksum")
        if missing := set(sealed) - {SEAL}:
            raise DamagedCheckpoint(f"{min(missing)} is missing")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(error) from None


def read(
    path: Path, step: int, like: Tree | None = None, team: Team = ALONE, share: int | None = None
) -> dict[str, np.ndarray]:
    """Read a checkpoint whose files are verified.

    Args:
        path, step, like: as for `load`; ``like`` of this process's configurations.
        team: the processes, which read side by side.
        share: configurations of each.

    Returns:
        The arrays, this process's configurations first.

    Raises:
        DamagedCheckpoint: as `load`.
    """
    folder = os.path.abspath(path / CHECKPOINTS / str(step))
    try:
        stored = _stored(folder)
        if like is not None:
            _check(stored, like, team.count * (share or len(next(iter(like.values())))))
        together = team.count > 1
        if together:
            sharding, length = _by_process(team), team.count * (share or 0)
            for name, array in (like or {}).items():
                shape = (length, *array.shape[1:])
                stored["states"][name] = jax.ShapeDtypeStruct(shape, array.dtype, sharding=sharding)
        with _context(team, padding=together):
            content = ocp.load(folder, stored)
        parts = np.asarray(content["check"])
        if (parts[:, 0] != step).any():
            raise DamagedCheckpoint("it is of another step")
        if together and like is not None:
            # Its parts may be those of other processes: the files were verified, and that must do.
            local = {name: np.asarray(array.addressable_shards[0].data) for name, array in content["states"].items()}
            return {name: array[: len(like[name])] for name, array in local.items()}
        states = _joined(content["states"], parts)
        if like is not None and {len(array) for array in states.values()} != {len(a) for a in like.values()}:
            raise DamagedCheckpoint("it is of other configurations")
        return states
    except DamagedCheckpoint:
        raise
    except Exception as error:  # whatever a crafted checkpoint makes orbax or tensorstore raise
        raise _damaged(error) from None


def _stored(folder: str) -> dict[str, Any]:
    """Arrays of the shapes and dtypes of those in a checkpoint, which take no memory."""
    described: Any = ocp.metadata(folder).metadata
    return jax.tree.map(lambda array: np.broadcast_to(np.zeros((), array.dtype), array.shape), described)


def _check(stored: dict[str, Any], like: Tree, configs: int) -> None:
    """Refuse a checkpoint of other arrays before memory is taken for them."""
    if other := set(stored["states"]) ^ set(like):
        raise DamagedCheckpoint(f"{min(other)} is in it, or wanted, but not both")
    for name, array in stored["states"].items():
        # Padding adds less than all configurations there are.
        same = array.shape[1:] == like[name].shape[1:] and array.dtype == like[name].dtype
        if not same or len(array) > 2 * configs:
            raise DamagedCheckpoint(f"its {name} are {array.dtype} of shape {array.shape}")


def _joined(stored: Tree, parts: np.ndarray) -> dict[str, np.ndarray]:
    """All configurations, without the padding behind each process's."""
    share = len(next(iter(stored.values()))) // len(parts)
    pieces = []
    for k, (_, configs, written) in enumerate(parts.tolist()):
        piece = {name: array[k * share : k * share + configs] for name, array in stored.items()}
        if checksum(piece) != written:
            raise DamagedCheckpoint("its arrays have another checksum")
        pieces.append(piece)
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in stored}


def _damaged(error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(str(error).partition("\n")[0][:200] or type(error).__name__)


def file_checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file in a checkpoint, but for the one that holds them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    return {file.relative_to(folder).as_posix(): zlib.crc32(file.read_bytes()) for file in files}


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
        seconds: least time between two checkpoints; it grows so that writing takes at most a hundredth of the time. 0:
            after every chunk.
        first_step: of the run; a branch keeps its checkpoint there, which nothing could bring back.
        team: the processes that write each checkpoint together.
        share: configurations of each of them, but for the last, which may have fewer.
    """

    def __init__(
        self, path: Path, *, keep: int = 2, keep_every: int | None = None, seconds: float = 10.0, first_step: int = 0,
        team: Team = ALONE, share: int | None = None,
    ) -> None:  # fmt: skip
        self._team, self._share = team, share
        if team.count > 1:
            _let_orbax_trust_paths()
        self._path, self._keep, self._keep_every, self._first_step = path, keep, keep_every, first_step
        self._seconds, self._last, self._took = seconds, time.monotonic(), 0.0
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after ``step`` updates."""
        marked = self._keep_every is not None and step % self._keep_every == 0
        interval = max(self._seconds, 100 * self._took) if self._seconds else 0.0
        return marked or time.monotonic() - self._last >= interval

    def save(self, step: int, states: Tree) -> None:
        """Begin to write a checkpoint of this process's configurations, as soon as the one before is written.

        Raises:
            OSError: the one before could not be written.
        """
        self.wait()
        self._last = time.monotonic()
        content = _packed(step, states)
        if self._team.count > 1:
            content = _spread(content, self._team, self._share or 0)
        self._pending = self._thread.submit(self._write, step, content)

    def wait(self) -> None:
        """Wait until the last checkpoint is written.

        Raises:
            OSError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _write(self, step: int, content: dict[str, Any]) -> None:
        """Write a checkpoint, then remove those that are no longer wanted."""
        begun = time.monotonic()
        folder = self._path / CHECKPOINTS / str(step)
        if self._team.first:
            self._drop(step)
        try:
            with _context(self._team):
                ocp.save(os.path.abspath(folder), content)
        except OSError:
            raise
        except Exception as error:  # tensorstore's own words for a full disk and its like
            raise OSError(None, str(error).partition("\n")[0] or type(error).__name__) from error
        if not self._team.first:
            return
        write_json(folder / CHECKSUMS, seal(file_checksums(folder)))
        for old in checkpoint_steps(self._path)[: -self._keep]:
            if old != self._first_step and (self._keep_every is None or old % self._keep_every):
                self._drop(old)
        self._took = time.monotonic() - begun

    def discard_after(self, step: int) -> None:
        """Remove all later checkpoints, and what a killed process left half-written or half-removed."""
        whole = checkpoint_steps(self._path)
        for folder in (self._path / CHECKPOINTS).glob("*"):
            if not folder.name.isdecimal():
                shutil.rmtree(folder)
            elif int(folder.name) > step or int(folder.name) not in whole:
                self._drop(int(folder.name))

    def _drop(self, step: int) -> None:
        """Remove a checkpoint: under another name first, so that a half-removed one is not taken for whole."""
        folder = self._path / CHECKPOINTS / str(step)
        if folder.exists():
            shutil.rmtree(folder.rename(folder.with_name(f"{step}.removed")))


def _packed(step: int, states: Tree) -> dict[str, Any]:
    configs = len(next(iter(states.values())))
    return {"states": dict(states), "check": np.array([[step, configs, checksum(states)]], np.uint32)}


def _context(team: Team, padding: bool = False) -> ocp.Context:
    """Orbax's settings: all processes, named, so that it waits for them without their devices."""
    options = ocp.options.MultiprocessingOptions(active_processes=set(range(team.count)) if team.count > 1 else None)
    loading = ocp.options.ArrayOptions.Loading(enable_padding_and_truncation=padding)
    return ocp.Context(multiprocessing_options=options, array_options=ocp.options.ArrayOptions(loading=loading))


def _let_orbax_trust_paths() -> None:
    """Orbax 0.12 compares the paths of all processes by a collective on their devices, here from another thread than
    training: they could wait for each other. The paths are compared at the start.
    """
    from orbax.checkpoint.experimental.v1._src.saving import execution

    if hasattr(execution, "_check_directory_consistency"):
        execution._check_directory_consistency = lambda directory: None


def _by_process(team: Team) -> NamedSharding:
    """The first axis over the processes, each with one device."""
    devices = [next(d for d in jax.devices() if d.process_index == host) for host in team.hosts]
    return NamedSharding(Mesh(np.array(devices), ("process",)), P("process"))


def _spread(content: dict[str, Any], team: Team, share: int) -> dict[str, Any]:
    """What each process has as one array of all, padded to the same share of each."""
    sharding = _by_process(team)

    def padded(array: np.ndarray, length: int) -> np.ndarray:
        return np.pad(array, [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)])

    def whole(array: np.ndarray, length: int) -> jax.Array:
        return jax.make_array_from_process_local_data(sharding, padded(array, length))

    states = {name: whole(array, share) for name, array in content["states"].items()}
    return {"states": states, "check": whole(content["check"], 1)}
