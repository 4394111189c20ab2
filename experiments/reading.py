"""Small questions to the evidence of a run, shared by the experiments."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from periodic_jax.core.grid import AXES
from periodic_jax.storage.run_directory import read_config

if TYPE_CHECKING:
    from periodic_jax.inspection.load import LoadedRun


def loaded(path: Path) -> "LoadedRun":
    """A run whose checkpoints are looked at. The data set may be a file that only this machine knows: the run's record
    tells where it was found.
    """
    from periodic_jax.inspection.load import load_run

    return load_run(path, data_dir=read_config(path)["config"]["data_dir"])


BURST = "A burst is a tenfold rise and fall of the loss: of the medians of mini-batch losses over a 400th of the run."
BURSTS = (
    "A jump is a destabilisation: a minimum of the norm. A held norm has none, and without decay the norm of SGD only "
    f"grows. {BURST} More than one of either is periodic."
)


def most_often(row: dict[str, Any]) -> int:
    """How often a configuration destabilised, by its norm or by its loss: without decay, and with a held norm, the loss
    alone tells.
    """
    return max(row["jumps"], row["bursts"])


def configurations(found: xr.Dataset) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each configuration's position, and what every page tells of it: hyperparameters, regime, periods, results."""
    for i in range(found.sizes["config"]):
        one = {name: float(found[name].values[i]) for name in AXES if name in found}
        one |= {
            "product": one["lr"] * one["weight_decay"] / (1 - one["momentum"]),
            "regime": str(found.regime.values[i]),
            "jumps": int(found.destabilisations.values[i]),
            "mean_period": float(found.mean_period.values[i]),
            "onset_elr": median(found, "onset_effective_lr", i),
            "lowest_train_loss": float(found.lowest_train_loss.values[i]),
            "final_train_loss": float(found.final_train_loss.values[i]),
            "lowest_test_error": float(found.lowest_test_error.values[i]),
            "final_test_error": float(found.final_test_error.values[i]),
            "weight_norm": float(found.late_weight_norm.values[i]),
            "effective_lr": float(found.late_effective_lr.values[i]),
            "effective_grad_norm": float(found.late_effective_grad_norm.values[i]),
        }
        yield i, one


def of(found: xr.Dataset, name: str, i: int) -> np.ndarray:
    """The known values of a quantity of one configuration, such as those of its destabilisations, in order."""
    values = np.asarray(found[name].values[i], np.float64)
    return values[np.isfinite(values)]


def median(found: xr.Dataset, name: str, i: int) -> float:
    """The median of `of`; NaN without any."""
    values = of(found, name, i)
    return float(np.median(values)) if len(values) else float("nan")
