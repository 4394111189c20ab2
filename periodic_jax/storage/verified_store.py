"""A run's telemetry store as readers see it: a corrupted or missing chunk is an error that names the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore, WrapperStore

from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.storage.run_directory import TELEMETRY
from periodic_jax.storage.verification import METADATA, MISSING, Corruption, Expected, chunk_error, too_long


class VerifiedStore(WrapperStore[LocalStore]):
    """Gives out verified chunks only, whenever they are read, and takes none for empty that the run had reached.

    Args:
        store: the telemetry of a run, with verified metadata.
        run: the run directory.
        wanted: what must be there of each array; see `storage.verification.expected`.
    """

    def __init__(self, store: LocalStore, run: Path, wanted: Mapping[str, Expected]) -> None:
        super().__init__(store)
        self._run, self._wanted = run, wanted

    def _with_store(self, store: LocalStore) -> "VerifiedStore":
        return VerifiedStore(store, self._run, self._wanted)

    async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
        """The content of a file.

        Raises:
            CorruptedRunError: a chunk is not what was written.
        """
        name, _, place = key.partition("/c/")
        wanted = self._wanted.get(name)
        if not place or wanted is None or key.endswith(METADATA):
            return await super().get(key, prototype, byte_range)
        if long := too_long(self._store.root / key, wanted):
            raise corrupted_telemetry(self._run, Corruption(key, None, long))
        content = await super().get(key, prototype, byte_range)
        if content is None:
            reason = MISSING if wanted.holds(tuple(map(int, place.split("/")))) else None
        else:
            reason = chunk_error(content.to_bytes(), wanted)
        if reason:
            raise corrupted_telemetry(self._run, Corruption(key, None, reason))
        return content


def corrupted_telemetry(run: Path, found: Corruption) -> CorruptedRunError:
    """The error about a corrupted file of a run's telemetry.

    Args:
        run: the run directory.
        found: what is wrong, with which file of the store.
    """
    remedy = f"periodic-jax resume {run} --truncate computes it again"
    return CorruptedRunError(run / TELEMETRY / found.file, found.reason, remedy)
