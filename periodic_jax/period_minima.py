"""The kept minima of a run: the weights at the lowest point of each period of each configuration, a file each.

    DIR/minima/CONFIG/STEP-END.npz           the lowest point of a period that had ended after END updates
    DIR/minima/CONFIG/STEP-unfinished.npz    that of the last one, where the run ended before it

A file holds plain arrays, uncompressed, by the names of a checkpoint (``params...``, ``batch_stats...``) and ``score``.
It is written by the process that trains the configuration, whole or not at all; zip's own CRC-32 tells damage. Orbax
would take a folder and 0.1 s for each. Nothing is unpickled.
"""

import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.errors import ConfigError
from periodic_jax.results import MINIMA

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


def kept_minima(path: str | Path) -> list[Minimum]:
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
        arrays: of that configuration.
    """
    folder = path / MINIMA / str(config)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{step}-{UNFINISHED if ended is None else ended}.npz"
    draft = file.with_name(file.name + ".partial")
    with draft.open("wb") as opened:
        np.savez(opened, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
        opened.flush()
        os.fsync(opened.fileno())
    draft.replace(file)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_minimum(one: Minimum, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a minimum.

    Args:
        one: of `kept_minima`.
        like: arrays of the names, shapes and dtypes of one configuration's weights and statistics.

    Raises:
        ConfigError: a damaged file, or one of other arrays.
    """
    wanted = {**like, "score": np.zeros((), next(iter(like.values())).dtype)}
    try:
        with zipfile.ZipFile(one.file) as archive:
            return {name: _member(archive, name, array) for name, array in _matched(archive, wanted).items()}
    except Exception as error:  # whatever a damaged or foreign file makes zipfile and NumPy raise
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ConfigError("run directory", one.file, f"a minimum as it was written ({reason})") from None


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
    for one in kept_minima(path):
        if one.ended is None or one.ended > step:
            one.file.unlink()
    for folder in (path / MINIMA).iterdir():
        if folder.is_dir() and not any(folder.iterdir()):
            shutil.rmtree(folder)


def missing(path: Path, counts: np.ndarray, first: int = 0) -> list[str]:
    """The configurations that have fewer finished minima than were found, in words.

    Args:
        path: the run directory.
        counts: found, of configurations from ``first`` on.
        first: number of the first of them.
    """
    there = np.bincount(
        [one.config for one in kept_minima(path) if one.ended is not None], minlength=first + len(counts)
    )
    return [
        f"{MINIMA}/{first + i}: {there[first + i]} of {count} minima are there"
        for i, count in enumerate(counts.tolist()) if there[first + i] < count
    ]  # fmt: skip


def in_checkpoint(states: Mapping[str, np.ndarray], rule: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a checkpoint holds for the minima: the rule's arrays, and the weights of the lowest candidates.

    Args:
        states: what it holds of the states, or arrays of the same names, shapes and dtypes.
        rule: of `periods_online.fresh`.
    """
    weights = {name: array for name, array in states.items() if name.startswith(WEIGHTS)}
    return {f"{PREFIX}{name}": array for name, array in {**weights, **rule}.items()}
