"""What is kept of a run beside its page, small enough to commit: its analysis, its evaluations, and the dynamics at the
steps of the evaluations. All numbers of a page come from it, and it comes from the run's telemetry alone.
"""

import json
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.signal import find_peaks

from periodic_jax import analysis
from periodic_jax.analysis.regimes import BURN_IN
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.reporting import tables
from periodic_jax.storage.reader import open_run

DIMS = "dims"
LEFT_OUT = (
    "because", "loss_ratio", "radial_leak", "backtest_origin", "backtest_next_jump",
    "period_lowest_train_loss",
)  # fmt: skip
EVALUATED = ("train_loss", "train_error", "test_loss", "test_error")
SAMPLED = ("loss", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step")
STRETCHES, BURST = 400, 10.0  # of a run, whose median losses are searched for peaks that stand out so many times
TOLERANCE = 1e-4  # relative, between machines: of numbers kept in single precision


def gather(path: Path, summary: Path | None = None) -> xr.Dataset:
    """The evidence of a finished run.

    Args:
        path: the run directory.
        summary: where to write the analysis as a table, too.

    Returns:
        `analysis.analyze` with forecasts, without what no page uses; evaluations over ``eval_step``;
        ``sampled_QUANTITY``, the dynamics at these steps; ``late_QUANTITY``, their medians after the burn-in, and the
        root mean square of the effective gradient norm; and `loss_bursts`. Numbers over two dimensions are in single
        precision.
    """
    dataset = with_norm(open_run(path, flat=True))
    found = analysis.analyze(dataset, predict=True)
    if summary:
        tables.to_csv(found, summary)
    found = found.drop_vars([name for name in LEFT_OUT if name in found])
    found = found.assign({name: dataset[name].load() for name in EVALUATED if name in dataset})
    steps = dataset.step.values
    at = np.minimum(dataset.eval_step.values, steps[-1]) - steps[0]
    late = steps - steps[0] >= BURN_IN * len(steps)
    for name in SAMPLED:
        values = dataset[name].values
        found[f"sampled_{name}"] = (("config", "eval_step"), values[:, at])
        found[f"late_{name}"] = ("config", np.median(values[:, late], axis=1).astype(np.float64))
    gradient = dataset.effective_grad_norm.values[:, late].astype(np.float64)
    found["late_rms_effective_grad_norm"] = ("config", np.sqrt(np.mean(gradient**2, axis=1)))
    found["loss_bursts"] = ("config", loss_bursts(dataset.loss.values))
    found.attrs = {"first_step": int(steps[0])}
    return narrowed(found)


def loss_bursts(loss: np.ndarray) -> np.ndarray:
    """How often the loss rises tenfold and falls as much again: the number of peaks of its medians over stretches of
    steps. Also where the weight norm is held, whose minima are the destabilisations elsewhere.

    Args:
        loss: of mini-batches, ``(configurations, steps)``; unknown after a divergence.

    Example:
        >>> steps = np.arange(4000)
        >>> loss_bursts(np.stack([np.exp(-steps / 1000), 0.1 + (steps % 1000 > 900)]))
        array([0, 3])
    """
    stretch = max(loss.shape[1] // STRETCHES, 1)
    whole = loss[:, : loss.shape[1] // stretch * stretch].reshape(len(loss), -1, stretch)
    medians = np.log(np.median(whole, axis=2))
    return np.array([len(find_peaks(line[np.isfinite(line)], prominence=np.log(BURST))[0]) for line in medians])


def with_norm(dataset: xr.Dataset) -> xr.Dataset:
    """A flat run; where it has no weights marked scale-invariant, with the norm of all weights in place of theirs."""
    if np.isfinite(dataset.weight_norm.values[:, :1]).any() and (dataset.weight_norm.values[:, :1] > 0).any():
        return dataset
    norm = dataset.noninvariant_weight_norm.load()
    return dataset.assign(weight_norm=norm, effective_lr=dataset.lr / norm**2)


def narrowed(found: xr.Dataset) -> xr.Dataset:
    """The same with large floats in single precision, as the file holds them, and no attributes."""
    small = {name: a.astype(np.float32) for name, a in found.data_vars.items() if a.ndim > 1 and a.dtype.kind == "f"}
    found = found.assign(small)
    for variable in found.variables.values():
        variable.attrs = {}
    return found


def save(found: xr.Dataset, file: Path) -> None:
    """Write evidence as an npz file, the same bytes for the same evidence."""
    arrays = {str(name): np.asarray(variable.values) for name, variable in sorted(found.variables.items())}
    arrays = {name: a.astype(str) if a.dtype == object else a for name, a in arrays.items()}
    described = {
        "dims": {name: list(found[name].dims) for name in arrays}, "coords": sorted(map(str, found.coords)),
        "attrs": found.attrs,
    }  # fmt: skip
    np.savez_compressed(file, allow_pickle=False, **arrays, **{DIMS: np.array(json.dumps(described))})


def load(file: Path) -> xr.Dataset:
    """Read what `save` wrote.

    Raises:
        CorruptedRunError: there is none, or a corrupted one.
    """
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            described = json.loads(stored[DIMS].item())
            arrays = {name: (dims, stored[name]) for name, dims in described["dims"].items()}
    except Exception as error:  # whatever a damaged archive makes NumPy raise
        raise CorruptedRunError(file, type(error).__name__, "restore it from the repository") from None
    found = xr.Dataset(arrays, attrs=described["attrs"])
    return found.set_coords([name for name in described["coords"] if name in found])


def differences(kept: xr.Dataset, again: xr.Dataset) -> list[str]:
    """The quantities in which evidence that was kept is not what the run says; it may lack what later pages need."""
    names = sorted(set(map(str, kept.variables)) - set(map(str, again.variables)))
    for name in sorted(set(map(str, kept.variables)) & set(map(str, again.variables))):
        a, b = kept[name].values, again[name].values
        numbers = a.dtype.kind in "fiub" and b.dtype.kind in "fiub"
        same = a.shape == b.shape and (
            np.allclose(a, b, rtol=TOLERANCE, atol=1e-12, equal_nan=True) if numbers else (a == b).all()
        )
        if not same:
            names.append(name)
    return names
