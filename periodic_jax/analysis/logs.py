"""Runs that were recorded elsewhere, as a Dataset that `analyze` takes: from arrays, or from a csv file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from periodic_jax.analysis.pipeline import OF_WEIGHTS
from periodic_jax.core.errors import ConfigError, DataFileError, UsageError, first_line
from periodic_jax.core.grid import AXES, DEFAULTS, axis_rule
from periodic_jax.core.optimizers import OPTIMIZERS, SPECIAL, check_hyperparameters
from periodic_jax.storage.schema import describe, used_by

CURVES = (*used_by("analysis"), "grad_norm")  # that may be given; `lr` may be a curve or a number
NUMBERS = ("lr", "weight_decay", "momentum", "elr", "fixed_norm", "beta1", "beta2", "eps")
# What needs which curves, for what is said of one that is missing.
NEEDS = {
    "periods and falling edges": ("weight_norm",),
    "the rise of the loss at their onsets": ("loss",),
    "pace, equilibrium and rotation": ("angular_step",),
    "predicted falls and equilibrium": ("effective_lr",),
    "the relations and bounds of plain SGD": ("weight_norm", "effective_lr", "effective_grad_norm", "angular_step"),
}


class Log(NamedTuple):
    """A run that was recorded elsewhere."""

    dataset: xr.Dataset  # of one configuration, as ``open_run(path, flat=True)`` gives it
    left_out: list[str]  # what the analysis leaves out, and for want of what; a line each


def log_dataset(curves: Mapping[str, Any], optimizer: str = "sgd", **numbers: float) -> Log:
    """A Dataset of one configuration from arrays.

    The effective learning rate is lr/ρ² where it is not given, the effective gradient norm ρ|∇f|. What is missing is
    NaN. The rows are steps: of a log of every tenth step, all numbers of steps are tenths.

    Args:
        curves: ``(steps,)`` arrays by name: ``weight_norm`` or ``loss`` at least, of `CURVES`; and ``lr`` where it
            changes.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or another name, of which no theory is compared.
        **numbers: hyperparameters, of `NUMBERS`.

    Returns:
        The Dataset, and what its analysis leaves out.

    Raises:
        ConfigError: an unknown name, curves of different lengths or none, or something that is no number.

    Example:
        >>> steps = np.arange(200)
        >>> log = log_dataset({"weight_norm": 0.999**steps, "lr": 1.0 + 0 * steps}, weight_decay=1e-3)
        >>> float(log.dataset.effective_lr[0, 0]), log.left_out[0]
        (1.0, 'left out: the rise of the loss at their onsets (no loss)')
    """
    for names, accepted in ((curves, (*CURVES, "lr")), (numbers, NUMBERS)):
        for name in names:
            if name not in accepted:
                raise ConfigError("columns", name, "names among " + ", ".join(accepted))
    try:
        arrays = {name: np.atleast_1d(np.asarray(values, np.float64)) for name, values in curves.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError("columns", first_line(error), "curves of numbers") from None
    if (arrays.get("lr", np.zeros(1)) < 0).any():  # a schedule may end at 0
        raise ConfigError("columns", f"lr={np.nanmin(arrays['lr']):g}", "learning rates from 0")
    for name, value in numbers.items():
        wanted, is_accepted = axis_rule(name)
        if not is_accepted(value):
            raise ConfigError("columns", f"{name}={value:g}", wanted)
    if optimizer in OPTIMIZERS:
        check_hyperparameters(optimizer, numbers)
    lengths = {len(values) for values in arrays.values()}
    if not {"weight_norm", "loss"} & set(arrays) or len(lengths) != 1 or any(a.ndim != 1 for a in arrays.values()):
        given = ", ".join(f"{name} {np.shape(values)}" for name, values in arrays.items()) or "no curve"
        raise ConfigError("columns", given, "weight_norm or loss, and all curves of one length")
    if "lr" not in arrays and "lr" in numbers:
        arrays["lr"] = np.full(lengths.pop(), float(numbers["lr"]))
    if "lr" in arrays:
        arrays["step_lr"] = arrays.pop("lr")
    if numbers.get("elr"):
        arrays.setdefault("effective_lr", np.full(len(next(iter(arrays.values()))), float(numbers["elr"])))
    _derive(arrays)
    rate = arrays.get("step_lr", np.array([np.nan]))
    known = rate[np.isfinite(rate)]
    numbers = {**DEFAULTS, **numbers, "lr": known[0] if len(known) else np.nan}
    left_out = [
        f"left out: {what} (no {' and no '.join(missing)})"
        for what, needed in NEEDS.items()
        if (missing := [name for name in needed if name not in arrays])
    ]
    steps = len(next(iter(arrays.values())))
    arrays = {name: np.full(steps, np.nan) for name in ("loss", *OF_WEIGHTS)} | arrays
    dataset = xr.Dataset(
        {name: (("config", "step"), values[None], describe(name).attributes) for name, values in arrays.items()},
        {name: ("config", [float(numbers[name])]) for name in AXES} | {"step": np.arange(steps)},
        {"name": "log", "model": "", "optimizer": optimizer, "swept": []},
    )
    return Log(dataset.assign(diverged_at=("config", [np.nan])), left_out)


def _derive(arrays: dict[str, np.ndarray]) -> None:
    """Add what follows from the curves."""
    norm = arrays.get("weight_norm")
    if norm is None:
        return
    with np.errstate(all="ignore"):
        if "step_lr" in arrays:
            arrays.setdefault("effective_lr", arrays["step_lr"] / norm**2)
        elif "effective_lr" in arrays:
            arrays["step_lr"] = arrays["effective_lr"] * norm**2
        if "grad_norm" in arrays:
            arrays.setdefault("effective_grad_norm", norm * arrays["grad_norm"])


def read_log(path: str | Path, columns: Mapping[str, str] | None = None) -> Log:
    """Read a csv file with a row for each step.

    Args:
        path: the file.
        columns: for a name of `CURVES` or `NUMBERS` a column, or a number for all rows; ``optimizer`` is a name.
            Columns that have such a name themselves need none.

    Returns:
        As `log_dataset`.

    Raises:
        ConfigError: a column that is not there or holds no numbers, or what `log_dataset` refuses.
        DataFileError: no csv file, or a cell in a column that holds no number.
    """
    try:
        with open(path, encoding="utf-8") as file:  # not by its name, which pandas might take for an address
            table: Any = pd.read_csv(file, skipinitialspace=True)
    except (OSError, ValueError, OverflowError) as error:  # also what pandas cannot parse
        raise DataFileError(path, first_line(error), "a csv file with a row for each step") from None
    names = dict.fromkeys((*CURVES, *NUMBERS))
    given = dict(columns or {})
    optimizer = given.pop("optimizer", "sgd")
    if optimizer not in OPTIMIZERS:
        raise ConfigError("--columns", f"optimizer={optimizer}", "optimizer=" + "|".join(OPTIMIZERS))
    unread = set(SPECIAL) - set(OPTIMIZERS[optimizer].reads)
    chosen = {name: name for name in names if name in table and name not in unread} | given
    curves, numbers = dict[str, np.ndarray](), dict[str, float]()
    for name, column in chosen.items():
        if name not in names:
            raise ConfigError("--columns", f"{name}={column}", "optimizer, or names among " + ", ".join(names))
        if column in table:
            values = np.asarray(pd.to_numeric(table[column], errors="coerce"), np.float64)
            wrong = np.flatnonzero(np.isnan(values) & table[column].notna().to_numpy())
            if name in given and len(wrong) == len(values) > 0:
                raise ConfigError("--columns", f"{name}={column}", "a column of numbers")
            if len(wrong):
                cell = f"{table[column].iloc[wrong[0]]!r} in row {wrong[0] + 1} of column {column}"
                raise DataFileError(path, cell, "a number, or nothing, in each cell")
            if name in CURVES or name == "lr":
                curves[name] = values
                continue
            constant = np.unique(values[np.isfinite(values)])
            if len(constant) != 1:
                raise ConfigError("--columns", f"{name}={column}", f"a column of one {name}, or a number")
            numbers[name] = float(constant[0])
            continue
        accepted = "a column among " + ", ".join(table)
        if name not in NUMBERS:
            raise ConfigError("--columns", f"{name}={column}", accepted)
        try:
            numbers[name] = float(column)
        except ValueError:
            raise ConfigError("--columns", f"{name}={column}", f"a number, or {accepted}") from None
    if not {"weight_norm", "loss"} & set(curves):
        there = f"it has no column weight_norm or loss, but {', '.join(map(str, table))}"
        raise UsageError(path, there, "say which they are: --columns loss=COLUMN weight_norm=COLUMN")
    return log_dataset(curves, optimizer, **numbers)
