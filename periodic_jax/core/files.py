"""Reading and writing files that others may have touched: bounded, atomic, without following links."""

import contextlib
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from periodic_jax.core.limits import MOST_JSON


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
    """Write a JSON file whole or not at all."""
    draft = path.with_name(path.name + ".partial")
    with draft.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def cache_folder() -> Path:
    """Where what can be had again is kept: $XDG_CACHE_HOME/periodic_jax, or ~/.cache/periodic_jax."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root, "periodic_jax") if root else Path(os.path.expanduser("~"), ".cache", "periodic_jax")
