"""A run directory as one xarray Dataset."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from periodic_jax.core.errors import (
    ConfigError,
    CorruptedRunError,
    PeriodicJaxError,
    RunNotFoundError,
    UsageError,
    as_corruption,
)
from periodic_jax.core.grid import AXES, DEFAULTS, LATER_AXES
from periodic_jax.storage.checksums import SEAL
from periodic_jax.storage.run_directory import (
    TELEMETRY,
    branch_folders,
    first_step,
    reached,
    read_config,
    recorded_checksums,
)
from periodic_jax.storage.schema import describe
from periodic_jax.storage.shards import LOG, Shards, check_members, join_branches, join_shards, read_shards
from periodic_jax.storage.verification import lengths, metadata_corruptions
from periodic_jax.storage.verified_store import ARRAYS, MISSING, corrupted_telemetry, open_verified, telemetry_remedy


def open_run(path: str | os.PathLike[str], *, flat: bool = False) -> xr.Dataset:
    """Open a run's telemetry.

    Args:
        path: the run directory, or the folder of a grid that was cut into shards, which are joined: what no shard has
            reached yet is NaN, and a corrupted shard is logged and left out. Of a folder of branches from several
            checkpoints these are joined so, along ``branch_step``.
        flat: keep the one dimension ``config`` instead of one dimension for each swept axis.

    Returns:
        A Dataset: per-step quantities over (..., step), evaluations over (..., eval_step), with every hyperparameter
        a coordinate. NaN means "not reached". A product grid has a dimension for each swept axis, so that
        ``ds.loss.sel(lr=0.1, weight_decay=1e-3)`` is one curve; other grids, and ``flat``, have ``config``. With
        ``flat`` the quantities are read when they are used, and not before.

    Raises:
        RunNotFoundError: there is no run, or it has recorded nothing.
        CorruptedRunError: the run is corrupted. A chunk that is corrupted, or missing though the run had reached it, is
            named when it is read, also where that is later.
    """
    path, shards = Path(path), read_shards(path)
    branches = branch_folders(path) if shards is None else {}
    if branches:
        dataset = _open_branches(path, branches)
    else:
        dataset = _open_flat(path) if shards is None else _open_shards(shards)
    with as_corruption(path / TELEMETRY, telemetry_remedy(path)):
        return dataset if flat else _unstacked(dataset)


def _open_shards(shards: Shards) -> xr.Dataset:
    """All shards that were begun as one flat Dataset. Corrupted ones are logged, and left out unless all are."""
    members, parts = shards.members(), dict[int, xr.Dataset]()
    errors: dict[int, PeriodicJaxError] = {}
    for index in range(shards.number):
        if not shards.folder(index).exists():
            continue
        try:
            part = _open_flat(shards.folder(index))
            check_members(part, shards, index, members[index])
            parts[index] = part
        except RunNotFoundError:  # it has recorded nothing yet
            continue
        except PeriodicJaxError as error:
            errors[index] = error
    if not parts:
        nothing = RunNotFoundError(shards.path, "no shard has recorded anything yet", "give the sweep's command")
        raise next(iter(errors.values()), nothing)
    for index, error in errors.items():
        LOG.warning("shard %d is left out: %s", index, error)
    if (begun := len(parts) + len(errors)) < shards.number:
        LOG.info("%d of %d shards have recorded nothing yet", shards.number - begun, shards.number)
    dataset = join_shards(shards, parts, members)
    dataset.encoding["source"] = str(shards.path)
    dataset.attrs["name"] = shards.path.resolve().name
    return dataset


def _open_branches(path: Path, folders: Mapping[int, Path]) -> xr.Dataset:
    """Branches from several checkpoints as one flat Dataset. Corrupted ones are logged, and left out unless all are."""
    parts, errors = dict[int, xr.Dataset](), list[PeriodicJaxError]()
    for step, folder in folders.items():
        try:
            if folder.is_symlink():
                raise CorruptedRunError(folder, "it is a link, which could lead anywhere", "replace it by the folder")
            parts[step] = _open_flat(folder)
        except PeriodicJaxError as error:
            errors.append(error)
    if not parts:
        raise errors[0]
    for error in errors:
        LOG.warning("a branch is left out: %s", error)
    dataset = join_branches(parts)
    dataset.encoding["source"] = str(path)
    dataset.attrs["name"] = path.resolve().name
    return dataset


def _open_flat(path: Path) -> xr.Dataset:
    """The telemetry of one run directory with its one dimension ``config``."""
    config = read_config(path)
    store = path / TELEMETRY
    with as_corruption(store, telemetry_remedy(path)):
        start_step, step = first_step(config), reached(path, config)
        if not store.exists() and step > start_step:
            raise corrupted_telemetry(path, MISSING)
        if not store.exists():
            raise RunNotFoundError(store, "nothing is recorded yet", f"periodic-jax resume {path} goes on with the run")
        for corruption in metadata_corruptions(store, lengths(config)):
            raise corrupted_telemetry(path, corruption.reason, corruption.file)
        # Version 3 only, the one that is written here: its codecs are few, and none of them unpickles.
        # Read later, maybe from another directory.
        verified = open_verified(store.absolute(), start_step, step, recorded_checksums(path, config, step))
        dataset = xr.open_zarr(verified, consolidated=False, zarr_format=3, chunks=None)
        for described in (dataset, *dataset.variables.values()):
            described.attrs.pop(SEAL, None)
        dataset.attrs.pop(ARRAYS, None)
        settings = config.get("config", {})
        optimizer = str(settings.get("optimizer", "sgd"))
        dataset = _named(dataset, path, settings)
        dataset.encoding["source"] = str(path.absolute())
        dataset.attrs.update(name=path.resolve().name, model=str(settings.get("model", "")), optimizer=optimizer)
        return dataset


def read(dataset: xr.Dataset, name: str, **chosen: slice) -> np.ndarray:
    """The values of one quantity of a run that was opened flat, or of a part of it.

    Args:
        dataset: from ``open_run(path, flat=True)``, which reads nothing before it is used.
        name: the quantity.
        **chosen: a slice for each dimension of which not all is wanted.

    Raises:
        CorruptedRunError: the store lacks it, or its values are corrupted.
    """
    run = Path(dataset.encoding.get("source", ""))
    if name not in dataset.variables:
        raise corrupted_telemetry(run, MISSING, name)
    with as_corruption(run / TELEMETRY / name, telemetry_remedy(run)):
        return np.asarray(dataset[name].isel(chosen).values)


def flattened(dataset: xr.Dataset) -> xr.Dataset:
    """A run with the one dimension ``config`` first, from either form of `open_run`, or from your own Dataset.

    All dimensions but ``step``, ``eval_step`` and ``layer`` are those of configurations, in any order. A hyperparameter
    that is no coordinate has the default of `core.grid`; ``lr`` and ``weight_decay`` must be there. An
    ``effective_lr`` that is missing is lr/ρ², which is right at a constant rate, and 0 for ``elr``.

    Args:
        dataset: the run, or a part of it. One that is flat is returned as it is, and nothing of it is read.

    Raises:
        ConfigError: no Dataset, or what is missing in it.

    Example:
        >>> norm = {"weight_norm": (("step", "lr"), np.ones((5, 2)))}
        >>> flattened(xr.Dataset(norm, {"lr": [0.1, 1.0], "weight_decay": 0.0})).effective_lr.dims
        ('config', 'step')
    """
    if not isinstance(dataset, xr.Dataset):
        raise ConfigError("run", type(dataset).__name__, "an xarray Dataset, as open_run gives")
    shared = ("step", "eval_step", "layer")
    dims = {dim for array in dataset.data_vars.values() for dim in array.dims}
    dataset = dataset.drop_dims([dim for dim in dataset.dims if dim not in dims])  # of coordinates alone
    lead = list(dict.fromkeys(dim for array in dataset.data_vars.values() for dim in array.dims if dim not in shared))
    source = dict(dataset.encoding)
    if not lead:
        dataset = dataset.expand_dims("config")
    elif lead != ["config"]:
        dataset = dataset.drop_vars("config", errors="ignore").stack(config=lead, create_index=False)
    order = ("config", *shared)
    if any(sorted(array.dims, key=order.index) != list(array.dims) for array in dataset.variables.values()):
        dataset = dataset.transpose(*order, missing_dims="ignore")
    configs = dataset.sizes["config"]
    for name in AXES:
        if name not in dataset.coords and name in ("lr", "weight_decay"):
            raise UsageError("run", f"it has no coordinate {name}", "give a Dataset with lr and weight_decay")
        if name not in dataset.coords or dataset[name].dims != ("config",):
            values = dataset[name].values if name in dataset.coords else DEFAULTS[name]
            dataset = dataset.assign_coords({name: ("config", np.broadcast_to(values, configs))})
    if "effective_lr" not in dataset and "weight_norm" in dataset and not source.get("source"):
        norm = dataset["weight_norm"]
        derived = xr.where(dataset["elr"] > 0, dataset["elr"], dataset["lr"] / norm**2)
        dataset = dataset.assign(effective_lr=derived.transpose(*norm.dims).astype(norm.dtype))
    if "diverged_at" not in dataset and not source.get("source"):
        dataset = dataset.assign(diverged_at=("config", np.full(configs, np.nan)))
    dataset.encoding = source
    return dataset


def _named(dataset: xr.Dataset, run: Path, settings: Mapping[str, Any]) -> xr.Dataset:
    """The flat Dataset of a run's store with all its coordinates, if it is one of ours."""
    for name in LATER_AXES:  # those of runs from before they were recorded, of which all had the default
        if name not in dataset.variables and settings.get(name, [DEFAULTS[name]]) == [DEFAULTS[name]]:
            dataset = dataset.assign({name: ("config", np.full(dataset.sizes["config"], DEFAULTS[name]))})
    if missing := {"loss", "weight_norm", "step", *AXES} - set(dataset.variables):
        raise corrupted_telemetry(run, f"no {', '.join(sorted(missing))}")
    if "layer" in dataset.coords:
        dataset = dataset.assign_coords(layer=list(map(str, dataset.attrs.pop("layer_names"))))
    if unknown := set(dataset.attrs["swept"]) - set(AXES):
        listed = ", ".join(map(str, unknown))
        raise corrupted_telemetry(run, f"swept axes {listed}, not among {', '.join(AXES)}")
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
        product[name].attrs.update(describe(name).attributes)
    return product.transpose(*swept, ...).assign_coords(fixed)
