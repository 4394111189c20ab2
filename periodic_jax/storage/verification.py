"""A search for what is corrupted or missing in a telemetry store: metadata with their checksums, then every chunk.

A run directory may be a stranger's. A zarr.json of 100 bytes can declare terabytes, a chunk of 100 kB can unfold to
gigabytes, and a link can lead to any file. All of that is looked at before anything is read.
"""

import contextlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import CorruptedRunError, UnreadableError, as_corruption, failed_read, first_line
from periodic_jax.core.files import read_json
from periodic_jax.core.grid import LATER_AXES, RUN_AXES
from periodic_jax.core.limits import MOST_CONFIGS, MOST_LAYERS, MOST_STEPS
from periodic_jax.storage.checksums import SEAL, TelemetryChecksums, seal_metadata
from periodic_jax.storage.schema import QUANTITIES
from periodic_jax.storage.verified_store import ARRAYS, CONSOLIDATED, METADATA, Expected, open_group, open_verified

MOST_OF_ONE_ARRAY = 100  # corrupted files that are listed
MOST_CHUNK = 2**32  # bytes, unfolded
ITEM_SIZES = {"float32": 4, "float64": 8, "int64": 8, "uint32": 4}
CODECS = ["bytes", "zstd", "crc32c"]
DIMENSIONS = {quantity.dims for quantity in QUANTITIES.values() if quantity.dims}


class Corruption(NamedTuple):
    """A file of a telemetry store that cannot be trusted."""

    file: str  # relative to the store
    first_step: int | None  # from which on a run that goes on makes all of it again; None: only from its beginning
    reason: str

    def __str__(self) -> str:
        where = "" if self.first_step is None else f" (from step {self.first_step})"
        return f"{self.file}{where}: {self.reason}"


def lengths(record: Mapping[str, Any]) -> dict[str, int]:
    """The most entries that a run's arrays can have along each dimension, by its config.json.

    Example:
        >>> lengths({"config": {"steps": 500, "eval_every": 100}})["eval_step"]
        8
    """
    config = record.get("config", {})
    config = {name: [None] for name in LATER_AXES} | config  # one value in runs from before they were recorded
    sizes = [len(axis) if isinstance(axis := config.get(name), list) else MOST_CONFIGS for name in RUN_AXES]
    configs = max(sizes) if config.get("points") else math.prod(sizes)
    if type(shards := config.get("shards")) is int and shards > 0:
        configs = -(-configs // shards)
    ends = len(record.get("ends", ()))
    steps, every = (
        value if type(value) is int and 0 < value <= MOST_STEPS else default
        for value, default in ((config.get("steps"), MOST_STEPS), (config.get("eval_every"), 1))
    )
    given = config.get("eval_at")
    evaluations = (len(given) if given and isinstance(given, list) else steps // every) + 3
    return {"config": min(configs, MOST_CONFIGS), "step": steps, "eval_step": evaluations + ends, "layer": MOST_LAYERS}


def metadata_corruptions(store: Path, lengths: Mapping[str, int]) -> Iterator[Corruption]:
    """All metadata files of a store that are not what was sealed, or declare what no such run does.

    Consolidated metadata are accepted where they are those of the arrays: `zarr.consolidate_metadata` writes them. A
    folder that is no array, and could not be one of ours, is not looked at.

    Args:
        store: the zarr group.
        lengths: the most entries that config.json has room for, along each dimension.

    Raises:
        UnreadableError: a file cannot be read now.
    """
    if not store.is_dir():
        yield Corruption("", None, "not a folder")
        return
    folders = {path for path in store.iterdir() if path.is_dir()} | {store / name for name in _listed(store)}
    for folder in (store, *sorted(folders)):
        file = folder / METADATA
        if folder != store and folder.name not in QUANTITIES and not file.exists():
            continue
        if reason := _file_error(file, lengths, "" if folder == store else folder.name):
            yield Corruption(os.fspath(file.relative_to(store)), None, reason)


def _listed(store: Path) -> Iterator[str]:
    """The names of the arrays that a store must have; none, where an earlier version wrote it, or it is corrupted."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        yield from (name for name in read_json(store / METADATA)["attributes"][ARRAYS] if name in QUANTITIES)


def _file_error(file: Path, lengths: Mapping[str, int], array: str) -> str | None:
    try:
        content = read_json(file)
        if content.get(CONSOLIDATED) and not _is_consolidated(content.pop(CONSOLIDATED), file.parent):
            return "declares the arrays a second time, and otherwise"
        if content != seal_metadata(content):
            return "its checksum is another one" if SEAL in content["attributes"] else "it has no checksum"
        return _place_error(content, array) or _metadata_error(content, lengths)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if failed := failed_read(error):
            raise UnreadableError(file, failed) from None
        return first_line(error)


def _is_consolidated(consolidated: Any, store: Path) -> bool:
    """Whether consolidated metadata are those of the arrays in a store."""
    return consolidated["metadata"] == {file.parent.name: read_json(file) for file in store.glob(f"*/{METADATA}")}


def _place_error(content: Any, array: str) -> str | None:
    """Whether metadata belong elsewhere, as after two files were swapped; None where they do not.

    Args:
        content: of the file.
        array: in whose folder it is; none: in the store's.
    """
    if content["node_type"] != ("array" if array else "group"):
        return f"declares a node of the type {content['node_type']}"
    if array in QUANTITIES:
        quantity, name = QUANTITIES[array], content["attributes"].get("long_name")
        if name != quantity.long_name and name in {other.long_name for other in QUANTITIES.values()}:
            return f"belongs to another array: {name}"
        if quantity.dims and tuple(content["dimension_names"]) != quantity.dims:
            return f"declares the dimensions {', '.join(map(str, content['dimension_names']))}"
    return None


def _metadata_error(content: Any, lengths: Mapping[str, int]) -> str | None:
    """What a zarr.json declares that no run of these lengths does; None where all is well.

    Args:
        content: of the file, of an array or a group.
        lengths: the most entries that each dimension may have.

    Raises:
        LookupError, TypeError, AttributeError: it is no such metadata at all.
    """
    if content["node_type"] == "group":
        return None
    shape, names = content["shape"], tuple(content["dimension_names"])
    chunk = content["chunk_grid"]["configuration"]["chunk_shape"]
    if names not in DIMENSIONS or not len(shape) == len(chunk) == len(names):
        return f"declares the dimensions {', '.join(map(str, names))}"
    if not all(type(n) is int and n >= 0 for n in shape) or not all(type(n) is int and n >= 1 for n in chunk):
        return "declares a length that is none"
    for name, length in zip(names, shape, strict=True):
        if length > lengths[name]:
            return f"declares {length} entries along {name}, where config.json has room for {lengths[name]}"
    if content["data_type"] not in ITEM_SIZES:
        return f"declares values of the type {content['data_type']}"
    if (size := math.prod(chunk) * ITEM_SIZES[content["data_type"]]) > MOST_CHUNK:
        return f"declares chunks of {size} bytes"
    if [codec["name"] for codec in content["codecs"]] != CODECS or content.get("storage_transformers"):
        return "declares codecs that are not " + ", ".join(CODECS)
    if content["chunk_key_encoding"].get("name") != "default" or content["chunk_grid"].get("name") != "regular":
        return "declares another order of chunks"
    return None


def find_corruptions(
    store: Path, first_step: int, step: int, lengths: Mapping[str, int], checksums: TelemetryChecksums | None = None
) -> Iterator[Corruption]:
    """All files of a telemetry store that are missing or not as written, as far as a run has come.

    Args:
        store: the zarr group.
        first_step: the run's first step.
        step: updates made; what is recorded of later ones is not looked at.
        lengths: as for `metadata_corruptions`.
        checksums: those recorded after ``step`` updates, by which what is of another run or place is found.

    Yields:
        Metadata first; the arrays only where all metadata are verified, and of each the first few.

    Raises:
        UnreadableError: a file cannot be read now.
    """
    broken = list(metadata_corruptions(store, lengths))
    yield from broken
    if broken:
        return
    verified = open_verified(store, first_step, step, checksums)
    group, evaluated = open_group(verified), np.empty(0)
    # A corrupted chunk is found when the array's own turn comes.
    with contextlib.suppress(CorruptedRunError), as_corruption("eval_step", ""):
        made: Any = group["eval_step"]
        evaluated = made[:]

    def begin(array: Any, expected: Expected, chunk: int) -> int | None:
        if expected.steps:
            return first_step + chunk * expected.steps
        if array.metadata.dimension_names[1:] == ("eval_step",) and chunk * array.chunks[1] < len(evaluated):
            # A run that goes on evaluates after its next step, but for its very first evaluation.
            return max(int(evaluated[chunk * array.chunks[1]]) - 1, first_step)
        return None

    for name, expected in verified.expected.items():
        found = _array_corruptions(group[name], expected, begin)
        yield from itertools.islice(found, MOST_OF_ONE_ARRAY)


def _array_corruptions(
    array: Any, expected: Expected, begin: Callable[[Any, Expected, int], int | None]
) -> Iterator[Corruption]:
    for index in itertools.product(*map(range, expected.counts)):
        file = "/".join([array.basename, "c", *map(str, index)])
        try:
            with as_corruption(file, ""):
                array.blocks[index]
        except CorruptedRunError as error:
            first = begin(array, expected, index[1]) if len(index) > 1 else None
            yield Corruption(file, first, error.reason)
