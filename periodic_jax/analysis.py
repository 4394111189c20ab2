"""What each configuration of a run did, as an xarray Dataset and as a table."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from periodic_jax.grid import AXES, short_numbers
from periodic_jax.periods import classify_regimes, detect_periods

COLUMNS = (
    "regime", "destabilisations", "mean_period", "final_train_loss", "lowest_train_loss", "final_test_error",
    "lowest_test_error", "final_weight_norm", "diverged_at",
)  # fmt: skip


def summarise(dataset: xr.Dataset) -> xr.Dataset:
    """One row a configuration: regime, destabilisations, mean length of a period in steps, losses and errors.

    Args:
        dataset: a run opened with ``open_run(path, flat=True)``.

    Returns:
        A Dataset over ``config`` with the variables `COLUMNS` and the hyperparameters as coordinates. ``mean_period``
        is the mean distance between onsets, NaN with fewer than two.
    """
    loaded = dataset[["loss", "weight_norm", "effective_lr", "angular_step", "diverged_at"]].load()
    coords = {name: dataset[name] for name in AXES}
    found = detect_periods(loaded)
    # Where the norm is held, or the effective learning rate, decay sets no pace.
    free = (dataset.fixed_norm.values == 0) & (dataset.elr.values == 0)
    decay = np.where(free, dataset.weight_decay.values, 0)
    regimes = classify_regimes(loaded, dataset.lr.values, decay, dataset.momentum.values)
    onsets = found.onset
    gaps = np.diff(onsets, axis=-1) if onsets.shape[-1] > 1 else np.full((*onsets.shape[:-1], 1), np.nan)
    known = np.isfinite(gaps)
    mean_period = np.where(known.any(-1), np.nansum(gaps, -1) / np.maximum(known.sum(-1), 1), np.nan)
    values = {
        "regime": regimes,
        "destabilisations": found.found,
        "mean_period": mean_period,
        "final_train_loss": _last(dataset.train_loss),
        "lowest_train_loss": _lowest(dataset.train_loss),
        "final_test_error": _last(dataset.test_error),
        "lowest_test_error": _lowest(dataset.test_error),
        "final_weight_norm": _last(loaded.weight_norm),
        "diverged_at": loaded.diverged_at.values,
    }
    return xr.Dataset({name: ("config", np.asarray(value)) for name, value in values.items()}, coords)


def _last(array: xr.DataArray) -> np.ndarray:
    """The last finite value along the last dimension, NaN where there is none."""
    values = np.asarray(array.values, np.float64)
    finite = np.isfinite(values)
    last = values.shape[-1] - 1 - np.argmax(finite[..., ::-1], axis=-1)
    return np.where(finite.any(-1), np.take_along_axis(values, last[..., None], -1)[..., 0], np.nan)


def _lowest(array: xr.DataArray) -> np.ndarray:
    values = np.where(np.isfinite(array.values), array.values, np.inf).min(-1)
    return np.where(np.isfinite(values), values, np.nan)


def rows(summary: xr.Dataset) -> list[dict[str, object]]:
    """The summary as plain rows: lr and weight decay, the hyperparameters that differ or are in force, then
    `COLUMNS`.
    """
    in_force = [name for name in ("momentum", "elr", "fixed_norm") if (summary[name] != 0).any()]
    differing = [name for name in AXES if len(np.unique(summary[name])) > 1 or name in in_force]
    names = list(dict.fromkeys(["lr", "weight_decay", *differing]))
    return [
        {name: summary[name].values[i].item() for name in (*names, *COLUMNS)} for i in range(summary.sizes["config"])
    ]


def to_csv(summary: xr.Dataset, path: Path) -> None:
    """Write the summary with every hyperparameter as a column; unknown numbers are empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["config", *AXES, *COLUMNS])
        for i in range(summary.sizes["config"]):
            cells = [summary[name].values[i].item() for name in (*AXES, *COLUMNS)]
            writer.writerow([i, *("" if c != c else c for c in cells)])


def as_text(summary: xr.Dataset) -> str:
    """The summary as a table for the terminal."""
    head = {
        "weight_decay": "decay", "destabilisations": "jumps", "mean_period": "mean period",
        "final_train_loss": "train loss", "lowest_train_loss": "lowest", "final_test_error": "test error",
        "lowest_test_error": "lowest", "final_weight_norm": "norm", "diverged_at": "diverged at",
        "noninvariant_lr": "other lr", "fixed_norm": "fixed norm",
    }  # fmt: skip
    table = rows(summary)
    columns = [name for name in table[0] if name != "diverged_at" or any(row[name] == row[name] for row in table)]
    cells = [[head.get(name, name), *_cells(name, [row[name] for row in table])] for name in columns]
    widths = [max(map(len, column)) for column in cells]
    out = io.StringIO()
    for row in zip(*cells, strict=True):
        out.write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    return out.getvalue()


def _cells(name: str, values: list[Any]) -> list[str]:
    return short_numbers(values) if name in AXES else [_cell(name, value) for value in values]


def _cell(name: str, value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return "-"
        if name.endswith("_error"):
            return f"{100 * value:.1f} %"
        return f"{value:.0f}" if name in ("mean_period", "diverged_at") else f"{value:.3g}"
    return str(value)
