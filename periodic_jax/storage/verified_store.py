"""A run's telemetry store as readers see it: a corrupted or missing chunk is an error that names the file.

Array chunks carry a CRC32C of their own (zarr's codec), which finds every flipped byte. What the run recorded of its
chunks finds one that is right in itself, and of another run or place. zarr alone takes a missing chunk for an empty
one, and unfolds whatever a chunk holds.
"""

import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numcodecs
import numpy as np
import zarr
from zarr.storage import LocalStore, WrapperStore

from periodic_jax.core.errors import CorruptedRunError, UnreadableError, as_corruption, failed_read, first_line
from periodic_jax.core.grid import AXES
from periodic_jax.storage.checksums import TelemetryChecksums, checksum_of_values, entries_of_chunk
from periodic_jax.storage.run_directory import TELEMETRY

METADATA, CONSOLIDATED = "zarr.json", "consolidated_metadata"
ARRAYS = "arrays"  # among the group's attributes: the names of all arrays of the store
COORDINATES = (*AXES, "step", "eval_step", "layer")
MISSING = "missing"
FRAMING = 2**12  # bytes that a compressed chunk takes beside its content


class Expected(NamedTuple):
    """What must be there of one array of a store."""

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]  # its shape
    dtype: np.dtype[Any]
    counts: tuple[int, ...]  # chunks along each dimension, as far as the run has come
    reached: int  # entries along the second dimension
    steps: int | None  # in a chunk, of an array over steps
    step: int = 0  # updates made
    checksums: tuple[int, ...] = ()  # of the chunks, in C order, where the run recorded them

    @property
    def size(self) -> int:
        """Bytes of a chunk, unfolded."""
        return math.prod(self.chunk) * self.dtype.itemsize

    def holds(self, index: tuple[int, ...]) -> bool:
        """Whether the chunk must be there."""
        return len(index) == len(self.counts) and all(i < n for i, n in zip(index, self.counts, strict=True))

    def error(self, content: bytes, index: tuple[int, ...]) -> str | None:
        """What is wrong with the bytes of a chunk; None for a verified one."""
        if unfolds_to(content[:18]) != self.size:
            return f"does not unfold to {self.size} bytes"
        if google_crc32c.value(content[:-4]).to_bytes(4, "little") != content[-4:]:
            return "its checksum is another one"
        if self.checksums and self.holds(index):
            place = int(np.ravel_multi_index(index, self.counts))
            # Where a run was extended, ``step`` may have more chunks than it recorded.
            if place < len(self.checksums) and self.checksums[place] != self._checksum(content, index):
                return "it is not what the run recorded there"
        return None

    def _checksum(self, content: bytes, index: tuple[int, ...]) -> int:
        """As `TelemetryChecksums` has it of a chunk."""
        inner = (slice(self.shape[0] - index[0] * self.chunk[0]),)  # behind it is padding
        if len(index) > 1:
            entries = entries_of_chunk(index[1], self.chunk[1], self.reached)
            if entries == self.chunk[1]:
                return int.from_bytes(content[-4:], "little")
            inner = (*inner, slice(entries))
        values = np.frombuffer(numcodecs.Zstd().decode(content[:-4]), self.dtype.newbyteorder("<"))
        return checksum_of_values(self.name, values.reshape(self.chunk)[inner], step=self.step)


class VerifiedStore(WrapperStore[LocalStore]):
    """Gives out verified chunks only, whenever they are read, and takes none for empty that the run had reached.

    Args:
        store: the telemetry of a run, with verified metadata.
        expected: what must be there of each array.
    """

    def __init__(self, store: LocalStore, expected: Mapping[str, Expected]) -> None:
        super().__init__(store)
        self.expected = expected

    def _with_store(self, store: LocalStore) -> "VerifiedStore":
        return VerifiedStore(store, self.expected)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The content of a file.

        Raises:
            CorruptedRunError: a chunk is not what was written.
            UnreadableError: the file cannot be read now.
        """
        try:
            return await self._verified(key, prototype, byte_range)
        except OSError as error:
            raise UnreadableError(self._store.root / key, failed_read(error) or first_line(error)) from None

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The entries of a folder, of the group's without those that are no arrays: zarr would warn of them."""
        async for name in super().list_dir(prefix):
            if prefix.strip("/") or name == METADATA or (self._store.root / name / METADATA).exists():
                yield name

    async def _verified(self, key: str, prototype: Any, byte_range: Any) -> Any:
        name, _, place = key.partition("/c/")
        expected = self.expected.get(name)
        if not place or expected is None or key.endswith(METADATA):
            return await super().get(key, prototype, byte_range)
        reason = content = None
        index = tuple(map(int, place.split("/")))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if (size := (self._store.root / key).stat().st_size) > 2 * expected.size + FRAMING:
                reason = f"{size} bytes long"
        if not reason:
            content = await super().get(key, prototype, byte_range)
            if content is not None:
                reason = expected.error(content.to_bytes(), index)
            elif expected.holds(index):
                reason = MISSING
        if reason:
            raise corrupted_telemetry(self._store.root.parent, reason, key)
        return content


def open_verified(
    store: Path, first_step: int, step: int, checksums: TelemetryChecksums | None = None
) -> VerifiedStore:
    """Open a store, whose metadata are verified, of a run that has come so far.

    Args:
        store: the zarr group.
        first_step: the run's first step.
        step: updates made; what is recorded of later ones may be missing.
        checksums: those recorded then, if there are any.
    """
    local = LocalStore(store, read_only=True)
    group, reached = open_group(VerifiedStore(local, {})), {"step": step - first_step}
    if checksums:
        reached["eval_step"] = checksums.evaluations
        return VerifiedStore(local, _expected(group, reached, checksums))
    # A corrupted chunk is found when the array's own turn comes.
    with contextlib.suppress(CorruptedRunError), as_corruption("eval_step", ""):
        # The first evaluation is made when training begins: after the store is built.
        made: Any = open_group(VerifiedStore(local, _expected(group, {})))["eval_step"]
        reached["eval_step"] = int((made[:] <= step).sum()) if step > first_step else 0
    return VerifiedStore(local, _expected(group, reached))


def _expected(
    group: Any, reached: Mapping[str, int], checksums: TelemetryChecksums | None = None
) -> dict[str, Expected]:
    """What must be there of each array: as many entries as are reached along the second dimension, or all."""
    expected = {}
    for name, array in sorted(group.arrays()):
        counts, over, most = list(array.cdata_shape), array.metadata.dimension_names[1:2], 0
        for dimension in over:
            most = reached.get(dimension, array.shape[1])
            counts[1] = min(counts[1], -(-most // array.chunks[1]))
        steps = array.chunks[1] if over == ("step",) else None
        expected[name] = Expected(
            name, array.shape, array.chunks, array.dtype, tuple(counts), most, steps,
            step=checksums.step if checksums else 0, checksums=checksums.chunks.get(name, ()) if checksums else (),
        )  # fmt: skip
    return expected


def open_group(store: VerifiedStore) -> zarr.Group:
    """The arrays of a store, by their own metadata alone."""
    return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)


def unfolds_to(head: bytes) -> int | None:
    """Bytes that zstd's content declares it unfolds to, by RFC 8878, section 3.1.1.1; None where it declares none.

    Args:
        head: its first 18 bytes, or all of it.
    """
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    size_kind, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    begin = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    length = (single, 2, 4, 8)[size_kind]
    if not length or len(head) < begin + length:
        return None
    return int.from_bytes(head[begin : begin + length], "little") + 256 * (length == 2)


def corrupted_telemetry(run: Path, reason: str, file: str = "") -> CorruptedRunError:
    """The error about a corrupted file of a run's telemetry.

    Args:
        run: the run directory.
        reason: what is wrong.
        file: with which file of the store; the store itself, if not given.
    """
    return CorruptedRunError(run / TELEMETRY / file, reason, telemetry_remedy(run, file))


def telemetry_remedy(run: Path, file: str = "") -> str:
    """What to do about corrupted telemetry."""
    if is_rebuildable(file):
        return f"periodic-jax resume {run} rebuilds it from config.json"
    return f"periodic-jax resume {run} --truncate computes it again"


def is_rebuildable(file: str) -> bool:
    """Whether config.json determines what a file of a store holds: metadata and coordinates.

    Example:
        >>> is_rebuildable("loss/zarr.json"), is_rebuildable("lr/c/0"), is_rebuildable("loss/c/0/0")
        (True, True, False)
    """
    return file.endswith(METADATA) or file.partition("/")[0] in COORDINATES
