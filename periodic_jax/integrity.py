"""What tells whole files from damaged ones: checksums of JSON files, and a search through a telemetry store.

Array chunks carry a CRC32C of their own (zarr's codec), JSON files one in their own content. Both find
every flipped byte.
"""

import itertools
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import zarr
from zarr.storage import LocalStore

SEAL = "checksum"
METADATA = "zarr.json"


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


def metadata_damage(store: Path) -> Iterator[Damage]:
    """All metadata files of a store that are not what was sealed."""
    for folder in (store, *sorted(path for path in store.iterdir() if path.is_dir())):
        reason = _metadata_fault(folder / METADATA)
        if reason:
            yield Damage(os.fspath((folder / METADATA).relative_to(store)), None, reason)


def _metadata_fault(file: Path) -> str | None:
    try:
        content = json.loads(file.read_bytes())
        whole = SEAL not in content["attributes"] or content == seal_metadata(content)
        return None if whole else "its checksum is another one"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return _line(error)


def damage(store: Path, first_step: int, step: int) -> Iterator[Damage]:
    """All files of a telemetry store that are missing or not as written, as far as a run has come.

    Args:
        store: the zarr group.
        first_step: the run's first step.
        step: updates made; what is recorded of later ones is not looked at.

    Yields:
        Metadata first; the arrays only where all metadata are whole.
    """
    broken = list(metadata_damage(store))
    yield from broken
    if broken:
        return
    group = zarr.open_group(LocalStore(store, read_only=True), mode="r", zarr_format=3)
    for name, array in sorted(group.arrays()):
        per_step = array.ndim > 1 and "step" in (getattr(array.metadata, "dimension_names", None) or ())
        recorded = step - first_step if per_step else None
        for index in itertools.product(*(range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True))):
            begins = index[1] * array.chunks[1] if recorded is not None else 0
            if recorded is not None and begins >= recorded:
                continue
            file = "/".join([name, "c", *map(str, index)])
            reason = _chunk_fault(array, store / file, index)
            if reason:
                yield Damage(file, None if recorded is None else first_step + begins, reason)


def _chunk_fault(array: zarr.Array, file: Path, index: tuple[int, ...]) -> str | None:
    if not file.is_file():
        return "missing"
    try:
        array.blocks[index]
    except Exception as error:  # whatever a damaged chunk makes zarr or its codecs raise
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". Stored")[0] or type(error).__name__
