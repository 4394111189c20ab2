"""What tells whole files from damaged ones: checksums of JSON files, and a search through a telemetry store.

Array chunks carry a CRC32C of their own (zarr's codec), JSON files one in their own content. Both find
every flipped byte.
"""

import itertools
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import zarr
from zarr.storage import LocalStore

from periodic_jax.declared import chunk_bytes, metadata_fault, read_json, unfolded_bytes

SEAL = "checksum"
METADATA = "zarr.json"
MOST_OF_ONE_ARRAY = 100  # damaged files that are told


class Damage(NamedTuple):
    """A file of a telemetry store that cannot be trusted."""

    file: str  # relative to the store
    first_step: int | None  # the first of the steps it holds; None where it holds more than steps
    reason: str

    def __str__(self) -> str:
        where = "" if self.first_step is None else f" (from step {self.first_step})"
        return f"{self.file}{where}: {self.reason}"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a checksum over everything else in it.

    Example:
        >>> sealed = seal({"a": 1})
        >>> is_whole(sealed), is_whole(sealed | {"a": 2}), is_whole({"a": 2})
        (True, False, True)
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def is_whole(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what was sealed; one without a checksum, as written by hand, counts as whole."""
    return SEAL not in content or dict(content) == seal(content)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    draft = path.with_name(path.name + ".partial")
    with draft.open("w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def seal_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a zarr array or group with a checksum over everything else, among its attributes."""
    attributes = {key: value for key, value in content["attributes"].items() if key != SEAL}
    checksum = seal({**content, "attributes": attributes})[SEAL]
    return {**content, "attributes": {**attributes, SEAL: checksum}}


def metadata_damage(store: Path, lengths: Mapping[str, int]) -> Iterator[Damage]:
    """All metadata files of a store that are not what was sealed, or declare what no such run does.

    Args:
        store: the zarr group.
        lengths: the most entries that config.json has room for, along each dimension.
    """
    for folder in (store, *sorted(path for path in store.iterdir() if path.is_dir())):
        reason = _metadata_fault(folder / METADATA, lengths)
        if reason:
            yield Damage(os.fspath((folder / METADATA).relative_to(store)), None, reason)


def _metadata_fault(file: Path, lengths: Mapping[str, int]) -> str | None:
    try:
        content = read_json(file)
        if SEAL in content["attributes"] and content != seal_metadata(content):
            return "its checksum is another one"
        if fault := metadata_fault(content, lengths):
            return fault
        whole = file.with_name("c") / "0"  # of an array along one dimension, which is read as a whole
        if content["node_type"] == "array" and whole.is_file() and unfolded_bytes(whole) != chunk_bytes(content):
            return f"its chunk does not unfold to {chunk_bytes(content)} bytes"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return _line(error)
    return None


def damage(store: Path, first_step: int, step: int, lengths: Mapping[str, int]) -> Iterator[Damage]:
    """All files of a telemetry store that are missing or not as written, as far as a run has come.

    Args:
        store: the zarr group.
        first_step: the run's first step.
        step: updates made; what is recorded of later ones is not looked at.
        lengths: as for `metadata_damage`.

    Yields:
        Metadata first; the arrays only where all metadata are whole, and of each the first few.
    """
    broken = list(metadata_damage(store, lengths))
    yield from broken
    if broken:
        return
    group = zarr.open_group(LocalStore(store, read_only=True), mode="r", zarr_format=3, use_consolidated=False)
    for name, array in sorted(group.arrays()):
        yield from itertools.islice(_array_damage(store, name, array, first_step, step), MOST_OF_ONE_ARRAY)


def _array_damage(store: Path, name: str, array: zarr.Array, first_step: int, step: int) -> Iterator[Damage]:
    per_step = array.ndim > 1 and "step" in (getattr(array.metadata, "dimension_names", None) or ())
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    if per_step:
        counts[1] = min(counts[1], -(-(step - first_step) // array.chunks[1]))
    for index in itertools.product(*map(range, counts)):
        file = "/".join([name, "c", *map(str, index)])
        reason = _chunk_fault(array, store / file, index)
        if reason:
            yield Damage(file, first_step + index[1] * array.chunks[1] if per_step else None, reason)


def _chunk_fault(array: zarr.Array, file: Path, index: tuple[int, ...]) -> str | None:
    if not file.is_file():
        return "missing"
    try:
        wanted = math.prod(array.chunks) * array.dtype.itemsize
        if unfolded_bytes(file) != wanted:
            return f"does not unfold to {wanted} bytes"
        array.blocks[index]
    except Exception as error:  # whatever a damaged chunk makes zarr or its codecs raise
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". Stored")[0] or type(error).__name__
