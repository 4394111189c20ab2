"""A run in the formats of other tools: CSV, NetCDF, npz, TensorBoard, Weights & Biases. No network."""

import itertools
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from periodic_jax.core.errors import ConfigError, MissingDependencyError
from periodic_jax.core.files import replace_folder
from periodic_jax.core.grid import AXES
from periodic_jax.core.segments import extremes
from periodic_jax.storage.reader import read

BUCKETS = 1000  # of a curve in TensorBoard and W&B, which take milliseconds for each step


def export(dataset: xr.Dataset, kind: str, out: Path) -> Path:
    """Write a run in another format, atomically.

    Args:
        dataset: a flat run.
        kind: a key of `KINDS`.
        out: file (``netcdf``, ``npz``) or folder to create.

    Returns:
        ``out``.

    Raises:
        ConfigError: an unknown kind, or ``out`` exists or cannot be written.
        MissingDependencyError: a package is not installed.
    """
    if kind not in KINDS:
        raise ConfigError("--to", kind, "one of " + ", ".join(KINDS))
    if out.exists():
        raise ConfigError("--out", out, "a file or folder that does not exist yet")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replace_folder(out) as draft:
            KINDS[kind](dataset, draft)
    except OSError as error:
        raise ConfigError("--out", out, f"a place that can be written ({error.strerror or error})") from None
    return out


def to_csv(dataset: xr.Dataset, folder: Path) -> None:
    """``configs.csv`` with the hyperparameters, and for each configuration its steps and its evaluations."""
    folder.mkdir()
    form: Any = {"lineterminator": "\r\n", "na_rep": "nan"}
    pd.DataFrame({n: dataset[n].values for n in AXES}).to_csv(folder / "configs.csv", index_label="config", **form)
    for i in range(dataset.sizes["config"]):
        for dim, end in (("step", ""), ("eval_step", "-evaluations")):
            columns = {name: values.tolist() for name, values in _curves(dataset, i, dim).items()}
            table = pd.DataFrame(columns, pd.Index(dataset[dim].values, name=dim))
            table.to_csv(folder / f"config-{i:04d}{end}.csv", **form)


def to_netcdf(dataset: xr.Dataset, file: Path) -> None:
    """NetCDF 3 with 64-bit offsets, which every reader knows. It has no 64-bit integers: they become doubles."""
    wide = {name: array.astype(np.float64) for name, array in dataset.variables.items() if array.dtype.kind in "iu"}
    plain = dataset.load().assign_coords({n: (a.dims, a.values, a.attrs) for n, a in wide.items()})
    plain.attrs = {name: " ".join(v) if isinstance(v, list) else v for name, v in plain.attrs.items()}
    plain.to_netcdf(file, engine="scipy", format="NETCDF3_64BIT")


def to_npz(dataset: xr.Dataset, file: Path) -> None:
    """One array for each variable and coordinate; no pickles."""
    arrays = {str(name): np.asarray(array.values) for name, array in dataset.load().variables.items()}
    arrays = {name: array.astype(str) if array.dtype == object else array for name, array in arrays.items()}
    with file.open("wb") as handle:
        np.savez_compressed(handle, allow_pickle=False, **arrays)


def to_tensorboard(dataset: xr.Dataset, folder: Path) -> None:
    """An event file for each configuration, with its hyperparameters. TensorFlow is not needed."""
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams
    except ImportError:
        raise _missing("tensorboard", "tensorboardX") from None
    folder.mkdir()
    for i, numbers, points in _runs(dataset):
        with SummaryWriter(str(folder / f"config-{i:04d}"), write_to_disk=True) as writer:
            metrics = {f"final/{name}": 0.0 for name in ("loss", "weight_norm")}
            for summary in hparams(numbers, metrics):
                writer.file_writer.add_summary(summary)  # type: ignore[union-attr]  # None only with write_to_disk=False
            last: dict[str, tuple[float, int]] = {}
            for name, step, value in points:
                writer.add_scalar(name, value, step)
                last[name] = value, step
            for name in ("loss", "weight_norm"):
                if name in last:
                    writer.add_scalar(f"final/{name}", *last[name])


def to_wandb(dataset: xr.Dataset, folder: Path) -> None:
    """An offline run for each configuration; ``wandb sync`` sends them, if you want that."""
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise _missing("wandb", "wandb") from None
    folder.mkdir()
    quiet = wandb.Settings(console="off", silent=True, x_disable_stats=True, x_disable_meta=True, disable_git=True)
    for i, numbers, points in _runs(dataset):
        run = wandb.init(
            mode="offline", dir=str(folder), project="periodic_jax", group=str(dataset.attrs.get("name", "run")),
            name=f"config-{i:04d}", config=numbers, settings=quiet, reinit="create_new",
        )  # fmt: skip
        of_step = operator.itemgetter(1)
        for step, group in itertools.groupby(sorted(points, key=of_step), key=of_step):
            run.log({name: value for name, _, value in group}, step=step)
        run.finish()


KINDS: dict[str, Callable[[xr.Dataset, Path], None]] = {
    "tensorboard": to_tensorboard, "wandb": to_wandb, "csv": to_csv, "netcdf": to_netcdf, "npz": to_npz,
}  # fmt: skip
ENDINGS = {"netcdf": ".nc", "npz": ".npz"}


def _runs(dataset: xr.Dataset) -> Iterator[tuple[int, dict[str, float], Iterator[tuple[str, int, float]]]]:
    """Number, hyperparameters and points (name, step, value) of each configuration, in the order of steps."""
    for i in range(dataset.sizes["config"]):
        yield i, {name: float(dataset[name].values[i]) for name in AXES}, _points(dataset, i)


def _points(dataset: xr.Dataset, i: int) -> Iterator[tuple[str, int, float]]:
    for dim, prefix in (("step", ""), ("eval_step", "evaluation/")):
        for name, values in _curves(dataset, i, dim).items():
            for k in extremes(values[None], BUCKETS):
                yield prefix + name, int(dataset[dim].values[k]), float(values[k])


def _curves(dataset: xr.Dataset, i: int, dim: str) -> dict[str, np.ndarray]:
    """The curves of one configuration along ``step`` or ``eval_step``, each layer on its own, up to what it reached."""
    curves: dict[str, np.ndarray] = {}
    for name in sorted(str(name) for name, array in dataset.data_vars.items() if dim in array.dims):
        values = read(dataset, name, config=slice(i, i + 1))[0]
        if values.ndim == 2:
            curves |= {f"{name}/{layer}": values[:, k] for k, layer in enumerate(dataset.layer.values)}
        else:
            curves[name] = values
    return curves


def _missing(extra: str, package: str) -> MissingDependencyError:
    return MissingDependencyError(f"--to {extra}", package, f"periodic_jax[{extra}]")
