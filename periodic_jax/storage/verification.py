"""A search for what is corrupted or missing in a telemetry store: metadata with their checksums, then every chunk."""

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from periodic_jax.core.errors import CorruptedRunError, first_line
from periodic_jax.core.files import read_json
from periodic_jax.storage.checksums import SEAL, seal_metadata
from periodic_jax.storage.metadata import metadata_error
from periodic_jax.storage.verified_store import METADATA, Expected, open_group, open_verified

MOST_OF_ONE_ARRAY = 100  # corrupted files that are listed


class Corruption(NamedTuple):
    """A file of a telemetry store that cannot be trusted."""

    file: str  # relative to the store
    first_step: int | None  # the first of the steps it holds; None where it holds more than steps
    reason: str

    def __str__(self) -> str:
        where = "" if self.first_step is None else f" (from step {self.first_step})"
        return f"{self.file}{where}: {self.reason}"


def metadata_corruptions(store: Path, lengths: Mapping[str, int]) -> Iterator[Corruption]:
    """All metadata files of a store that are not what was sealed, or declare what no such run does.

    Args:
        store: the zarr group.
        lengths: the most entries that config.json has room for, along each dimension.
    """
    for folder in (store, *sorted(path for path in store.iterdir() if path.is_dir())):
        file = folder / METADATA
        if reason := _file_error(file, lengths):
            yield Corruption(os.fspath(file.relative_to(store)), None, reason)


def _file_error(file: Path, lengths: Mapping[str, int]) -> str | None:
    try:
        content = read_json(file)
        if content != seal_metadata(content):
            return "its checksum is another one" if SEAL in content["attributes"] else "it has no checksum"
        return metadata_error(content, lengths)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        return first_line(error)


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
    verified = open_verified(store, first_step, step)
    group = open_group(verified)
    for name, expected in verified.expected.items():
        yield from itertools.islice(_array_corruptions(group[name], expected, first_step), MOST_OF_ONE_ARRAY)


def _array_corruptions(array: Any, expected: Expected, first_step: int) -> Iterator[Corruption]:
    for index in itertools.product(*map(range, expected.counts)):
        try:
            array.blocks[index]
        except Exception as error:  # also whatever a crafted chunk makes zarr or its codecs raise
            reason = error.reason if isinstance(error, CorruptedRunError) else first_line(error)
            file = "/".join([array.basename, "c", *map(str, index)])
            yield Corruption(file, first_step + index[1] * expected.steps if expected.steps else None, reason)
