"""The run directory: telemetry of every step as zarr arrays with names, coordinates and units, opened as an xarray
Dataset.

    DIR/config.json      resolved configuration, versions, command, hardware, and the summary when the run has ended
       /telemetry.zarr   zarr v3 group, dims (config, step) and (config, eval_step), NaN where nothing was reached
       /checkpoints/     see `checkpoints`
       /minima/          see `period_minima`

No pickle and no code is ever read from a run directory.
"""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from zarr.storage import LocalStore

from periodic_jax.declared import MOST_CONFIGS, MOST_LAYERS, MOST_STEPS, read_json, strange_file
from periodic_jax.errors import ConfigError
from periodic_jax.grid import AXES
from periodic_jax.intact import IntactStore, damaged_telemetry
from periodic_jax.integrity import MISSING, SEAL, Damage, expected, is_whole, metadata_damage, seal, write_json

CONFIG_FILE = "config.json"
TELEMETRY = "telemetry.zarr"
SUMMARY_FILE = "summary.csv"
CHECKPOINTS = "checkpoints"
CHECKSUMS = "checksums.json"  # the last file of a checkpoint to be written
ANALYSIS = "analysis.zarr"
LANDSCAPE = "landscape.zarr"
MINIMA = "minima"
COMPARISON = "minima.zarr"
OWN_FILES = (
    CONFIG_FILE, TELEMETRY, CHECKPOINTS, "figures", "report.html", SUMMARY_FILE, ANALYSIS, LANDSCAPE, MINIMA,
    COMPARISON,
)  # fmt: skip
FORMAT = 1
# What config.json holds beside its format, where it holds it.
KINDS = {"config": dict, "data": dict, "parent": dict, "summary": dict, "sessions": list, "ends": list, "command": list}

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
    "sphere_sharpness": ("sharpness on the unit sphere", "1"),
    "elr_times_sharpness": ("effective learning rate x sharpness", "1"),
    "train_loss": ("training loss", "nats"),
    "train_error": ("training error", "1"),
    "test_loss": ("test loss", "nats"),
    "test_error": ("test error", "1"),
    "corrupted_train_loss": ("training loss on images of corrupted labels", "nats"),
    "corrupted_train_error": ("training error on images of corrupted labels", "1"),
    "clean_train_loss": ("training loss on images of clean labels", "nats"),
    "clean_train_error": ("training error on images of clean labels", "1"),
    "gradient_norm": ("norm of the mean gradient of the mini-batches", "1"),
    "gradient_std_norm": ("norm of the standard deviation of their gradients", "1"),
    "mean_gradient_norm": ("mean norm of their gradients", "1"),
    "noise_scale": ("gradient noise scale", "images"),
    "hessian_trace": ("trace of the Hessian", "1"),
    "hessian_eigenvalue": ("eigenvalue of the Hessian", "1"),
    "gauss_newton_trace": ("trace of the Gauss-Newton matrix", "1"),
    "gauss_newton_eigenvalue": ("eigenvalue of the Gauss-Newton matrix", "1"),
    "sphere_hessian_eigenvalue": ("Hessian's eigenvalue on the sphere", "1"),
    "sphere_gauss_newton_eigenvalue": ("Gauss-Newton eigenvalue on the sphere", "1"),
    "stability_threshold": ("effective learning rate x sharpness from which a minimum is left", "1"),
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
        held = (path / CONFIG_FILE).exists()
        more = f" (periodic-jax resume {path} goes on with the one there)" if held else ""
        raise ConfigError("--out", path, f"a folder that holds no run yet{more}")


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
        ConfigError: the folder holds no run, its config.json is damaged, or there are links among its files, which
            could lead out of it.
    """
    file = Path(path) / CONFIG_FILE
    if strange := strange_file(Path(path), (n + ending for n in OWN_FILES for ending in ("", ".partial"))):
        raise ConfigError("run directory", strange, "plain files and folders: a link could lead anywhere")
    try:
        content = read_json(file)
    except FileNotFoundError:
        raise ConfigError("run directory", path, f"a folder with a {CONFIG_FILE}") from None
    except NotADirectoryError:
        raise ConfigError("run directory", path, f"a folder with a {CONFIG_FILE}, not a file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError("run directory", file, f"a readable JSON file ({error})") from None
    if fault := _fault(content):
        raise ConfigError("run directory", file, f"the record of a run, as it was written ({fault})")
    return {key: value for key, value in content.items() if key != SEAL}


def first_step(record: Mapping[str, Any]) -> int:
    """The first step that a run recorded, as its config.json tells; not 0 for a branch."""
    return record.get("parent", {}).get("step", 0)


def lengths(record: Mapping[str, Any]) -> dict[str, int]:
    """The most entries that a run's arrays can have along each dimension, as its config.json tells.

    Example:
        >>> lengths({"config": {"steps": 500, "eval_every": 100}})["eval_step"]
        8
    """
    held = record.get("config", {})
    axes = [held.get(name) for name in AXES if name != "schedule_every"]
    configs = math.prod(len(axis) if isinstance(axis, list) else MOST_CONFIGS for axis in axes)
    steps, every = (
        value if type(value) is int and 0 < value <= MOST_STEPS else default
        for value, default in ((held.get("steps"), MOST_STEPS), (held.get("eval_every"), 1))
    )
    evaluations = steps // every + 3 + len(record.get("ends", ()))
    return {"config": min(configs, MOST_CONFIGS), "step": steps, "eval_step": evaluations, "layer": MOST_LAYERS}


def _fault(content: Any) -> str | None:
    """What the content of a config.json has that no run writes there, in words; None for a genuine one."""
    if not isinstance(content, dict):
        return f"it is no JSON object but {reprlib.repr(content)}"
    if missing := [name for name in ("format", SEAL) if name not in content]:
        return f"it has no {' and no '.join(missing)}"
    if not is_whole(content):
        return "its checksum is another one"
    if content["format"] != FORMAT:
        return f"its format is {reprlib.repr(content['format'])}, and {FORMAT} is what this version reads"
    for name, kind in KINDS.items():
        if not isinstance(content.get(name, kind()), kind):
            return f"its {name} is {reprlib.repr(content[name])}, which is no {'object' if kind is dict else 'list'}"
    for step in (*content.get("ends", ()), content.get("parent", {}).get("step", 0)):
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            return f"it tells of step {reprlib.repr(step)}"
    return None


def checkpoint_steps(path: Path) -> list[int]:
    """The steps of a run's complete checkpoints, ascending."""
    found = (folder for folder in (path / CHECKPOINTS).glob("*") if folder.name.isdecimal())
    return sorted(int(folder.name) for folder in found if (folder / CHECKSUMS).exists())


def reached(path: Path, record: Mapping[str, Any]) -> int:
    """The step up to which all telemetry must be there: of the last checkpoint, or of a finished run's end."""
    steps = record.get("config", {}).get("steps")
    planned = steps if type(steps) is int else MOST_STEPS
    if "summary" in record and planned < MOST_STEPS:
        return planned
    return max((step for step in checkpoint_steps(path) if step <= planned), default=first_step(record))


def steps_per_epoch(path: str | Path) -> int | None:
    """Updates of one epoch of a run, as its config.json tells; None where it does not."""
    record = read_config(path)
    data, config = record.get("data", {}), record.get("config", {})
    if config.get("full_batch") is True:
        return 1
    images, batch = data.get("train_images"), config.get("batch_size")
    if not (isinstance(images, int) and isinstance(batch, int) and images > 0 and batch > 0):
        return None
    return max(images // batch, 1)


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
        ConfigError: the folder holds no run, or a damaged one. A chunk that is damaged, or missing though the run had
            reached it, is named when it is read, also where that is later.
    """
    path, config = Path(path), read_config(path)
    store = path / TELEMETRY
    try:
        begun, step = first_step(config), reached(path, config)
        if not store.exists() and step > begun:
            raise damaged_telemetry(path, Damage("", None, MISSING))
        if not store.exists():
            raise ConfigError("run directory", store, "the telemetry of a run that has recorded steps")
        for damaged in metadata_damage(store, lengths(config)):
            raise damaged_telemetry(path, damaged)
        intact = IntactStore(LocalStore(store, read_only=True), path, expected(store, begun, step))
        # Version 3 only, the one that is written here: its codecs are few, and none of them unpickles.
        dataset = xr.open_zarr(intact, consolidated=False, zarr_format=3, chunks=None)
        for described in (dataset, *dataset.variables.values()):
            described.attrs.pop(SEAL, None)
        dataset = _named(dataset, store)
        dataset.attrs.update(name=path.resolve().name, model=str(config.get("config", {}).get("model", "")))
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
    except ConfigError:
        raise
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
