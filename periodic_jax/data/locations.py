"""Where on disk a data set may be."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from periodic_jax.data.dataset import Arrays


class Place(NamedTuple):
    """A file or folder that may hold a data set, and how to read it."""

    path: Path
    files: list[Path]  # what it consists of; a change of any makes a cached copy stale
    read: Callable[[], Arrays]


def home(*parts: str) -> Path:
    """A path below the user's home folder."""
    return Path(os.path.expanduser("~"), *parts)


def folders(name: str, data_dir: Path | None) -> list[Path]:
    """Folders to look into: the given one, the one of the data set in it, and ~/datasets/NAME."""
    given = [data_dir, data_dir / name] if data_dir else []
    return list(dict.fromkeys([*given, home("datasets", name)]))
