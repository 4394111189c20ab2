"""Bounded reading, and the one atomic write and the one atomic replacement of a folder."""

import contextlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from periodic_jax.core.limits import MOST_JSON

PARTIAL = ".partial"  # ending of what is not complete yet


def read_json(file: Path) -> Any:
    """The content of a JSON file, if it is not beyond all measure.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or larger than `MOST_JSON`.
        RecursionError: it is nested too deeply.
    """
    if not file.is_file() and file.exists():
        raise ValueError("not a file")
    if (size := file.stat().st_size) > MOST_JSON:
        raise ValueError(f"{size} bytes long, which no such file is")
    return json.loads(file.read_bytes())


def find_foreign_file(folder: Path, names: Iterable[str]) -> Path | None:
    """The first thing, among those named in a folder and all below them, that is neither a plain file nor a folder.

    Args:
        folder: the run directory.
        names: of entries in it, which need not exist.
    """
    left = [folder / name for name in names]
    while left:
        path = left.pop()
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                left += path.iterdir()
            elif not stat.S_ISREG(mode):
                return path
        except (OSError, ValueError):  # not there, or gone again, where a run is under way
            continue
    return None


def used_bytes(folder: Path) -> int:
    """Bytes that a folder's files take."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # gone again, where a run is under way
                total += (Path(place) / name).lstat().st_size
    return total


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object], *, sync_folder: bool = False) -> None:
    """Write a file. A kill at any moment leaves the old file or the new one.

    Args:
        path: the file, in an existing folder.
        content: its bytes, or a function that writes them to the open file.
        sync_folder: the new name survives a loss of power too.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    with replace_file(path) as draft, draft.open("wb") as file:
        file.write(content) if isinstance(content, bytes) else content(file)
        file.flush()
        os.fsync(file.fileno())
    if sync_folder:
        sync(path.parent)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Build a file beside its place, for what writes to a path only. It takes its place when the block ends.

    Args:
        path: the file, in an existing folder.

    Yields:
        The path to build it at, at which there is nothing, nor a link.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    draft = path.with_name(path.name + PARTIAL)
    draft.unlink(missing_ok=True)  # of a process that was killed
    try:
        yield draft
        draft.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


@contextlib.contextmanager
def replace_folder(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Build a folder, or a file, beside its place. It takes the place of an earlier one when the block ends.

    Args:
        path: its place.
        shared: several processes may do so at once, so that each needs names of its own.

    Yields:
        The path to build it at, at which there is nothing, nor a link.

    Raises:
        OSError: it cannot be moved; the earlier one is back in its place.
    """
    mark = f".{secrets.token_hex(4)}" if shared else ""
    draft, old = (path.with_name(path.name + mark + ending) for ending in (PARTIAL, f".old{PARTIAL}"))
    if old.exists() and not path.exists():  # a process was killed between the two renames
        old.replace(path)
    for left in (draft, old):
        _remove(left)
    try:
        yield draft
        if path.exists():
            path.replace(old)
        draft.replace(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        raise
    finally:
        _remove(draft)
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a folder, a file or a link, but nothing behind a link; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make what was written to a file, or the names in a folder, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shown_path(path: Path) -> Path:
    """A path from the working directory, where it leads there; else as it is."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def cache_folder() -> Path:
    """Where what can be made again is kept: on Linux $XDG_CACHE_HOME/periodic_jax, or ~/.cache/periodic_jax."""
    return platformdirs.user_cache_path("periodic_jax", appauthor=False)
