"""The kept minima of a run: the weights at the lowest point of each period of each configuration, a file each.

    DIR/minima/CONFIG/STEP-END.npz           the lowest point of a period that had ended after END updates
    DIR/minima/CONFIG/STEP-unfinished.npz    that of the last one, where the run ended before it

A file holds plain arrays, uncompressed, by the names of a checkpoint (``params...``, ``batch_stats...``), ``score`` and
``which``: what its name says, (CONFIG, STEP, END or -1). It is written while the configuration is trained,
atomically; zip's own CRC-32 tells corruption, ``which`` a file in another's place, and the last checkpoint how
many there must be. Orbax would take a folder and 0.1 s for each. Nothing is unpickled.
"""

import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.core.files import write_atomically
from periodic_jax.storage.run_directory import MINIMA

UNFINISHED = "unfinished"
NAME = re.compile(r"(\d{1,9})-(\d{1,9}|unfinished)\.npz")
HEADER = 2**12  # bytes, more than an array's description takes
PREFIX = "minima."  # of what a checkpoint holds for them
WEIGHTS = ("params.", "batch_stats.")


class Minimum(NamedTuple):
    """A kept minimum."""

    config: int  # in the grid's order
    step: int  # updates made
    ended: int | None  # updates after which its period was seen to have ended; None: not before the end of the run
    file: Path


def saved_minima(path: str | Path) -> list[Minimum]:
    """The kept minima of a run, by configuration and step."""
    found = []
    for file in (Path(path) / MINIMA).glob("*/*.npz"):
        match = NAME.fullmatch(file.name)
        if match and file.parent.name.isdecimal() and len(file.parent.name) < 9:
            ended = None if match[2] == UNFINISHED else int(match[2])
            found.append(Minimum(int(file.parent.name), int(match[1]), ended, file))
    return sorted(found, key=lambda one: one[:2])


def write_minimum(path: Path, config: int, step: int, ended: int | None, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one, so that it is there after a loss of power.

    Args:
        path: the run directory.
        config, step, ended: see `Minimum`.
        arrays: of that configuration: weights, statistics and ``score``.
    """
    folder = path / MINIMA / str(config)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{step}-{UNFINISHED if ended is None else ended}.npz"

    def write(opened: BinaryIO) -> None:
        with zipfile.ZipFile(opened, "w") as archive:
            for name, array in {**arrays, "which": _which(config, step, ended)}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)

    write_atomically(file, write, sync_folder=True)


def read_minimum(one: Minimum, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a minimum.

    Args:
        one: of `saved_minima`.
        like: arrays of the names, shapes and dtypes of one configuration's weights and statistics.

    Raises:
        CorruptedRunError: a corrupted file, one of other arrays, or another's in its place.
    """
    named = _which(*one[:3])
    wanted = {**like, "score": np.zeros((), next(iter(like.values())).dtype), "which": named}
    try:
        with zipfile.ZipFile(one.file) as archive:
            arrays = {name: _member(archive, name, array) for name, array in _matched(archive, wanted).items()}
        if (which := arrays["which"]).tolist() != named.tolist():
            raise ValueError("it is that of configuration {}, step {}, end {}".format(*which))
        return arrays
    except Exception as error:  # whatever a corrupted or foreign file makes zipfile and NumPy raise
        reason, run = str(error).partition("\n")[0][:200] or type(error).__name__, one.file.parents[2]
        remedy = f"periodic-jax resume {run} --truncate finds it again"
        raise CorruptedRunError(one.file, reason, remedy) from None


def _which(config: int, step: int, ended: int | None) -> np.ndarray:
    return np.array([config, step, -1 if ended is None else ended], np.int64)


def _matched(archive: zipfile.ZipFile, wanted: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    members = {info.filename: info for info in archive.infolist()}
    if set(members) != {f"{name}.npy" for name in wanted} or len(archive.infolist()) != len(wanted):
        raise ValueError("it holds other arrays than the run's weights")
    for name, array in wanted.items():
        info = members[f"{name}.npy"]
        if info.compress_type != zipfile.ZIP_STORED or not 0 <= info.file_size - array.nbytes <= HEADER:
            raise ValueError(f"{name} is of another size")
    return wanted


def _member(archive: zipfile.ZipFile, name: str, like: np.ndarray) -> np.ndarray:
    import io

    stream = io.BytesIO(archive.read(f"{name}.npy"))  # to its end, where the CRC is compared
    version = np.lib.format.read_magic(stream)
    read: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(stream)
    if (shape, dtype, fortran and len(shape) > 1) != (like.shape, like.dtype, False):
        raise ValueError(f"{name} is {dtype} {shape}, the run's {like.dtype} {like.shape}")
    return np.frombuffer(stream.read(), dtype).reshape(shape).copy()


def discard_after(path: Path, step: int) -> None:
    """Remove what was found out after ``step`` updates, unfinished minima, and what a killed process left."""
    if not (path / MINIMA).exists():
        return
    for draft in (path / MINIMA).glob("*/*.partial"):
        draft.unlink()
    for one in saved_minima(path):
        if one.ended is None or one.ended > step:
            one.file.unlink()
    for folder in (path / MINIMA).iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)


def discard_corrupted(path: Path, like: Mapping[str, np.ndarray]) -> list[str]:
    """Remove what is not as it was written.

    Args:
        path: the run directory.
        like: as for `read_minimum`.

    Returns:
        The file and what was wrong, of each.
    """
    errors = []
    for one in saved_minima(path):
        try:
            read_minimum(one, like)
        except CorruptedRunError as error:
            one.file.unlink()
            errors.append(f"{error.file}: {error.reason}")
    return errors


def find_missing_minima(
    path: Path, checkpoint: Mapping[str, np.ndarray], step: int, *, finished: bool = False
) -> dict[int, str]:
    """The configurations that have not the minima that a checkpoint tells of, and how many there are, in words.

    Args:
        path: the run directory.
        checkpoint: what it holds.
        step: its step. Later minima are not counted.
        finished: whether the run ended there, so that there must be unfinished ones too.
    """
    found, last = checkpoint[f"{PREFIX}found"], checkpoint[f"{PREFIX}step"]
    wanted = found + (last >= 0 if finished else 0)
    there = np.zeros(len(found), np.int64)
    for one in saved_minima(path):
        counted = finished if one.ended is None else one.ended <= step
        if counted and one.config < len(found):
            there[one.config] += 1
    return {
        i: f"{MINIMA}/{i}: {there[i]} of {wanted[i]} minima are there" for i in np.flatnonzero(there != wanted).tolist()
    }


def with_rule_state(states: Mapping[str, np.ndarray], rule: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint holds for the minima: the rule's arrays, and the weights of the lowest candidates.

    Args:
        states: what it holds of the states, or arrays of the same names, shapes and dtypes.
        rule: of `analysis.online.initial_rule`.
    """
    weights = {name: array for name, array in states.items() if name.startswith(WEIGHTS)}
    return {f"{PREFIX}{name}": array for name, array in {**weights, **rule}.items()}
