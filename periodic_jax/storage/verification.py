"""What tells verified files from corrupted ones: checksums of JSON files, and a search through a telemetry store.

Array chunks carry a CRC32C of their own (zarr's codec), JSON files one in their own content. Both find
every flipped byte. zarr alone takes a missing chunk for an empty one, and checks no metadata.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import zarr
from zarr.storage import LocalStore

from periodic_jax.core.files import read_json
from periodic_jax.storage.checksums import SEAL, seal_metadata
from periodic_jax.storage.metadata import chunk_bytes, metadata_error, unfolded_bytes, unfolds_to

METADATA = "zarr.json"
MISSING = "missing"
FRAMING = 2**10  # bytes that a compressed chunk takes beside its content
MOST_OF_ONE_ARRAY = 100  # corrupted files that are listed


class Corruption(NamedTuple):
    """A file of a telemetry store that cannot be trusted."""

    file: str  # relative to the store
    first_step: int | None  # the first of the steps it holds; None where it holds more than steps
    reason: str

    def __str__(self) -> str:
        where = "" if self.first_step is None else f" (from step {self.first_step})"
        return f"{self.file}{where}: {self.reason}"


class Expected(NamedTuple):
    """What must be there of one array of a store."""

    counts: tuple[int, ...]  # chunks along each dimension
    size: int  # bytes of a chunk, unfolded
    steps: int | None  # in a chunk, of an array over steps

    def holds(self, index: tuple[int, ...]) -> bool:
        """Whether the chunk must be there."""
        return len(index) == len(self.counts) and all(i < n for i, n in zip(index, self.counts, strict=True))


def metadata_corruptions(store: Path, lengths: Mapping[str, int]) -> Iterator[Corruption]:
    """All metadata files of a store that are not what was sealed, or declare what no such run does.

    Args:
        store: the zarr group.
        lengths: the most entries that config.json has room for, along each dimension.
    """
    for folder in (store, *sorted(path for path in store.iterdir() if path.is_dir())):
        if found := _metadata_error(folder / METADATA, lengths):
            file, reason = found
            yield Corruption(os.fspath(file.relative_to(store)), None, reason)


def _metadata_error(file: Path, lengths: Mapping[str, int]) -> tuple[Path, str] | None:
    """The corrupted file, metadata or the one chunk of an array along one dimension, and what is wrong."""
    try:
        content = read_json(file)
        if content != seal_metadata(content):
            return file, "its checksum is another one" if SEAL in content["attributes"] else "it has no checksum"
        if reason := metadata_error(content, lengths):
            return file, reason
        chunk = file.with_name("c") / "0"  # the only one of an array along one dimension
        if content["node_type"] == "array" and chunk.is_file() and unfolded_bytes(chunk) != chunk_bytes(content):
            return chunk, f"does not unfold to {chunk_bytes(content)} bytes"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return file, _line(error)
    return None


def find_corruptions(store: Path, first_step: int, step: int, lengths: Mapping[str, int]) -> Iterator[Corruption]:
    """All files of a telemetry store that are missing or not as written, as far as a run has come.

    Args:
        store: the zarr group.
        first_step: the run's first step.
        step: updates made; what is recorded of later ones is not looked at.
        lengths: as for `metadata_corruptions`.

    Yields:
        Metadata first; the arrays only where all metadata are verified, and of each the first few.
    """
    broken = list(metadata_corruptions(store, lengths))
    yield from broken
    if broken:
        return
    group = _opened(store)
    for name, wanted in expected(store, first_step, step).items():
        found = _array_corruptions(store, name, group[name], wanted, first_step)
        yield from itertools.islice(found, MOST_OF_ONE_ARRAY)


def expected(store: Path, first_step: int, step: int) -> dict[str, Expected]:
    """What must be there of each array of a store, whose metadata are verified, when a run has come so far.

    Args:
        store, first_step, step: as for `find_corruptions`.
    """
    group = _opened(store)
    evaluated = np.inf  # where the store does not tell, all must be there
    with contextlib.suppress(Exception):  # a corrupted chunk, which is found when the array's own turn comes
        # The first evaluation is made when training begins: after the store is built.
        made: Any = group["eval_step"]
        evaluated = (made[:] <= step).sum() if step > first_step else 0
    wanted = {}
    for name, array in sorted(group.arrays()):
        content = read_json(store / name / METADATA)
        dims, reached = content["dimension_names"], {"step": step - first_step, "eval_step": evaluated}
        counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
        over = dims[1] if len(dims) > 1 else None
        if over is not None:
            counts[1] = int(min(counts[1], -(-reached[over] // array.chunks[1])))
        wanted[name] = Expected(tuple(counts), chunk_bytes(content), array.chunks[1] if over == "step" else None)
    return wanted


def chunk_error(chunk: bytes, wanted: Expected) -> str | None:
    """What is wrong with the bytes of a chunk; None for a verified one.

    Args:
        chunk: content of the file.
        wanted: of its array.
    """
    if unfolds_to(chunk[:18]) != wanted.size:
        return f"does not unfold to {wanted.size} bytes"
    if google_crc32c.value(chunk[:-4]).to_bytes(4, "little") != chunk[-4:]:
        return "its checksum is another one"
    return None


def too_long(file: Path, wanted: Expected) -> str | None:
    """That a chunk's file is longer than compression could make it; else None."""
    with contextlib.suppress(OSError):
        if (size := file.stat().st_size) > 2 * wanted.size + FRAMING:
            return f"{size} bytes long"
    return None


def _opened(store: Path) -> zarr.Group:
    return zarr.open_group(LocalStore(store, read_only=True), mode="r", zarr_format=3, use_consolidated=False)


def _array_corruptions(store: Path, name: str, array: Any, wanted: Expected, first_step: int) -> Iterator[Corruption]:
    for index in itertools.product(*map(range, wanted.counts)):
        file = "/".join([name, "c", *map(str, index)])
        if reason := _file_error(array, store / file, index, wanted):
            yield Corruption(file, first_step + index[1] * wanted.steps if wanted.steps else None, reason)


def _file_error(array: Any, file: Path, index: tuple[int, ...], wanted: Expected) -> str | None:
    if not file.is_file():
        return MISSING
    try:
        if reason := too_long(file, wanted) or chunk_error(file.read_bytes(), wanted):
            return reason
        array.blocks[index]
    except Exception as error:  # whatever a crafted chunk makes zarr or its codecs raise
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". Stored")[0] or type(error).__name__
