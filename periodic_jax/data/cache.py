"""Uncompressed copies of what was read, so that the next start takes a fraction of a second."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from periodic_jax.core.files import cache_folder, replace_folder
from periodic_jax.data.dataset import Arrays
from periodic_jax.data.locations import Place

FORMAT = 1
STAMP = "source.json"


def cached(name: str, place: Place, check: Callable[[Arrays], Arrays]) -> Arrays:
    """Read a place, or the copy of it that an earlier call left.

    A copy is used while the path, sizes and times of change of the source's files are what they were. A folder that
    cannot be written only means that the next start reads the source again.

    Args:
        name: of the data set.
        place: what to read.
        check: refuses arrays that are no data set.

    Returns:
        Its arrays.

    Raises:
        DataFileError: as ``place.read``, or ``check``.
    """
    stamp = _stamp(place)
    copy = cache_folder() / f"{name}-{hashlib.sha256(os.fsencode(place.path.resolve())).hexdigest()[:16]}"
    try:
        if json.loads((copy / STAMP).read_text()) == stamp:
            return check(Arrays(*(np.load(copy / f"{part}.npy", allow_pickle=False) for part in Arrays._fields)))
    except (OSError, ValueError, EOFError):  # no copy, or a corrupted one
        pass
    arrays = check(place.read())
    _write(copy, arrays, stamp)
    return arrays


def _stamp(place: Place) -> dict[str, object]:
    """What must not change for a copy to hold."""
    status = {file.name: file.stat() for file in place.files if file.is_file()}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in status.items()}
    return {"format": FORMAT, "path": str(place.path.resolve()), "files": files}


def _write(copy: Path, arrays: Arrays, stamp: dict[str, object]) -> None:
    # no room, no permission, or another process was faster
    with contextlib.suppress(OSError), replace_folder(copy, shared=True) as draft:
        draft.mkdir(parents=True)
        for part, array in zip(Arrays._fields, arrays, strict=True):
            np.save(draft / f"{part}.npy", array, allow_pickle=False)
        (draft / STAMP).write_text(json.dumps(stamp))
