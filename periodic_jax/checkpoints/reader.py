"""Checkpoints of a run, in orbax's format: the states of all configurations at the end of a chunk; read when verified.

    DIR/checkpoints/STEP/                  a flat tree of arrays, configurations first and in the grid's order
    DIR/checkpoints/STEP/telemetry.json    the run's id, and what its telemetry held then
    DIR/checkpoints/STEP/checksums.json    of all other files there

The order is the grid's, so that a run can go on with another number of devices. Earlier versions could share a grid
among processes: what these wrote has a part for each, with a row of ``check``, and padding behind the last
configuration, which is cut off. Checksums, and the shapes that are declared, are compared before orbax reads anything,
since corrupted files can crash its readers. Nothing in a checkpoint is unpickled or run.
`checkpoints.writer` writes them.
"""

import contextlib
import functools
import importlib
import importlib.metadata
import logging
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.core.errors import MissingDependencyError, as_corruption
from periodic_jax.core.files import read_json, used_bytes
from periodic_jax.storage.checksums import SEAL, is_checksummed
from periodic_jax.storage.run_directory import CHECKPOINTS, CHECKSUMS, recorded_id, run_of_checkpoint

Tree = Mapping[str, np.ndarray]
ORBAX_V1 = ("orbax.checkpoint.v1", "orbax.checkpoint.experimental.v1")  # where it is bound for, and where it is
FRAMING = 2**24  # bytes, more than the files of a checkpoint take beside its arrays

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs every file it writes, and errors that it raises


@functools.cache
def orbax() -> Any:
    """Version 1 of orbax's interface: ``save``, ``load`` and ``metadata``.

    Raises:
        MissingDependencyError: the installed orbax has none.
    """
    for name in ORBAX_V1:
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(name)
            if all(hasattr(module, wanted) for wanted in ("save", "load", "metadata")):
                return module
    version = importlib.metadata.version("orbax-checkpoint")
    wanted = f"a version of orbax-checkpoint with {' or '.join(ORBAX_V1)} (there is {version})"
    raise MissingDependencyError("a checkpoint", wanted, "orbax-checkpoint>=0.12.8")


def load_checkpoint(path: Path, step: int, like: Tree) -> dict[str, np.ndarray]:
    """Read a checkpoint.

    Args:
        path: the run directory.
        step: one of `storage.run_directory.checkpoint_steps`.
        like: arrays of the names, shapes and dtypes that it must have; their values do not matter.

    Returns:
        The arrays, configurations first.

    Raises:
        CorruptedRunError: anything else than what was written, or other arrays than ``like``.
    """
    folder, configs = path / CHECKPOINTS / str(step), len(next(iter(like.values())))
    with as_corruption(folder, "use another checkpoint"):
        _check_files(folder, sum(array.nbytes for array in like.values()))
        if (run_id := recorded_id(path)) and run_of_checkpoint(path, step) not in (None, run_id):
            raise ValueError("it is of another run")
        declared = orbax().metadata(os.path.abspath(folder)).metadata
        if declared is None:
            raise ValueError("what it declares cannot be read")
        leaves = [declared["check"], declared["states"].get(min(like))]
        parts, rows = ((*getattr(leaf, "shape", ()), 0)[0] for leaf in leaves)
        # Padding behind the configurations is less than all there are.
        if not (0 < parts <= rows <= 2 * configs and rows % parts == 0):
            rows, parts = configs, 1
        wanted = _abstract(like, rows, parts)
        _check_declared(declared, wanted)
        content = orbax().load(os.path.abspath(folder), wanted)
        stored = {name: np.asarray(array) for name, array in content["states"].items()}
        pieces = []
        for k, (saved_step, count, crc) in enumerate(np.asarray(content["check"]).tolist()):
            piece = {name: array[k * (rows // parts) :][:count] for name, array in stored.items()}
            if (saved_step, crc) != (step, checksum(piece)):
                raise ValueError("its arrays have another checksum")
            pieces.append(piece)
        states = {name: np.concatenate([piece[name] for piece in pieces]) for name in stored}
        if {len(array) for array in states.values()} != {configs}:
            raise ValueError("it is of other configurations")
        return states


def _abstract(like: Tree, rows: int, parts: int) -> dict[str, Any]:
    """Arrays of what a checkpoint of so many rows must have; they take no memory."""

    def empty(dtype: Any, *shape: int) -> np.ndarray:
        return np.broadcast_to(np.zeros((), dtype), shape)

    return packed({n: empty(a.dtype, rows, *a.shape[1:]) for n, a in like.items()}, empty(np.uint32, parts, 3))


def _check_files(folder: Path, size: int) -> None:
    """Compare all checksums of the files of a checkpoint whose arrays take ``size`` bytes."""
    if (used := used_bytes(folder)) > 2 * size + FRAMING:
        raise ValueError(f"its files take {used} bytes, its arrays {size}")
    sealed = read_json(folder / CHECKSUMS)
    if not is_checksummed(sealed):
        raise ValueError(f"{CHECKSUMS} has another checksum")
    found = file_checksums(folder)  # also of what a file manager or a copy left there, which is not looked at
    for name in sorted(set(sealed) - {SEAL}):
        if name not in found:
            raise ValueError(f"{name} is missing")
        if sealed[name] != found[name]:
            raise ValueError(f"{name} has another checksum")


def _check_declared(declared: Any, wanted: Any) -> None:
    """Refuse other names, shapes or dtypes than those wanted, and stored blocks that are larger than their array."""
    stored, own = _described(declared), _described(wanted)
    for name in sorted({*stored, *own}):
        here, there = stored.get(name, "nothing"), own.get(name, "nothing")
        if here != there:
            raise ValueError(f"it declares {here} for {name}, the run {there}")


def _described(tree: Any) -> dict[str, str]:
    """Dtype and shape of each array, and whether a stored block is larger than the array."""
    texts = {}
    for name, leaf in [("check", tree["check"]), *((f"states.{n}", leaf) for n, leaf in tree["states"].items())]:
        storage, size = getattr(leaf, "storage_metadata", None), max(1, math.prod(leaf.shape))
        blocks = (getattr(storage, kind, None) or () for kind in ("chunk_shape", "write_shape"))
        larger = " in larger blocks" if any(math.prod(block) > size for block in blocks) else ""
        texts[name] = f"{np.dtype(leaf.dtype)} {tuple(leaf.shape)}{larger}"
    return texts


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


def packed(states: Tree, check: np.ndarray) -> dict[str, Any]:
    """The tree of a checkpoint.

    Args:
        states: arrays, configurations first.
        check: ``(parts, 3)``, of each part: the step, its number of configurations, and their checksum.
    """
    return {"states": dict(states), "check": check}
