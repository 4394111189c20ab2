"""Writes the telemetry store of a run directory, chunk by chunk, so that what is committed survives any end.

`storage.run_directory` describes the store, and how it is read.
"""

import itertools
import json
import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from periodic_jax.core.errors import UnreadableError
from periodic_jax.core.files import PARTIAL, replace_folder, sync, write_atomically, write_json
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.storage.checksums import RunningChecksums, TelemetryChecksums, seal_metadata
from periodic_jax.storage.run_directory import TELEMETRY
from periodic_jax.storage.schema import FORMAT, describe
from periodic_jax.storage.verification import ITEM_SIZES, Corruption, find_corruptions
from periodic_jax.storage.verified_store import ARRAYS, CONSOLIDATED, COORDINATES, METADATA, is_rebuildable, unfolds_to

MOST_IN_CHUNK = 4096  # configurations


def finalize_store(path: Path) -> None:
    """Mend what is left of a run's store that an earlier version was regrouping for several processes when it died.

    Args:
        path: the run directory, locked.
    """
    store = path / TELEMETRY
    replaced = store.with_name(store.name + ".replaced")
    if replaced.exists():
        shutil.rmtree(replaced) if store.exists() else replaced.rename(store)


def regular_chunk(configs: int) -> int:
    """Configurations in a chunk of a new store.

    Example:
        >>> regular_chunk(10), regular_chunk(10000)
        (10, 3334)
    """
    return -(-configs // -(-configs // MOST_IN_CHUNK))


def along_steps(per_chunk: int, numbers: int) -> int:
    """Steps in a chunk of so many configurations, with so many numbers of each."""
    return int(np.clip(2**20 // (per_chunk * numbers), 100, 4000))


class TelemetryLayout(NamedTuple):
    """What a run's telemetry has room for."""

    grid: SweepGrid
    steps: int  # planned number of updates
    eval_steps: Sequence[int]  # the updates after which evaluations are planned
    shapes: Mapping[str, np.ndarray]  # of each recorded name: (configs, 0) or (configs, 0, layers), with its dtype
    evaluations: Sequence[str]  # names of the evaluated quantities
    layers: Sequence[str] = ()  # their names, for the ``layer`` dimension
    first_step: int = 0  # the first step that is recorded; not 0 for a branch of another run


class TelemetryWriter:
    """Writes one run's telemetry. A store that exists is continued, in the chunks that it has.

    Args:
        path: the run directory, already claimed.
        layout: of the telemetry.
        anew: in the place of a store that exists, make a new one.
    """

    def __init__(self, path: Path, layout: TelemetryLayout, *, anew: bool = False) -> None:
        self._store, self._layout = path / TELEMETRY, layout
        self._eval_index = {step: i for i, step in enumerate(layout.eval_steps)}
        self._changed: set[Path] = set()
        if anew or not self._store.exists():
            with replace_folder(self._store) as draft:
                _build(draft, layout)
        steps, eval_steps = _steps_of(layout)
        self._fit(len(steps), len(eval_steps))
        self._arrays = self._opened()
        self._checksums = RunningChecksums(self._store, self._arrays)
        self._chunks = range(-(-len(layout.grid) // self._arrays["loss"].chunks[0]))  # along the configurations
        for name, values in (("step", steps), ("eval_step", eval_steps)):
            if not np.array_equal(self._arrays[name][:], values):
                self._arrays[name][:] = values

    def write(self, first_step: int, telemetry: Mapping[str, np.ndarray]) -> None:
        """Write a block of consecutive steps ``(configs, steps, ...)``."""
        for name, block in telemetry.items():
            if block.shape[1]:
                self._put(name, first_step - self._layout.first_step, block)
                self._checksums.add(name, first_step - self._layout.first_step, block)

    def write_evaluation(self, step: int, evaluation: Mapping[str, np.ndarray]) -> None:
        """Write the evaluation ``(configs,)`` made after ``step`` updates."""
        for name, values in evaluation.items():
            self._put(name, self._eval_index[step], values[:, None])
            self._checksums.add(name, self._eval_index[step], values[:, None])

    def write_diverged(self, diverged_at: np.ndarray) -> None:
        """Write the step at which each configuration diverged, -1 for never."""
        self._arrays["diverged_at"][:] = np.where(diverged_at < 0, np.nan, diverged_at)
        self._changed.update(self._store / f"diverged_at/c/{k}" for k in self._chunks)

    def truncate(self, step: int) -> None:
        """Forget all that was recorded after ``step`` updates, and what a killed process left half-written."""
        for partial in self._store.rglob(f"*{PARTIAL}"):
            partial.unlink()
        evaluated = sum(at <= step for at in self._eval_index)
        for name in self._layout.shapes:
            self._cut(name, step - self._layout.first_step)
        for name in self._layout.evaluations:
            self._cut(name, evaluated)

    def commit(self) -> None:
        """Make all that was written so far survive a loss of power."""
        for file in [*self._changed, *{file.parent for file in self._changed}]:
            sync(file)
        self._changed.clear()

    def checksums(self, step: int) -> TelemetryChecksums:
        """What the store holds after ``step`` updates, all of which are written."""
        evaluated = sum(at <= step for at in self._eval_index)
        chunks = {name: self._checksums.of(name, step - self._layout.first_step) for name in self._layout.shapes}
        chunks |= {name: self._checksums.of(name, evaluated) for name in self._layout.evaluations}
        flat = (name for name, array in self._arrays.items() if array.ndim == 1)
        chunks |= {name: self._checksums.of_coordinate(name, step) for name in flat}
        return TelemetryChecksums(step, evaluated, chunks)

    def _put(self, name: str, begin: int, block: np.ndarray) -> None:
        array, end = self._arrays[name], begin + block.shape[1]
        array[:, begin:end] = block
        rest = "/0" * (array.ndim - 2)
        chunks = range(begin // array.chunks[1], -(-end // array.chunks[1]))
        places = itertools.product(self._chunks, chunks)
        self._changed.update(self._store / f"{name}/c/{k}/{chunk}{rest}" for k, chunk in places)

    def _opened(self) -> dict[str, Any]:
        # As a LocalStore: a path given as text would be taken for an address where it has "::" in it.
        group = zarr.open_group(LocalStore(self._store), mode="r+", zarr_format=3, use_consolidated=False)
        complete: Any = {"write_empty_chunks": True}  # so that a missing file is always corruption
        arrays: dict[str, Any] = {
            file.parent.name: group[file.parent.name] for file in self._store.glob(f"*/{METADATA}")
        }
        return {name: array.with_config(complete) for name, array in arrays.items()}

    def _cut(self, name: str, length: int) -> None:
        """Remove the chunks from index ``length`` on, and fill the rest of the one that it falls into."""
        array = self._arrays[name]
        along = array.chunks[1]
        first = -(-length // along)
        for chunk in (self._store / name / "c").glob("*/*"):
            if chunk.name.isdecimal() and int(chunk.name) >= first:
                shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
        end = min(first * along, array.shape[1])
        if end > length:
            self._put(name, length, np.full((array.shape[0], end - length, *array.shape[2:]), np.nan, array.dtype))

    def _fit(self, recorded: int, evaluations: int) -> None:
        """Give the arrays the planned lengths; they change when a run is extended."""
        planned = dict.fromkeys(("step", *self._layout.shapes), recorded)
        planned |= dict.fromkeys(("eval_step", *self._layout.evaluations), evaluations)
        group = self._store / METADATA
        for name, length in planned.items():
            file = self._store / name / METADATA
            content = json.loads(file.read_text())
            axis = min(len(content["shape"]) - 1, 1)
            if content["shape"][axis] == length:
                continue
            if (root := json.loads(group.read_text())).pop(CONSOLIDATED, None):  # which would no longer be right
                write_json(group, root)
            content["shape"][axis] = length
            write_json(file, seal_metadata(content))


def _steps_of(layout: TelemetryLayout) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates ``step`` and ``eval_step``."""
    return np.arange(layout.first_step, layout.steps), np.asarray(layout.eval_steps, np.int64)


def _build(draft: Path, layout: TelemetryLayout) -> None:
    """A new store, with all coordinates."""
    grid, _, eval_steps, shapes, evaluations, layers, _ = layout
    recorded_steps, evaluated = _steps_of(layout)
    group = zarr.create_group(LocalStore(draft), zarr_format=3)
    group.attrs.update({"swept": list(grid.swept), "format": FORMAT})
    configs, recorded, grouped = len(grid), len(recorded_steps), regular_chunk(len(grid))

    def create(name: str, shape: Any, chunks: Any, dtype: Any) -> Any:
        quantity = describe(name)
        fill = {"f": np.nan, "i": -1}.get(np.dtype(dtype).kind, 0)  # no step is NaN or -1: they are written always
        return group.create_array(
            name, shape=shape, chunks=tuple(max(c, 1) for c in chunks), dtype=dtype, fill_value=fill,
            compressors=[ZstdCodec(), Crc32cCodec()], dimension_names=quantity.dims,
            config={"write_empty_chunks": True}, attributes={**quantity.attributes},
        )  # fmt: skip

    for name in AXES:
        create(name, (configs,), (configs,), grid.coords[name].dtype)[:] = grid.coords[name]
    create("step", (recorded,), (max(recorded, 4000),), np.int64)[:] = recorded_steps  # it may be extended
    create("eval_step", (len(eval_steps),), (max(len(eval_steps), 100),), np.int64)[:] = evaluated
    if any(s.ndim == 3 for s in shapes.values()):
        create("layer", (len(layers),), (len(layers),), np.int64)[:] = np.arange(len(layers))
        group.attrs["layer_names"] = list(layers)
    create("diverged_at", (configs,), (grouped,), np.float64)[:] = np.full(configs, np.nan)
    for name, empty in shapes.items():
        extra = empty.shape[2:]
        along = along_steps(grouped, math.prod(extra))
        create(name, (configs, recorded, *extra), (grouped, along, *extra), empty.dtype)
    for name in evaluations:
        create(name, (configs, len(eval_steps)), (grouped, max(len(eval_steps), 100)), shapes["loss"].dtype)
    group.attrs[ARRAYS] = sorted(group.array_keys())
    for file in draft.rglob(METADATA):
        write_json(file, seal_metadata(json.loads(file.read_text())))


class Rebuilt(NamedTuple):
    """What mends a store without computing anything again."""

    files: Mapping[str, bytes]  # their content, by name in the store
    left: Sequence[Corruption]  # what it does not mend

    def write(self, path: Path) -> None:
        """Write them into a run's store."""
        for name, content in self.files.items():
            (path / TELEMETRY / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path / TELEMETRY / name, content)


def rebuild(
    path: Path, layout: TelemetryLayout, step: int, lengths: Mapping[str, int], checksums: TelemetryChecksums | None
) -> Rebuilt:
    """Find what is corrupted in a store, and make anew what config.json determines of it: metadata and coordinates.

    Writes nothing into the run. The chunks are verified as the new metadata declare them.

    Args:
        path: the run directory.
        layout: that of its telemetry, by config.json.
        step, lengths, checksums: as for `find_corruptions`.

    Raises:
        UnreadableError: a file cannot be read now.
    """
    store, corrupted, files = path / TELEMETRY, set[str](), dict[str, bytes]()
    left = list(find_corruptions(store, layout.first_step, step, lengths, checksums))
    if not store.is_dir() or not any(is_rebuildable(corruption.file) for corruption in left):
        return Rebuilt(files, left)
    with tempfile.TemporaryDirectory() as folder:
        _build(Path(folder, "new"), layout)
        made = _rebuildable_files(Path(folder, "new"), store)
        # Chunks are looked at where all metadata are right: at most metadata first, then coordinates, then all of it.
        while (
            found := {_array_of(corruption.file) for corruption in left if is_rebuildable(corruption.file)} - corrupted
        ):
            corrupted |= found
            files = {name: content for name, content in made.items() if _array_of(name) in corrupted}
            trial = Path(folder, f"trial-{len(corrupted)}")
            _overlay(trial, store, files)
            try:
                left = list(find_corruptions(trial, layout.first_step, step, lengths, checksums))
            except UnreadableError as error:
                raise UnreadableError(store / Path(str(error.file)).relative_to(trial), error.reason) from None
    return Rebuilt(files, left)


def _array_of(file: str) -> str:
    """The array that a file of a store belongs to; none for the group's metadata."""
    return file.rpartition(METADATA)[0].rstrip("/") if file.endswith(METADATA) else file.partition("/")[0]


def _rebuildable_files(new: Path, store: Path) -> dict[str, bytes]:
    """The files of a new store whose content does not depend on what was recorded."""
    files = {file.relative_to(new).as_posix(): file for file in new.rglob("*") if file.is_file()}
    made = {name: file.read_bytes() for name, file in files.items() if is_rebuildable(name)}
    for name in (name for name in made if name.endswith(METADATA) and _array_of(name) not in ("", *COORDINATES)):
        content = json.loads(made[name])
        chunk = content["chunk_grid"]["configuration"]["chunk_shape"]
        first = store / _array_of(name) / "/".join(["c", *"0" * len(chunk)])
        if len(chunk) > 1 and first.is_file():  # a run that was extended has the chunks of its first plan
            with first.open("rb") as opened:
                size = unfolds_to(opened.read(18)) or 0
            one = ITEM_SIZES[content["data_type"]] * math.prod(chunk) // chunk[1]
            chunk[1] = size // one if size and size % one == 0 else chunk[1]
            made[name] = (json.dumps(seal_metadata(content), indent=2) + "\n").encode()
    return made


def _overlay(trial: Path, store: Path, files: Mapping[str, bytes]) -> None:
    """A store as it would be with some files replaced, made of links."""
    trial.mkdir()
    replaced = {_array_of(name) for name in files}
    for folder in (folder for folder in store.iterdir() if folder.is_dir() and folder.name not in replaced):
        (trial / folder.name).symlink_to(folder.resolve())
    if (store / METADATA).is_file():
        shutil.copy(store / METADATA, trial / METADATA)
    for name, content in files.items():
        (trial / name).parent.mkdir(parents=True, exist_ok=True)
        (trial / name).write_bytes(content)
    for name in replaced - {"", *COORDINATES}:
        if (store / name / "c").is_dir():
            (trial / name / "c").symlink_to((store / name / "c").resolve())
