"""An analysis as a table for the terminal, as summary.csv, and as analysis.nc."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from periodic_jax.analysis.theory_checks import CHECKS
from periodic_jax.core.errors import UnwritableError
from periodic_jax.core.files import write_atomically
from periodic_jax.core.formatting import short_numbers
from periodic_jax.core.grid import AXES
from periodic_jax.storage.datasets import open_analysis as open_analysis  # pj.tables.open_analysis is public
from periodic_jax.storage.datasets import read_store as read_store  # likewise
from periodic_jax.storage.datasets import write_store
from periodic_jax.storage.run_directory import ANALYSIS, SUMMARY_FILE
from periodic_jax.storage.schema import describe

SHOWN = (
    "regime", "confidence", "destabilisations", "mean_period", "final_train_loss", "lowest_train_loss",
    "final_test_error", "lowest_test_error", "final_weight_norm", "diverged_at",
)  # fmt: skip
THEORY = (
    "equilibrium_weight_norm", "measured_weight_norm", "equilibrium_effective_lr", "measured_effective_lr",
    "budget_residual", "radial_leak", "violations",
)  # fmt: skip
FORECASTS = ("forecast_origin", "forecast_soonest", "forecast_latest", "forecast_expected")
COLUMNS = (*SHOWN, "because", "steps", "mean_fall_steps", "mean_predicted_fall_steps", *THEORY)


FARTHEST = 1e9  # steps that are written out: a network that hardly moves has forecasts beyond any run


def rows(analysis: xr.Dataset, columns: Sequence[str] = SHOWN) -> list[dict[str, Any]]:
    """The analysis as plain rows: lr and weight decay, the hyperparameters that differ or are in force, then the
    columns.
    """
    in_force = [name for name in ("momentum", "elr", "fixed_norm") if (analysis[name] != 0).any()]
    differing = [name for name in AXES if len(np.unique(analysis[name])) > 1 or name in in_force]
    names = list(dict.fromkeys(["lr", "weight_decay", *differing]))
    table = {name: column(analysis, name).tolist() for name in (*names, *columns)}
    return [{name: values[i] for name, values in table.items()} for i in range(analysis.sizes["config"])]


def as_text(analysis: xr.Dataset, columns: Sequence[str] = SHOWN) -> str:
    """The analysis as a table for the terminal."""
    table = rows(analysis, columns)
    known = [name for name in table[0] if name != "diverged_at" or any(row[name] == row[name] for row in table)]
    cells = [[describe(name).heading or name, *_cells(name, [row[name] for row in table])] for name in known]
    widths = [max(map(len, column)) for column in cells]
    out = io.StringIO()
    for row in zip(*cells, strict=True):
        out.write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    return out.getvalue()


LANDSCAPE_COLUMNS = (
    "checkpoint", "part", "loss", "gradient_norm", "gradient_std_norm", "noise_scale", "hessian_trace",
    "hessian_largest", "gauss_newton_trace", "gauss_newton_largest", "sphere_sharpness", "elr_times_sharpness",
    "reason",
)  # fmt: skip


def landscape_as_text(found: xr.Dataset) -> str:
    """A table of a landscape for the terminal, a row for each configuration, checkpoint and part of the images."""
    kinds = [name for name in ("hessian", "gauss_newton") if found.sizes.get("rank")]
    found = found.assign({f"{k}_largest": found[f"{k}_eigenvalue"].isel(rank=0) for k in kinds})
    numbers = [name for name in LANDSCAPE_COLUMNS if name in found.variables]
    cases = [
        found[numbers].isel(checkpoint=i, part=k, drop=False)
        for i in range(found.sizes["checkpoint"])
        for k in range(found.sizes["part"])
    ]
    flat = [
        case.drop_vars(["checkpoint", "part"]).assign(
            checkpoint=("config", np.full(case.sizes["config"], int(case.checkpoint))),
            part=("config", np.full(case.sizes["config"], str(case.part.values))),
        )
        for case in cases
    ]
    table = xr.concat(flat, "config")
    if found.sizes["part"] == 1:
        numbers.remove("part")
    if not (table.reason != "").any():
        numbers.remove("reason")
    return as_text(table, numbers)


EACH_MINIMUM = (
    "step", "ended", "train_loss", "train_error", "test_loss", "test_error", "cosine_to_start", "cosine_before",
    "disagreement_before", "barrier_straight", "barrier_layers", "reason",
)  # fmt: skip
ENSEMBLES = (
    "members", "ensemble_loss", "ensemble_error", "average_train_loss", "average_test_loss", "average_test_error",
    "seed_ensemble_error", "equal_cost_ensemble_error",
)  # fmt: skip
SEEDS = ("seed_cosine", "seed_disagreement", "seed_barrier_straight", "seed_barrier_layers")


def minima_as_text(found: xr.Dataset) -> str:
    """A row for each minimum, with its angle to the one before; a row for each number of members; and the seeds.

    Args:
        found: of `inspection.minima.compare`.
    """
    text = f"minima: {found.source}; statistics {found.statistics}\n"
    compared = np.isfinite(found.step.values).sum(1)
    if left := int((found.there.values - compared).sum()):
        text += f"{left} earlier minima are left out: --last all takes them\n"
    row, k = np.nonzero(np.isfinite(found.step.values))
    table = _hyperparameters(found, row)
    for name in ("step", "ended", "train_loss", "train_error", "test_loss", "test_error", "cosine_to_start", "reason"):
        table[name] = ("config", found[name].values[row, k])
    before = np.maximum(k - 1, 0)
    for name in ("cosine", "disagreement"):
        values = found[name].values[row, k, before]
        table[f"{name}_before"] = ("config", np.where(k > 0, values, np.nan))
    for path in found.path.values:
        barriers = found.barrier.sel(path=path).values
        known = np.full(len(row), np.nan)
        known[k > 0] = barriers[row[k > 0], before[k > 0]]
        table[f"barrier_{path}"] = ("config", known)
    text += as_text(table, [name for name in EACH_MINIMUM if name != "reason" or (table.reason != "").any()])

    row, k = np.nonzero(np.isfinite(found.ensemble_error.values) | np.isfinite(found.seed_ensemble_error.values))
    if len(row):
        table = _hyperparameters(found, row).assign(members=("config", found.members.values[k]))
        for name in ENSEMBLES[1:]:
            table[name] = ("config", found[name].values[row, k])
        shown = [name for name in ENSEMBLES if name == "members" or np.isfinite(table[name]).any()]
        text += "the last minima together, and as many seeds\n" + as_text(table, shown)
    row = np.flatnonzero(np.isfinite(found.seed_cosine.values))
    if len(row):
        table = _hyperparameters(found, row)
        for name in SEEDS[:2]:
            table[name] = ("config", found[name].values[row])
        for path in found.path.values:
            table[f"seed_barrier_{path}"] = ("config", found.seed_barrier.sel(path=path).values[row])
        text += "the last minimum against that of the next seed\n" + as_text(table, SEEDS)
    return text


def _hyperparameters(found: xr.Dataset, rows: np.ndarray) -> xr.Dataset:
    """Hyperparameters of some configurations, as often as they are named."""
    return xr.Dataset(coords={name: ("config", found[name].values[rows]) for name in AXES})


def findings(analysis: xr.Dataset) -> str:
    """What the whole run says, in a few lines: slopes, bounds, the rotation budget, the back-test of forecasts."""
    out = io.StringIO()
    titles = {
        "falling_edge": "falling edges / (ln(norm ratio) + rotation)",
        "falling_edge_quiet": "quiet falling edges / ln(norm ratio)",
        "falling_edge_uncorrected": "all falling edges / ln(norm ratio)",
        "period_length": "period length",
    }
    for name, title in titles.items():
        fit = analysis.sel(fit=name)
        if np.isfinite(fit.slope):
            ends = f"[{float(fit.slope_low):.3f}, {float(fit.slope_high):.3f}]"
            out.write(f"slope of log {title} against log lr x decay: {float(fit.slope):.3f} {ends}, ")
            out.write(f"{int(fit.slope_points)} of them\n")
    violations = analysis.check_violations
    for name in CHECKS:
        count = violations.sel(check=name)
        if (applies := int(np.isfinite(count).sum())) and (bad := int(np.nansum(count))):
            out.write(f"{name}: violated {bad} times among the {applies} configurations where it applies\n")
    applies, bad = int(np.isfinite(violations).sum()), int(np.nansum(violations))
    out.write(f"bounds and exact relations: {applies} checks apply, {bad} violations\n")
    plain = np.abs(analysis.budget_residual.values)
    if np.isfinite(plain).any():
        out.write(f"rotation budget: off by at most {np.nanmax(plain):.1e} of the rotation (plain SGD)\n")
    if "onset_elr_times_sharpness" in analysis:
        out.write(_stability(analysis))
    if "backtest_expected" in analysis:
        out.write(_backtest(analysis))
    return out.getvalue()


def _stability(analysis: xr.Dataset) -> str:
    """Effective learning rate x sharpness in units of its threshold, before destabilisations and in the falls."""
    text, limit = "", analysis.stability_threshold.values[:, None]
    for name, where in (("onset", "before destabilisations"), ("fall", "in the first halves of the falls")):
        ratios = analysis[f"{name}_elr_times_sharpness"].values / limit
        if (known := ratios[np.isfinite(ratios)]).size:
            low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
            text += (
                f"ELR x sharpness over its threshold, {where}: {middle:.2f} (median), quartiles {low:.2f} and "
                f"{high:.2f}, {known.size} of them, {np.mean(known < 1):.0%} below 1\n"
            )
    return text


def _backtest(analysis: xr.Dataset) -> str:
    onset, windows = analysis.onset_step.values, np.isfinite(analysis.backtest_latest.values)
    held = (analysis.backtest_soonest.values <= onset) & (onset <= analysis.backtest_latest.values)
    errors = np.abs(analysis.backtest_expected.values - onset) / analysis.fall_steps.values
    text = "back-test, half-way down each fall:"
    if windows.any():
        text += f" the window holds {int(held.sum())} of {int(windows.sum())} destabilisations;"
    if np.isfinite(errors).any():
        text += f" the expected step is off by {np.nanmedian(errors):.0%} of the fall (median)"
    return text.rstrip(";") + ("\n" if windows.any() or np.isfinite(errors).any() else " nothing to go by\n")


def to_csv(analysis: xr.Dataset, path: Path) -> None:
    """Write the analysis with every hyperparameter as a column, atomically; unknown numbers are empty."""
    columns = [*COLUMNS, *(name for name in FORECASTS if name in analysis)]
    table = pd.DataFrame({name: column(analysis, name).tolist() for name in (*AXES, *columns)})
    try:
        write_atomically(path, table.to_csv(index_label="config", lineterminator="\r\n").encode())
    except OSError as error:
        raise UnwritableError(path, error.strerror or error) from None


def save(analysis: xr.Dataset, folder: Path) -> list[Path]:
    """Write summary.csv and analysis.nc, each atomically, over those of an earlier analysis.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    store = write_store(analysis, folder / ANALYSIS)
    to_csv(analysis, folder / SUMMARY_FILE)
    return [folder / SUMMARY_FILE, store]


def column(analysis: xr.Dataset, name: str) -> np.ndarray:
    """A variable of the analysis, or the mean of one over the destabilisations of each configuration."""
    if not name.startswith("mean_") or name in analysis:
        return analysis[name].values
    values = analysis[name.removeprefix("mean_")].values
    known = np.isfinite(values)
    return np.where(known.any(1), np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


def _cells(name: str, values: list[Any]) -> list[str]:
    return short_numbers(values) if name in AXES else [_cell(name, value) for value in values]


def _cell(name: str, value: object) -> str:
    if isinstance(value, float):
        if value != value:
            return "-"
        number = describe(name).number
        if number == "percent":
            return f"{100 * value:.1f} %"
        if number == "whole":
            return f"{value:.0f}" if abs(value) < FARTHEST else f"{value:.3g}"
        return f"{value:{number}}"
    return str(value)
