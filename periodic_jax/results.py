"""The run directory: telemetry of every step as zarr arrays with names, coordinates and units, opened as an xarray
Dataset.

    DIR/config.json      resolved configuration, versions, command, hardware, and the summary when the run has ended
       /telemetry.zarr   zarr v3 group, dims (config, step) and (config, eval_step), NaN where nothing was reached
       /checkpoints/     see `checkpoints`

No pickle and no code is ever read from a run directory.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from periodic_jax.errors import ConfigError
from periodic_jax.grid import AXES, SweepGrid
from periodic_jax.integrity import METADATA, SEAL, is_whole, metadata_damage, seal, seal_metadata, write_json

CONFIG_FILE = "config.json"
TELEMETRY = "telemetry.zarr"
SUMMARY_FILE = "summary.csv"
CHECKPOINTS = "checkpoints"
CHECKSUMS = "checksums.json"  # the last file of a checkpoint to be written
ANALYSIS = "analysis.zarr"
OWN_FILES = (CONFIG_FILE, TELEMETRY, CHECKPOINTS, "figures", "report.html", SUMMARY_FILE, ANALYSIS)
FORMAT = 1

# name -> (long name, units)
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "loss": ("mini-batch loss", "nats"),
    "accuracy": ("mini-batch accuracy", "1"),
    "weight_norm": ("weight norm", "1"),
    "grad_norm": ("gradient norm", "1"),
    "effective_grad_norm": ("effective gradient norm", "1"),
    "effective_lr": ("effective learning rate", "1"),
    "angular_step": ("angular step", "rad"),
    "radial_leak": ("radial leak", "1"),
    "noninvariant_weight_norm": ("norm of the other weights", "1"),
    "noninvariant_grad_norm": ("gradient norm over the other weights", "1"),
    "layer_weight_norm": ("norm of each scale-invariant layer", "1"),
    "layer_effective_lr": ("effective learning rate of each layer", "1"),
    "layer_effective_grad_norm": ("effective gradient norm of each layer", "1"),
    "layer_angular_step": ("angular step of each layer", "rad"),
    "train_loss": ("training loss", "nats"),
    "train_error": ("training error", "1"),
    "test_loss": ("test loss", "nats"),
    "test_error": ("test error", "1"),
    "corrupted_train_loss": ("training loss on images of corrupted labels", "nats"),
    "corrupted_train_error": ("training error on images of corrupted labels", "1"),
    "clean_train_loss": ("training loss on images of clean labels", "nats"),
    "clean_train_error": ("training error on images of clean labels", "1"),
    "diverged_at": ("step whose loss or update was not finite", "step"),
    "lr": ("learning rate", "1"),
    "weight_decay": ("weight decay", "1"),
    "momentum": ("momentum", "1"),
    "noninvariant_lr": ("learning rate of the other weights (negative: the same)", "1"),
    "elr": ("fixed effective learning rate (0: off)", "1"),
    "fixed_norm": ("fixed weight norm (0: free, negative: initial)", "1"),
    "schedule_end": ("end of the learning-rate schedule", "step"),
    "schedule_factor": ("divisor of the learning-rate schedule", "1"),
    "schedule_every": ("updates between changes of the schedule", "step"),
    "seed": ("seed", "1"),
    "step": ("step", "step"),
    "eval_step": ("updates made before the evaluation", "step"),
    "layer": ("layer", ""),
}


def check_unused(path: Path) -> None:
    """Refuse a run directory that is taken.

    Raises:
        ConfigError: it holds a run already, is not a folder, or has a name that no folder can have.
    """
    try:
        file, taken = path.exists() and not path.is_dir(), any((path / name).exists() for name in OWN_FILES)
    except OSError as error:
        raise ConfigError("--out", path, f"a folder that can be read ({error.strerror})") from None
    if file:
        raise ConfigError("--out", path, "a folder, not a file")
    if taken:
        raise ConfigError("--out", path, "a folder that holds no run yet")


def claim_directory(path: Path) -> None:
    """Create a run's folder.

    Raises:
        ConfigError: it holds a run already, is not a folder, or cannot be written.
    """
    check_unused(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError("--out", path, f"a folder that can be written ({error.strerror})") from None
    except ValueError as error:  # a null character in the name
        raise ConfigError("--out", path, f"a folder that can be written ({error})") from None


def write_config(path: Path, record: Mapping[str, Any]) -> None:
    """Write a run's config.json, with a checksum."""
    write_json(path / CONFIG_FILE, seal(record))


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises:
        ConfigError: the folder holds no run, or its config.json is damaged.
    """
    file = Path(path) / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise ConfigError("run directory", path, f"a folder with a {CONFIG_FILE}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("run directory", file, f"a readable JSON file ({error})") from None
    if isinstance(content, dict) and not is_whole(content):
        raise ConfigError("run directory", file, "a file as it was written (its checksum is another one)")
    genuine = isinstance(content, dict) and isinstance(content.get("config", {}), dict)
    if not genuine or content.get("format") != FORMAT:
        raise ConfigError("run directory", file, f"a run of format {FORMAT}")
    return {key: value for key, value in content.items() if key != SEAL}


def checkpoint_steps(path: Path) -> list[int]:
    """The steps of a run's complete checkpoints, ascending."""
    found = (folder for folder in (path / CHECKPOINTS).glob("*") if folder.name.isdecimal())
    return sorted(int(folder.name) for folder in found if (folder / CHECKSUMS).exists())


def steps_per_epoch(path: str | Path) -> int | None:
    """Updates of one epoch of a run, as its config.json tells; None where it does not."""
    record = read_config(path)
    data, config = record.get("data"), record.get("config", {})
    if config.get("full_batch") is True:
        return 1
    images, batch = (data.get("train_images") if isinstance(data, dict) else None), config.get("batch_size")
    if not (isinstance(images, int) and isinstance(batch, int) and images > 0 and batch > 0):
        return None
    return max(images // batch, 1)


class TelemetryWriter:
    """Writes one run's telemetry; the only writer of its store. A store that exists is continued.

    Args:
        path: the run directory, already claimed.
        grid: the configurations.
        steps: planned number of updates.
        eval_steps: the updates after which evaluations are planned.
        shapes: for each recorded name, an array of shape ``(configs, 0)`` or ``(configs, 0, layers)`` with its dtype.
        evaluations: names of the evaluated quantities.
        layers: names of the layers, for the ``layer`` dimension.
        first_step: the first step that is recorded; not 0 for a branch of another run.
    """

    def __init__(
        self,
        path: Path,
        grid: SweepGrid,
        steps: int,
        eval_steps: Sequence[int],
        shapes: Mapping[str, np.ndarray],
        evaluations: Sequence[str],
        layers: Sequence[str] = (),
        first_step: int = 0,
    ) -> None:
        self._store, self._first = path / TELEMETRY, first_step
        self._names, self._evaluations = list(shapes), list(evaluations)
        self._eval_index = {step: i for i, step in enumerate(eval_steps)}
        self._changed: set[Path] = set()
        if not self._store.exists():
            self._build(grid, steps, eval_steps, shapes, layers)
        self._fit(steps - first_step, len(eval_steps))
        # As a LocalStore: a path given as text would be taken for an address where it has "::" in it.
        group = zarr.open_group(LocalStore(self._store), mode="r+", zarr_format=3)
        whole: Any = {"write_empty_chunks": True}  # so that a missing file is always damage
        self._arrays: dict[str, Any] = {name: array.with_config(whole) for name, array in group.arrays()}
        for name, values in (("step", np.arange(first_step, steps)), ("eval_step", np.asarray(eval_steps, np.int64))):
            self._arrays[name][:] = values

    def write(self, first_step: int, telemetry: Mapping[str, np.ndarray]) -> None:
        """Write a block of consecutive steps ``(configs, steps, ...)``."""
        for name, block in telemetry.items():
            if block.shape[1]:
                self._put(name, first_step - self._first, block)

    def write_evaluation(self, step: int, evaluation: Mapping[str, np.ndarray]) -> None:
        """Write the evaluation ``(configs,)`` made after ``step`` updates."""
        for name, values in evaluation.items():
            self._put(name, self._eval_index[step], values[:, None])

    def write_diverged(self, diverged_at: np.ndarray) -> None:
        """Write the step at which each configuration diverged, -1 for never."""
        self._arrays["diverged_at"][:] = np.where(diverged_at < 0, np.nan, diverged_at)
        self._changed.add(self._store / "diverged_at/c/0")

    def truncate(self, step: int) -> None:
        """Forget all that was recorded after ``step`` updates, and what a killed process left half-written."""
        for partial in self._store.rglob("*.partial"):
            partial.unlink()
        evaluated = sum(at <= step for at in self._eval_index)
        for names, kept in ((self._names, step - self._first), (self._evaluations, evaluated)):
            for name in names:
                self._cut(name, kept)

    def commit(self) -> None:
        """Make all that was written so far survive a loss of power."""
        for file in [*self._changed, *{file.parent for file in self._changed}]:
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._changed.clear()

    def _put(self, name: str, begin: int, block: np.ndarray) -> None:
        array, end = self._arrays[name], begin + block.shape[1]
        array[:, begin:end] = block
        rest = "/0" * (array.ndim - 2)
        chunks = range(begin // array.chunks[1], -(-end // array.chunks[1]))
        self._changed.update(self._store / f"{name}/c/0/{chunk}{rest}" for chunk in chunks)

    def _cut(self, name: str, kept: int) -> None:
        """Remove the chunks from index ``kept`` on, and fill the rest of the one that it falls into."""
        array = self._arrays[name]
        along = array.chunks[1]
        first = -(-kept // along)
        for chunk in (self._store / name / "c/0").glob("*"):
            if chunk.name.isdecimal() and int(chunk.name) >= first:
                shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
        if kept % along and first * along > kept:
            end = min(first * along, array.shape[1])
            self._put(name, kept, np.full((array.shape[0], end - kept, *array.shape[2:]), np.nan, array.dtype))

    def _build(
        self,
        grid: SweepGrid,
        steps: int,
        eval_steps: Sequence[int],
        shapes: Mapping[str, np.ndarray],
        layers: Sequence[str],
    ) -> None:
        """Create the store, beside its place first: it is there whole or not at all."""
        draft = self._store.with_name(self._store.name + ".partial")
        if draft.exists():
            shutil.rmtree(draft)
        group = zarr.create_group(LocalStore(draft), zarr_format=3)
        group.attrs.update({"swept": list(grid.swept), "format": FORMAT})
        configs, recorded = len(grid), steps - self._first

        def create(name: str, shape: Any, chunks: Any, dims: Sequence[str], dtype: Any) -> Any:
            long_name, units = ATTRIBUTES[name]
            fill = np.nan if np.issubdtype(dtype, np.floating) else 0
            return group.create_array(
                name, shape=shape, chunks=tuple(max(c, 1) for c in chunks), dtype=dtype, fill_value=fill,
                compressors=[ZstdCodec(), Crc32cCodec()], dimension_names=dims, config={"write_empty_chunks": True},
                attributes={"long_name": long_name, "units": units},
            )  # fmt: skip

        for name in AXES:
            create(name, (configs,), (configs,), ("config",), grid.coords[name].dtype)[:] = grid.coords[name]
        create("step", (recorded,), (max(recorded, 4000),), ("step",), np.int64)  # a run may be extended
        create("eval_step", (len(eval_steps),), (max(len(eval_steps), 100),), ("eval_step",), np.int64)
        if any(s.ndim == 3 for s in shapes.values()):
            create("layer", (len(layers),), (len(layers),), ("layer",), np.int64)[:] = np.arange(len(layers))
            group.attrs["layer_names"] = list(layers)
        create("diverged_at", (configs,), (configs,), ("config",), np.float64)[:] = np.full(configs, np.nan)
        for name, empty in shapes.items():
            extra = empty.shape[2:]
            along = int(np.clip(2**20 // (configs * math.prod(extra)), 100, 4000))
            dims = ("config", "step", "layer")[: empty.ndim]
            create(name, (configs, recorded, *extra), (configs, along, *extra), dims, empty.dtype)
        for name in self._evaluations:
            chunks = (configs, max(len(eval_steps), 100))
            create(name, (configs, len(eval_steps)), chunks, ("config", "eval_step"), shapes["loss"].dtype)
        for file in draft.rglob(METADATA):
            write_json(file, seal_metadata(json.loads(file.read_text())))
        draft.replace(self._store)

    def _fit(self, recorded: int, evaluations: int) -> None:
        """Give the arrays the planned lengths; they change when a run is extended."""
        for name in (*self._names, *self._evaluations, "step", "eval_step"):
            file = self._store / name / METADATA
            content = json.loads(file.read_text())
            planned = recorded if name in (*self._names, "step") else evaluations
            axis = 0 if name in ("step", "eval_step") else 1
            if content["shape"][axis] != planned:
                content["shape"][axis] = planned
                write_json(file, seal_metadata(content))


def open_run(path: str | Path, *, flat: bool = False) -> xr.Dataset:
    """Open a run's telemetry.

    Args:
        path: the run directory.
        flat: keep the one dimension ``config`` instead of one dimension for each swept axis.

    Returns:
        A Dataset: per-step quantities over (..., step), evaluations over (..., eval_step), with every hyperparameter
        a coordinate. NaN means "not reached". A product grid has a dimension for each swept axis, so that
        ``ds.loss.sel(lr=0.1, weight_decay=1e-3)`` is one curve; other grids, and ``flat``, have ``config``. With
        ``flat`` the quantities are read when they are used, and not before.

    Raises:
        ConfigError: the folder holds no run, or a damaged one.
    """
    config = read_config(path)
    store = Path(path) / TELEMETRY
    try:
        for damaged in metadata_damage(store):
            raise ConfigError("run directory", store, f"metadata as they were written ({damaged})")
        # Version 3 only, the one that is written here: its codecs are few, and none of them unpickles.
        dataset = xr.open_zarr(LocalStore(store, read_only=True), consolidated=False, zarr_format=3, chunks=None)
        for described in (dataset, *dataset.variables.values()):
            described.attrs.pop(SEAL, None)
        dataset = _named(dataset, store)
        dataset.attrs.update(name=Path(path).resolve().name, model=str(config.get("config", {}).get("model", "")))
        return dataset if flat else _unstacked(dataset)
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged or foreign store makes zarr, NumPy or xarray raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError("run directory", store, f"a readable telemetry store ({reason})") from None


def read(dataset: xr.Dataset, name: str, **chosen: slice) -> np.ndarray:
    """The values of one quantity of a run that was opened flat, or of a part of it.

    Args:
        dataset: from ``open_run(path, flat=True)``, which reads nothing before it is used.
        name: the quantity.
        **chosen: a slice for each dimension of which not all is wanted.

    Raises:
        ConfigError: the store lacks it, or its values are damaged.
    """
    run = dataset.attrs.get("name", "")
    if name not in dataset.variables:
        raise ConfigError("run directory", run, f"a telemetry store with {name}")
    try:
        return np.asarray(dataset[name].isel(chosen).values)
    except Exception as error:  # whatever a damaged chunk makes zarr and its codecs raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError("run directory", run, f"a readable telemetry store, also of {name} ({reason})") from None


def _named(dataset: xr.Dataset, store: Path) -> xr.Dataset:
    """The flat Dataset of a store with all its coordinates, if it is one of ours."""
    if missing := {"loss", "weight_norm", "step", *AXES} - set(dataset.variables):
        raise ConfigError("run directory", store, f"a telemetry store with {', '.join(sorted(missing))}")
    if "layer" in dataset.coords:
        dataset = dataset.assign_coords(layer=list(map(str, dataset.attrs.pop("layer_names"))))
    if unknown := set(dataset.attrs["swept"]) - set(AXES):
        listed = ", ".join(map(str, unknown))
        raise ConfigError("run directory", store, f"swept axes among {', '.join(AXES)}, not {listed}")
    return dataset.assign_coords({name: dataset[name].load() for name in AXES})


def _unstacked(dataset: xr.Dataset) -> xr.Dataset:
    """One dimension for each swept axis instead of ``config``, where the grid is their product."""
    swept = list(dataset.attrs["swept"])
    if dataset.sizes["config"] != math.prod(len(np.unique(dataset[name])) for name in swept):
        return dataset
    if not swept:
        return dataset.isel(config=0)
    fixed = {name: dataset[name].variable[0] for name in AXES if name not in swept}
    dataset = dataset.drop_vars(fixed)
    if len(swept) == 1:  # of which xarray makes no MultiIndex to unstack
        product = dataset.swap_dims(config=swept[0]).sortby(swept[0])
    else:
        product = dataset.set_index(config=swept).unstack("config")
    for name in swept:
        product[name].attrs.update(dict(zip(("long_name", "units"), ATTRIBUTES[name], strict=True)))
    return product.transpose(*swept, ...).assign_coords(fixed)
