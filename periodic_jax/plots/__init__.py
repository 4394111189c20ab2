"""Figures of a run: functions from a Dataset in either form of `open_run`, or from its analysis, to matplotlib Axes.
They draw and compute nothing.

Colour shows the learning rate (or the largest swept axis), panels the weight decay (or the next), line styles a third.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from periodic_jax.core.errors import UnwritableError
from periodic_jax.core.files import write_atomically
from periodic_jax.plots.curvature import (
    against_checkpoints,
    against_threshold,
    at_onsets,
    densities,
    landscape,
    spectra,
    thresholds,
)
from periodic_jax.plots.minima import barriers, ensembles, minima, minima_errors, paths
from periodic_jax.plots.regime_maps import (
    equilibria,
    equilibrium,
    in_equilibrium,
    period_lengths,
    periods,
    regime_map,
    regimes,
)
from periodic_jax.plots.single_period import one_period, phases, phases_of_clearest
from periodic_jax.plots.style import REGIME_COLOURS, STYLE, STYLE_FILE, axis_roles, colours, fit_scale, matched
from periodic_jax.plots.trajectories import curves, in_panels, layer_norms, layers, phase_diagram
from periodic_jax.storage.schema import EVALUATION, STEP, describe, used_by

__all__ = [
    "REGIME_COLOURS",
    "STYLE",
    "STYLE_FILE",
    "against_checkpoints",
    "against_threshold",
    "at_onsets",
    "axis_roles",
    "barriers",
    "colours",
    "curves",
    "densities",
    "ensembles",
    "equilibria",
    "equilibrium",
    "figures",
    "fit_scale",
    "in_panels",
    "landscape",
    "layer_norms",
    "layers",
    "minima",
    "minima_errors",
    "one_period",
    "paths",
    "period_lengths",
    "periods",
    "phase_diagram",
    "phases",
    "phases_of_clearest",
    "regime_map",
    "regimes",
    "save_all",
    "save_landscape",
    "save_minima",
    "save_missing",
    "spectra",
    "thresholds",
]  # fmt: skip
CURVES = used_by("figures", EVALUATION, STEP)
# Nothing of the machine, the version or the time.
METADATA = {"png": {"Software": None}, "pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


def save_all(
    dataset: xr.Dataset,
    found: xr.Dataset,
    folder: Path,
    *,
    formats: tuple[str, ...] = ("png",),
    steps_per_epoch: int | None = None,
    log_steps: bool = False,
) -> list[Path]:
    """Draw every figure that applies to the run and write it, the same bytes for the same run.

    Args:
        dataset: a run, in either form of `open_run`.
        found: its analysis.
        folder: created if missing.
        formats: ``png``, ``pdf`` or both.
        steps_per_epoch: to count epochs instead of steps.
        log_steps: logarithmic steps.

    Returns:
        The files written.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    return save(figures(dataset, found, steps_per_epoch=steps_per_epoch, log_steps=log_steps), folder, formats)


def save_missing(dataset: xr.Dataset, found: xr.Dataset, folder: Path) -> list[Path]:
    """Draw, as png, the figures that apply to the run and are not there; arguments as of `save_all`."""
    wanted = ((name, draw) for name, draw in _applicable(dataset, found) if not (folder / f"{name}.png").exists())
    return save(_drawn(wanted), folder, ("png",))


def save_landscape(found: xr.Dataset, folder: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draw a landscape that `measure_landscape` measured, and write it; arguments as of `save_all`."""
    drawn = [("landscape", partial(landscape, found)), ("spectral_density", partial(densities, found))]
    return save(_drawn(drawn), folder, formats)


def save_minima(found: xr.Dataset, folder: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draw minima as `inspection.minima.compare` compares them, and write it; arguments as of `save_all`."""
    return save([("minima", minima(found))], folder, formats)


def save(drawn: Iterable[tuple[str, Figure]], folder: Path, formats: tuple[str, ...]) -> list[Path]:
    """Write figures under their names: all of them, or none where one cannot be drawn.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    files = dict[Path, bytes]()
    for name, figure in drawn:
        with mpl.rc_context(STYLE):
            for kind in formats:
                image = io.BytesIO()
                figure.savefig(image, format=kind, metadata=METADATA[kind])
                files[folder / f"{name}.{kind}"] = image.getvalue()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            write_atomically(file, content)
    except OSError as error:
        raise UnwritableError(folder, error.strerror) from None
    return list(files)


def figures(
    dataset: xr.Dataset, found: xr.Dataset, *, steps_per_epoch: int | None = None, log_steps: bool = False
) -> Iterator[tuple[str, Figure]]:
    """Names and figures of all that applies to the run, one after the other; arguments as of `save_all`."""
    options = {"steps_per_epoch": steps_per_epoch, "log_steps": log_steps}
    return _drawn(_applicable(dataset, found, **options))


def _drawn(applicable: Iterable[tuple[str, Callable[[], Figure | None]]]) -> Iterator[tuple[str, Figure]]:
    """The figures, each drawn when it is asked for; without those that there is nothing to draw of."""
    return ((name, figure) for name, draw in applicable if (figure := draw()))


def _applicable(
    dataset: xr.Dataset, found: xr.Dataset, **options: Any
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """Names of all figures that may apply to the run, and what draws each."""
    dataset = matched(dataset, found)
    if not dataset.sizes["config"]:
        return
    for name in CURVES:
        if name in dataset and (describe(name).dims == STEP or np.isfinite(dataset[name].values).any()):
            yield name, partial(in_panels, dataset, curves, name, **options)
    if "train_loss" not in dataset or not np.isfinite(dataset.train_loss.values).any():
        yield "loss", partial(in_panels, dataset, curves, "loss", **options)  # of the mini-batches: all there is
    yield "phase_diagram", partial(in_panels, dataset, phase_diagram)
    yield "regimes", partial(regimes, found)
    if np.isfinite(found.period_length.values).any():
        yield "period_length", partial(periods, found)
    if in_equilibrium(found).any():
        yield "equilibrium", partial(equilibria, found)
    for name, close in (("one_period", one_period), ("phases", phases_of_clearest)):
        yield name, partial(close, dataset, found)
    if "elr_times_sharpness" in dataset:
        yield "sharpness", partial(in_panels, dataset, against_threshold, "elr_times_sharpness", **options)
        yield "sharpness_at_onset", partial(at_onsets, found)
    if "sphere_hessian_largest" in dataset:
        yield "eigenvalue", partial(in_panels, dataset, curves, "sphere_hessian_largest", **options)
    if "layer_weight_norm" in dataset:
        yield "layer_weight_norm", partial(layers, dataset)
