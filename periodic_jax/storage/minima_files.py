"""The saved minima of a run: the weights at the lowest point of each period of each configuration, a file each.

    DIR/minima/CONFIG/STEP-END.npz           the lowest point of a period that had ended after END updates
    DIR/minima/CONFIG/STEP-unfinished.npz    that of the last one, where the run ended before it

A file holds plain arrays, uncompressed, by the names of a checkpoint (``params...``, ``batch_stats...``), ``score``,
``which``: what its name says, (CONFIG, STEP, END or -1), and ``run``: the run's id. It is written while the
configuration is trained, atomically; zip's own CRC-32 shows corruption, ``which`` and ``run`` a file in the place of
another, and the last checkpoint how many there must be. Orbax would take a folder and 0.1 s for each. Nothing is
unpickled.
"""

import contextlib
import io
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import CorruptedRunError, as_corruption
from periodic_jax.core.files import write_atomically
from periodic_jax.storage.run_directory import MINIMA

UNFINISHED = "unfinished"
NAME = re.compile(rf"(\d{{1,8}})/(\d{{1,9}})-(\d{{1,9}}|{UNFINISHED})\.npz")
HEADER = 2**12  # bytes, more than an array's description takes
PREFIX = "minima."  # of what a checkpoint holds for them
WEIGHTS = ("params.", "batch_stats.")


class Minimum(NamedTuple):
    """A saved minimum."""

    config: int  # in the grid's order
    step: int  # updates made
    ended: int | None  # updates after which its period was seen to have ended; None: not before the end of the run
    file: Path


def saved_minima(path: str | Path) -> list[Minimum]:
    """The saved minima of a run, by configuration and step."""
    minima = []
    for file in (Path(path) / MINIMA).glob("*/*.npz"):
        if match := NAME.fullmatch(f"{file.parent.name}/{file.name}"):
            ended = None if match[3] == UNFINISHED else int(match[3])
            minima.append(Minimum(int(match[1]), int(match[2]), ended, file))
    return sorted(minima, key=lambda minimum: minimum[:2])


def write_minimum(path: Path, config: int, step: int, ended: int | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a minimum, so that it is there after a loss of power.

    Args:
        path: the run directory.
        config, step, ended: see `Minimum`.
        arrays: of that configuration: weights, statistics, `run_of` and ``score``.
    """
    folder = path / MINIMA / str(config)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{step}-{UNFINISHED if ended is None else ended}.npz"
    content: dict[str, Any] = {**arrays, "which": _which(config, step, ended)}
    write_atomically(file, lambda opened: np.savez(opened, **content), sync_folder=True)


def run_of(run_id: str | None) -> dict[str, np.ndarray]:
    """What a file holds of the run's id; nothing in a run of an earlier version, which has none."""
    return {} if run_id is None else {"run": np.frombuffer(run_id.encode(), np.uint8)}


def read_minimum(minimum: Minimum, like: Mapping[str, np.ndarray], run_id: str | None) -> dict[str, np.ndarray]:
    """The arrays of a minimum.

    Args:
        minimum: of `saved_minima`.
        like: arrays of the names, shapes and dtypes of one configuration's weights and statistics.
        run_id: of the run, from its config.json.

    Raises:
        CorruptedRunError: a corrupted file, one of other arrays, or another's in its place.
    """
    named, run = _which(*minimum[:3]), minimum.file.parents[2]
    wanted = {**like, "score": np.zeros((), next(iter(like.values())).dtype), "which": named, **run_of(run_id)}
    with as_corruption(minimum.file, f"periodic-jax resume {run} --truncate finds it again"):
        with zipfile.ZipFile(minimum.file) as archive:
            _check_members(archive, wanted)
            arrays = {name: _member(archive, name, array) for name, array in wanted.items()}
        if (which := arrays["which"]).tolist() != named.tolist():
            raise ValueError("it is that of configuration {}, step {}, end {}".format(*which))
        if any(arrays[name].tolist() != wanted[name].tolist() for name in run_of(run_id)):
            raise ValueError("it is that of another run")
        return arrays


def _which(config: int, step: int, ended: int | None) -> np.ndarray:
    return np.array([config, step, -1 if ended is None else ended], np.int64)


def _check_members(archive: zipfile.ZipFile, wanted: Mapping[str, np.ndarray]) -> None:
    members = {info.filename: info for info in archive.infolist()}
    if set(members) != {f"{name}.npy" for name in wanted} or len(archive.infolist()) != len(wanted):
        raise ValueError("it holds other arrays than the run's weights")
    for name, array in wanted.items():
        info = members[f"{name}.npy"]
        if info.compress_type != zipfile.ZIP_STORED or not 0 <= info.file_size - array.nbytes <= HEADER:
            raise ValueError(f"{name} is of another size")


def _member(archive: zipfile.ZipFile, name: str, like: np.ndarray) -> np.ndarray:
    stream = io.BytesIO(archive.read(f"{name}.npy"))  # to its end, where the CRC is compared
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if (array.shape, array.dtype) != (like.shape, like.dtype):
        raise ValueError(f"{name} is {array.dtype} {array.shape}, the run's {like.dtype} {like.shape}")
    return array


def discard_after(path: Path, step: int) -> None:
    """Remove the minima of periods that ended after ``step`` updates, or never, and what a killed process left."""
    for draft in (path / MINIMA).glob("*/*.partial"):
        draft.unlink()
    for minimum in saved_minima(path):
        if minimum.ended is None or minimum.ended > step:
            minimum.file.unlink()
    for folder in (path / MINIMA).glob("*"):
        with contextlib.suppress(OSError):  # it is not empty, or a file
            folder.rmdir()


def find_corrupted(path: Path, like: Mapping[str, np.ndarray], run_id: str | None) -> dict[Path, str]:
    """What is not as it was written, and what is wrong with it.

    Args:
        path: the run directory.
        like, run_id: as for `read_minimum`.
    """
    errors = {}
    for minimum in saved_minima(path):
        try:
            read_minimum(minimum, like, run_id)
        except CorruptedRunError as error:
            errors[minimum.file] = error.reason
    return errors


def find_missing_minima(
    path: Path,
    checkpoint: Mapping[str, np.ndarray],
    step: int,
    *,
    finished: bool = False,
    without: Collection[Path] = (),
) -> dict[int, str]:
    """The configurations that have not the minima that a checkpoint counts, and how many there are, in words.

    Args:
        path: the run directory.
        checkpoint: what it holds.
        step: its step. Later minima are not counted.
        finished: whether the run ended there, so that there must be unfinished ones too.
        without: files that do not count.
    """
    ended, last = checkpoint[f"{PREFIX}found"], checkpoint[f"{PREFIX}step"]
    wanted = ended + (last >= 0 if finished else 0)
    there = [minimum for minimum in saved_minima(path) if minimum.file not in without]
    counted = [m.config for m in there if (finished if m.ended is None else m.ended <= step)]
    found = np.bincount([config for config in counted if config < len(wanted)], minlength=len(wanted))
    return {
        i: f"{MINIMA}/{i}: {found[i]} of {wanted[i]} minima are there" for i in np.flatnonzero(found != wanted).tolist()
    }


def with_rule_state(states: Mapping[str, np.ndarray], rule: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint holds for the minima: the rule's arrays, and the weights of the lowest candidates.

    Args:
        states: what it holds of the states, or arrays of the same names, shapes and dtypes.
        rule: of `analysis.online.initial_rule`.
    """
    weights = {name: array for name, array in states.items() if name.startswith(WEIGHTS)}
    return {f"{PREFIX}{name}": array for name, array in {**weights, **rule}.items()}
