"""The comparison of a run's minima as tables for the terminal."""

import numpy as np
import xarray as xr

from periodic_jax.core.grid import AXES
from periodic_jax.reporting import tables

ALONE = (
    "step", "ended", "train_loss", "train_error", "test_loss", "test_error", "cosine_to_start", "cosine_before",
    "disagreement_before", "barrier_straight", "barrier_layers", "reason",
)  # fmt: skip
TOGETHER = (
    "members", "ensemble_loss", "ensemble_error", "average_train_loss", "average_test_loss", "average_test_error",
    "seed_ensemble_error", "equal_cost_ensemble_error",
)  # fmt: skip
SEEDS = ("seed_cosine", "seed_disagreement", "seed_barrier_straight", "seed_barrier_layers")


def as_text(found: xr.Dataset) -> str:
    """A row for each minimum, with its angle to the one before; a row for each number of members; and the seeds.

    Args:
        found: of `inspection.minima.compare`.
    """
    text = f"minima: {found.source}; statistics {found.statistics}\n"
    compared = np.isfinite(found.step.values).sum(1)
    if left := int((found.there.values - compared).sum()):
        text += f"{left} earlier minima are left out: --last all takes them\n"
    row, k = np.nonzero(np.isfinite(found.step.values))
    table = _of(found, row)
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
    text += tables.as_text(table, [name for name in ALONE if name != "reason" or (table.reason != "").any()])

    row, k = np.nonzero(np.isfinite(found.ensemble_error.values) | np.isfinite(found.seed_ensemble_error.values))
    if len(row):
        table = _of(found, row).assign(members=("config", found.members.values[k]))
        for name in TOGETHER[1:]:
            table[name] = ("config", found[name].values[row, k])
        shown = [name for name in TOGETHER if name == "members" or np.isfinite(table[name]).any()]
        text += "the last minima together, and as many seeds\n" + tables.as_text(table, shown)
    row = np.flatnonzero(np.isfinite(found.seed_cosine.values))
    if len(row):
        table = _of(found, row)
        for name in SEEDS[:2]:
            table[name] = ("config", found[name].values[row])
        for path in found.path.values:
            table[f"seed_barrier_{path}"] = ("config", found.seed_barrier.sel(path=path).values[row])
        text += "the last minimum against that of the next seed\n" + tables.as_text(table, SEEDS)
    return text


def _of(found: xr.Dataset, rows: np.ndarray) -> xr.Dataset:
    """Hyperparameters of some configurations, as often as they are named."""
    return xr.Dataset(coords={name: ("config", found[name].values[rows]) for name in AXES})
