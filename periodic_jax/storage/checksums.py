"""Checksums: of JSON files, by which one that was changed is told, and of what telemetry holds at each place, by which
a chunk of another run or of another place is told.
"""

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

SEAL = "checksum"
OF_STEPS = ("step", "eval_step", "diverged_at")  # arrays whose values are steps


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a checksum over everything else in it.

    Example:
        >>> sealed = seal({"a": 1})
        >>> is_checksummed(sealed), is_checksummed(sealed | {"a": 2}), is_checksummed({"a": 2})
        (True, False, False)
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def is_checksummed(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what was sealed; one without a checksum is not."""
    return dict(content) == seal(content)


def seal_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a zarr array or group with a checksum over everything else, among its attributes."""
    attributes = {key: value for key, value in content["attributes"].items() if key != SEAL}
    checksum = seal({**content, "attributes": attributes})[SEAL]
    return {**content, "attributes": {**attributes, SEAL: checksum}}


class TelemetryChecksums(NamedTuple):
    """What a run's telemetry held when it had made so many updates.

    Attributes:
        step: updates made.
        evaluations: made by then.
        chunks: of each array, the checksum of each chunk, in C order. That of a chunk that was complete is the CRC-32C
            at its end, as zarr's codec writes it; that of any other is of `checksum_of_values`.
    """

    step: int
    evaluations: int
    chunks: Mapping[str, tuple[int, ...]]

    def as_json(self) -> dict[str, Any]:
        """As `from_json` reads it: eight hexadecimal digits for each chunk."""
        texts = {name: "".join(f"{checksum:08x}" for checksum in sums) for name, sums in sorted(self.chunks.items())}
        return {"step": self.step, "evaluations": self.evaluations, "chunks": texts}

    @classmethod
    def from_json(cls, content: Any) -> "TelemetryChecksums":
        """What `as_json` wrote.

        Raises:
            ValueError, LookupError, TypeError: it is nothing of that kind.

        Example:
            >>> checksums = TelemetryChecksums(60, 3, {"loss": (1, 255)})
            >>> checksums.as_json()["chunks"], TelemetryChecksums.from_json(checksums.as_json()) == checksums
            ({'loss': '00000001000000ff'}, True)
        """
        step, evaluations, texts = content["step"], content["evaluations"], dict(content["chunks"])
        if type(step) is not int or type(evaluations) is not int or min(step, evaluations) < 0:
            raise ValueError("a number of steps that is none")
        if not all(re.fullmatch("([0-9a-f]{8})*", text) for text in texts.values()):
            raise ValueError("a checksum that is none")
        chunks = {name: tuple(int(text[i : i + 8], 16) for i in range(0, len(text), 8)) for name, text in texts.items()}
        return cls(step, evaluations, chunks)


def checksum_of_values(name: str, values: np.ndarray, before: int = 0, *, step: int = 0) -> int:
    """CRC-32C over what a chunk holds up to a step, whatever has been written behind it since.

    Args:
        name: of the array.
        values: ``(configs, entries, ...)`` without padding, of the entries by then; or of one dimension.
        before: the checksum of the entries before them, to which these are added.
        step: of `OF_STEPS`, later ones do not count.

    Example:
        >>> loss = np.arange(12.0).reshape(2, 6)
        >>> first = checksum_of_values("loss", loss[:, :4])
        >>> checksum_of_values("loss", loss[:, 4:], first) == checksum_of_values("loss", loss)
        True
    """
    if values.ndim > 1:
        return google_crc32c.extend(before, np.moveaxis(values, 1, 0).tobytes())
    if name in OF_STEPS:
        places = np.flatnonzero((values >= 0) & (values <= step))
        values = np.stack([places, values[places].astype(np.int64)])
    return google_crc32c.value(values.tobytes())


def entries_of_chunk(chunk: int, length: int, reached: int) -> int:
    """Entries of a chunk that are reached, where each has so many.

    Example:
        >>> [entries_of_chunk(chunk, 100, 250) for chunk in range(4)]
        [100, 100, 50, 0]
    """
    return min(max(reached - chunk * length, 0), length)


class RunningChecksums:
    """The checksums of the chunks of arrays (configs, entries, ...) that are written from the first entry to the last.

    Args:
        store: the zarr group's folder.
        arrays: those of the group, by name.
    """

    def __init__(self, store: Path, arrays: Mapping[str, Any]) -> None:
        self._store, self._arrays = store, arrays
        self._complete: dict[Path, int] = {}  # at the ends of files that nothing changes any more
        self._fixed: dict[str, tuple[int, ...]] = {}
        self._partial: dict[str, tuple[int, list[int]]] = {}  # entries, and those of the chunks that they end in

    def add(self, name: str, begin: int, block: np.ndarray) -> None:
        """Take in the entries from ``begin`` on, which are written."""
        length, end = self._arrays[name].chunks[1], begin + block.shape[1]
        block = np.asarray(block, self._arrays[name].dtype)
        for start in range(begin - begin % length, end, length):
            first, last = max(begin, start), min(end, start + length)
            blocks = self._grouped(name, block[:, first - begin : last - begin])
            before = self._of_values(name, first)
            after = [checksum_of_values(name, *pair) for pair in zip(blocks, before, strict=True)]
            self._partial[name] = last, after if last % length else [0] * len(after)

    def of(self, name: str, entries: int) -> tuple[int, ...]:
        """Of each chunk up to so many entries, in C order."""
        whole, rest = divmod(entries, self._arrays[name].chunks[1])
        sums = list[int]()
        for group, last in enumerate(self._of_values(name, entries)):
            sums += [self._of_file(name, group, chunk) for chunk in range(whole)] + ([last] if rest else [])
        return tuple(sums)

    def of_coordinate(self, name: str, step: int) -> tuple[int, ...]:
        """Of each chunk of an array of one dimension; most of these never change."""
        if name in OF_STEPS or name not in self._fixed:
            array = self._arrays[name]
            blocks = (array.blocks[(chunk,)] for chunk in range(array.cdata_shape[0]))
            self._fixed[name] = tuple(checksum_of_values(name, block, step=step) for block in blocks)
        return self._fixed[name]

    def _of_file(self, name: str, group: int, chunk: int) -> int:
        rest = "/0" * (self._arrays[name].ndim - 2)
        file = self._store / f"{name}/c/{group}/{chunk}{rest}"
        if file not in self._complete:
            with file.open("rb") as opened:
                opened.seek(-4, os.SEEK_END)
                self._complete[file] = int.from_bytes(opened.read(), "little")
        return self._complete[file]

    def _of_values(self, name: str, entries: int) -> list[int]:
        """Of the entries before one in its chunk, for each group of configurations."""
        if self._partial.get(name, (-1, []))[0] != entries:  # as after a run went on
            array = self._arrays[name]
            blocks = self._grouped(name, array[:, entries - entries % array.chunks[1] : entries])
            self._partial[name] = entries, [checksum_of_values(name, block) for block in blocks]
        return self._partial[name][1]

    def _grouped(self, name: str, block: np.ndarray) -> list[np.ndarray]:
        per_chunk = self._arrays[name].chunks[0]
        return [block[row : row + per_chunk] for row in range(0, len(block), per_chunk)]
