"""An analysis as a table for the terminal, as summary.csv, and as analysis.nc."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from periodic_jax.analysis.theory_checks import CHECKS
from periodic_jax.core import segments
from periodic_jax.core.errors import UnwritableError
from periodic_jax.core.files import write_atomically
from periodic_jax.core.formatting import counted, short_numbers
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
    "equilibrium_angular_step", "measured_angular_step", "budget_residual", "radial_leak", "violations",
)  # fmt: skip
FORECASTS = ("forecast_origin", "forecast_soonest", "forecast_latest", "forecast_expected")
COLUMNS = (*SHOWN, "because", "steps", "mean_fall_steps", "mean_predicted_fall_steps", *THEORY)


LEAK = 0.05  # above what ε of a normalisation and rounding give: at most 0.014 in the runs of docs/experiments
FARTHEST = 1e9  # steps that are written out: a network that hardly moves has forecasts beyond any run


def rows(analysis: xr.Dataset, columns: Sequence[str] = SHOWN) -> list[dict[str, Any]]:
    """The analysis as plain rows: lr and weight decay, the hyperparameters that differ or are in force, then the
    columns.
    """
    table = _table(analysis, columns)
    return [{name: values[i] for name, values in table.items()} for i in range(analysis.sizes["config"])]


def _table(analysis: xr.Dataset, columns: Sequence[str]) -> dict[str, list[Any]]:
    in_force = [name for name in ("momentum", "elr", "fixed_norm") if (analysis[name] != 0).any()]
    differing = [name for name in AXES if len(np.unique(analysis[name])) > 1 or name in in_force]
    names = list(dict.fromkeys(["lr", "weight_decay", *differing]))
    return {name: column(analysis, name).tolist() for name in (*names, *columns)}


def as_text(analysis: xr.Dataset, columns: Sequence[str] = SHOWN) -> str:
    """The analysis as a table for the terminal."""
    table = _table(analysis, columns)
    shown = [name for name in table if name != "diverged_at" or np.isfinite(analysis.diverged_at).any()]
    cells = [[describe(name).heading or name, *_cells(name, table[name])] for name in shown]
    widths = [max(map(len, column)) for column in cells]
    return "".join("  ".join(map(str.rjust, row, widths)) + "\n" for row in zip(*cells, strict=True))


def leak_as_text(analysis: xr.Dataset) -> str:
    """A warning, where gradients are not orthogonal to the weights that are marked scale-invariant; else nothing."""
    leak = column(analysis, "radial_leak")
    if not (leak > LEAK).any():
        return ""
    i = int(np.nanargmax(leak))
    return (
        f"warning: the radial leak of configuration {i} is {leak[i]:.2g}, and near 0 where labels are right: some"
        " weights are marked scale-invariant that are not (see models.measure_labels), or products are too coarse\n"
    )


LANDSCAPE_COLUMNS = (
    "checkpoint", "part", "loss", "gradient_norm", "gradient_std_norm", "noise_scale", "hessian_trace",
    "hessian_largest", "gauss_newton_trace", "gauss_newton_largest", "sphere_sharpness", "elr_times_sharpness",
    "reason",
)  # fmt: skip


def landscape_as_text(found: xr.Dataset) -> str:
    """A table of a landscape for the terminal, a row for each configuration, checkpoint and part of the images."""
    if found.sizes.get("rank"):
        kinds = ("hessian", "gauss_newton")
        found = found.assign({f"{kind}_largest": found[f"{kind}_eigenvalue"].isel(rank=0) for kind in kinds})
    is_empty = {"part": found.sizes["part"] == 1, "reason": (found.reason == "").all()}
    shown = [name for name in LANDSCAPE_COLUMNS if name in found.variables and not is_empty.get(name)]
    table = found[shown].stack(case=("checkpoint", "part", "config"), create_index=False)
    return as_text(table.rename(case="config"), shown)


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
        of, are = counted(left, "earlier minimum", "earlier minima"), "is" if left == 1 else "are"
        text += f"{of} {are} left out; --last all takes every one\n"
    row, k = np.nonzero(np.isfinite(found.step.values))
    names = ("step", "ended", "train_loss", "train_error", "test_loss", "test_error", "cosine_to_start", "reason")
    each = {name: found[name].values[row, k] for name in names}
    successive = {f"{name}_before": np.diagonal(found[name].values, -1, 1, 2) for name in ("cosine", "disagreement")}
    successive |= {f"barrier_{path}": found.barrier.sel(path=path).values for path in found.path.values}
    for name, values in successive.items():
        each[name] = np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan)[row, k]
    text += _as_text(found, row, each, [name for name in EACH_MINIMUM if name != "reason" or each[name].any()])

    row, k = np.nonzero(np.isfinite(found.ensemble_error.values) | np.isfinite(found.seed_ensemble_error.values))
    if len(row):
        last = {"members": found.members.values[k], **{name: found[name].values[row, k] for name in ENSEMBLES[1:]}}
        text += "the last minima together, and as many seeds\n"
        text += _as_text(found, row, last, [name for name in ENSEMBLES if np.isfinite(last[name]).any()])
    row = np.flatnonzero(np.isfinite(found.seed_cosine.values))
    if len(row):
        seeds = {name: found[name].values[row] for name in SEEDS[:2]}
        seeds |= {f"seed_barrier_{path}": found.seed_barrier.sel(path=path).values[row] for path in found.path.values}
        text += "the last minimum against that of the next seed\n" + _as_text(found, row, seeds, SEEDS)
    return text


def _as_text(found: xr.Dataset, configs: np.ndarray, table: dict[str, np.ndarray], columns: Sequence[str]) -> str:
    """A table of which each row is about the configuration named for it."""
    coords = {name: ("config", found[name].values[configs]) for name in AXES}
    return as_text(xr.Dataset({name: ("config", values) for name, values in table.items()}, coords), columns)


def findings(analysis: xr.Dataset) -> str:
    """Summary of the whole run, in a few lines: slopes, bounds, the rotation budget, the back-test of forecasts."""
    lines = []
    titles = {
        "falling_edge": "falling edges / (ln(norm ratio) + rotation)",
        "falling_edge_quiet": "quiet falling edges / ln(norm ratio)",
        "falling_edge_uncorrected": "all falling edges / ln(norm ratio)",
        "period_length": "period length",
    }
    for name, title in titles.items():
        fit = analysis.sel(fit=name)
        if np.isfinite(fit.slope):
            lines.append(f"slope of log {title} against log lr x decay: {_slope(fit)}")
    violations = analysis.check_violations
    for name in CHECKS:
        count = violations.sel(check=name)
        if bad := int(np.nansum(count)):
            where = f"the {int(np.isfinite(count).sum())} configurations where it applies"
            lines.append(f"{name}: violated {bad} times among {where}")
    applies, bad = int(np.isfinite(violations).sum()), int(np.nansum(violations))
    lines.append(f"bounds and exact relations: {applies} checks apply, {bad} violations")
    residuals = np.abs(analysis.budget_residual.values)
    is_known, has_one = np.isfinite(residuals), np.isfinite(analysis.rotation_budget.values)
    if has_one.any():
        left = counted(int((has_one & ~is_known).sum()), "configuration")
        within = f"{left} turned by no more than rounding" if (has_one & ~is_known).any() else ""
        most = f"off by at most {np.max(residuals[is_known]):.1e} of the rotation (plain SGD)" if is_known.any() else ""
        lines.append("rotation budget: " + "; ".join(filter(None, (most, within))))
    if "onset_elr_times_sharpness" in analysis:
        lines += _stability(analysis)
    if "backtest_expected" in analysis:
        lines.append(_backtest(analysis))
    return "".join(line + "\n" for line in lines)


def _slope(fit: xr.Dataset) -> str:
    """A slope, its interval over configurations if there is one, and what it is of."""
    slope, low, high = (float(fit[column]) for column in ("slope", "slope_low", "slope_high"))
    configs, products = counted(int(fit.slope_configs), "configuration"), counted(int(fit.slope_products), "product")
    interval = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ", too few products for an interval"
    return f"{slope:.3f}{interval}, {int(fit.slope_points)} of them in {configs} at {products}"


def _stability(analysis: xr.Dataset) -> list[str]:
    """Effective learning rate x sharpness in units of its threshold, before destabilisations and in the falls."""
    lines, limit = [], analysis.stability_threshold.values[:, None]
    for name, where in (("onset", "before destabilisations"), ("fall", "in the first halves of the falls")):
        ratios = analysis[f"{name}_elr_times_sharpness"].values / limit
        if (known := ratios[np.isfinite(ratios)]).size:
            low, middle, high = np.quantile(known, (0.25, 0.5, 0.75))
            where += f" of {counted(int(np.isfinite(ratios).any(1).sum()), 'configuration')}"
            numbers = f"{middle:.2f} (median), quartiles {low:.2f} and {high:.2f}, {known.size} of them"
            below = f"{np.mean(known < 1):.0%} below 1"
            lines.append(f"ELR x sharpness over its threshold, {where}: {numbers}, {below}")
    return lines


def _backtest(analysis: xr.Dataset) -> str:
    """How often the forecast windows hold the destabilisations of a run, and how far off the expected steps are."""
    onset, windows = analysis.onset_step.values, np.isfinite(analysis.backtest_latest.values)
    is_inside = (analysis.backtest_soonest.values <= onset) & (onset <= analysis.backtest_latest.values)
    errors = np.abs(analysis.backtest_expected.values - onset) / analysis.fall_steps.values
    results = []
    if windows.any():
        results.append(f"the window holds {int(is_inside.sum())} of {int(windows.sum())} destabilisations")
    if np.isfinite(errors).any():
        results.append(f"the expected step is off by {np.nanmedian(errors):.0%} of the fall (median)")
    return "back-test, half-way down each fall: " + ("; ".join(results) or "nothing to go by")


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
    with np.errstate(invalid="ignore"):  # NaN is the mean of none
        return segments.mean(values, np.isfinite(values))


def _cells(name: str, values: list[Any]) -> list[str]:
    return short_numbers(values) if name in AXES else [_cell(name, value) for value in values]


def _cell(name: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    number = describe(name).number
    if value != value:
        return "-"
    if number == "percent":
        return f"{100 * value:.1f} %"
    if number == "whole":
        number = ".0f" if abs(value) < FARTHEST else ".3g"
    return f"{value:{number}}"
