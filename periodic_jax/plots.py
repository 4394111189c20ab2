"""Figures of a run: functions from a flat Dataset (one ``config`` dimension) to matplotlib Axes. They draw and compute
nothing.

Colour tells the learning rate (or the first swept axis), panels tell the weight decay (or the second).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from periodic_jax.grid import short_numbers
from periodic_jax.periods import Periods, detect_periods

STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "figure.constrained_layout.use": True, "savefig.dpi": 150, "svg.hashsalt": "periodic_jax",
}  # fmt: skip
MOST_PANELS = 6
SPIKE = 7.0  # that mini-batches alone make of the loss within a fall
NAMES = {"lr": "learning rate", "weight_decay": "weight decay", "elr": "effective learning rate"}
LOG_SCALED = {"train_loss", "test_loss", "loss", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step"}


def axis_roles(dataset: xr.Dataset) -> tuple[str, str | None]:
    """Which coordinate the colours show, and which the panels: the first two that differ, ``lr`` before others."""
    order = ["lr", "weight_decay", "elr", "momentum", "fixed_norm", "noninvariant_lr", "seed"]
    swept = [name for name in order if len(np.unique(dataset[name])) > 1]
    return (swept[0] if swept else "lr"), (swept[1] if len(swept) > 1 else None)


def colours(values: np.ndarray) -> dict[float, Any]:
    """A colour for each distinct value, dark to light in the order of the values: readable in grey and by the
    colour-blind.
    """
    distinct = np.unique(values)
    cmap = mpl.colormaps["viridis"]
    return {float(v): cmap(0.9 * i / max(len(distinct) - 1, 1)) for i, v in enumerate(distinct)}


def curves(
    ax: Axes, dataset: xr.Dataset, name: str, colour_by: str = "lr", scale: dict[float, Any] | None = None
) -> Axes:
    """One quantity of every configuration against the step.

    Args:
        ax: where to draw.
        dataset: a flat run, or a part of one.
        name: a per-step or an evaluated quantity.
        colour_by: the coordinate that the colour shows.
        scale: a colour for each of its values; made from the dataset if None.

    Returns:
        ``ax``.
    """
    scale = scale or colours(dataset[colour_by].values)
    array = dataset[name]
    x = dataset[array.dims[-1]].values
    for i in range(dataset.sizes["config"]):
        ax.plot(x, array.values[i], color=scale[float(dataset[colour_by].values[i])], lw=0.8, rasterized=True)
    if name in LOG_SCALED:
        _log_scale(ax, y=array)
    ax.set_xlabel("step")
    ax.set_ylabel(_label(array))
    return ax


def phase_diagram(ax: Axes, dataset: xr.Dataset, colour_by: str = "lr", scale: dict[float, Any] | None = None) -> Axes:
    """Effective gradient norm against effective learning rate, with a ring where each trajectory starts.

    While the norm decays a trajectory drifts to the right and down; a destabilisation throws it up and back to the
    left.
    """
    scale = scale or colours(dataset[colour_by].values)
    for i in range(dataset.sizes["config"]):
        x, y = dataset.effective_lr.values[i], dataset.effective_grad_norm.values[i]
        colour = scale[float(dataset[colour_by].values[i])]
        ax.plot(x, y, color=colour, lw=0.4, alpha=0.8, rasterized=True)
        ax.plot(x[:1], y[:1], "o", mfc="white", mec=colour, ms=5, zorder=3)
    _log_scale(ax, x=dataset.effective_lr, y=dataset.effective_grad_norm)
    ax.set_xlabel(_label(dataset.effective_lr))
    ax.set_ylabel(_label(dataset.effective_grad_norm))
    return ax


def in_panels(dataset: xr.Dataset, draw: Callable[..., Axes], *args: Any) -> Figure:
    """A figure with one panel for each value of the second swept axis, all with the same colours.

    Args:
        dataset: a flat run.
        draw: `curves` or `phase_diagram`, called as ``draw(ax, part, *args, colour_by, scale)``.
        *args: for ``draw``, e.g. the quantity.
    """
    with mpl.rc_context(STYLE):
        colour_by, panel_by = axis_roles(dataset)
        scale = colours(dataset[colour_by].values)
        values = np.unique(dataset[panel_by]) if panel_by else np.array([np.nan])
        shown = values[np.linspace(0, len(values) - 1, min(len(values), MOST_PANELS)).round().astype(int)]
        rows = -(-len(shown) // 3)
        columns = -(-len(shown) // rows)
        figure = Figure(figsize=(4.4 * columns + 0.8, 3.2 * rows))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for k, (ax, value, text) in enumerate(zip(axes, shown, short_numbers(shown), strict=False)):
            part = dataset.isel(config=np.flatnonzero(dataset[panel_by] == value)) if panel_by else dataset
            draw(ax, part, *args, colour_by, scale)
            if panel_by:
                ax.set_title(f"{NAMES.get(panel_by, panel_by)} {text}", fontsize=9)
            if k % columns:
                ax.set_ylabel("")
            if k + columns < len(shown):
                ax.set_xlabel("")
            else:  # nothing below, or the place below is not used
                ax.tick_params(which="both", labelbottom=True)
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        if len(shown) < len(values):
            figure.suptitle(
                f"{len(shown)} of {len(values)} values of {NAMES.get(panel_by or '', str(panel_by))}", fontsize=9
            )
        _legend(figure, scale, NAMES.get(colour_by, colour_by))
        return figure


def one_period(dataset: xr.Dataset) -> Figure | None:
    """A close-up of the clearest period of the run: loss, weight norm and effective learning rate from one
    destabilisation to the next.

    Returns:
        The figure, or None where no configuration destabilised twice.
    """
    found = detect_periods(dataset)
    choice = _clearest(found)
    if choice is None:
        return None
    config, k = choice
    first, fall, last = (int(v) for v in (found.onset[config, k], found.end[config, k], found.onset[config, k + 1]))
    margin = max((last - first) // 12, 5)
    part = dataset.isel(config=config, step=slice(max(first - margin, 0), int(found.end[config, k + 1]) + margin))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 6))
        axes = figure.subplots(3, 1, sharex=True)
        for ax, name in zip(axes, ("loss", "weight_norm", "effective_lr"), strict=True):
            ax.axvspan(fall, last, color="#56B4E9", alpha=0.15, lw=0, label="phase A: norm falls, ELR rises")
            for onset, end in ((first, fall), (last, int(found.end[config, k + 1]))):
                ax.axvspan(onset, end, color="#D55E00", alpha=0.3, lw=0, label="phase B: destabilisation")
                ax.axvline(onset, color="black", lw=0.8, ls=":", label="onset")
            ax.plot(part.step, part[name], color="black", lw=0.7)
            ax.set_yscale("log")
            ax.set_ylabel(_label(dataset[name]))
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(list(unique.values()), list(unique), loc="outside upper center", ncols=3)
        axes[-1].set_xlabel("step")
        title = f"learning rate {float(part.lr):g}, weight decay {float(part.weight_decay):g}: {last - first} steps"
        axes[0].set_title(title, fontsize=9)
        return figure


def save_all(dataset: xr.Dataset, folder: Path) -> list[Path]:
    """Draw every figure that applies to the run and write it as PNG.

    Args:
        dataset: a flat run.
        folder: created if missing.

    Returns:
        The files written.
    """
    dataset = dataset.load()
    figures = {name: in_panels(dataset, curves, name) for name in ("train_loss", "test_error", "weight_norm")}
    figures["phase_diagram"] = in_panels(dataset, phase_diagram)
    close_up = one_period(dataset)
    if close_up:
        figures["one_period"] = close_up
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in figures.items():
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], metadata={"Software": None})
    return written


def _clearest(found: Periods) -> tuple[int, int] | None:
    """The period between two onsets that grew the norm most at its start and end, among those whose fall is free of
    smaller spikes: the loss rises and falls again there less than `SPIKE`-fold, or least of all.
    """
    if found.onset.shape[-1] < 2:
        return None
    growth = found.peak_weight_norm / found.onset_weight_norm
    both = np.where(np.isfinite(found.onset[:, 1:]), np.minimum(growth[:, :-1], growth[:, 1:]), np.nan)
    if not np.isfinite(both).any():
        return None
    spike = np.where(np.isfinite(both), found.spike[:, 1:], np.inf)
    choice = np.nanargmax(np.where(spike <= max(SPIKE, spike.min()), both, -np.inf))
    config, k = np.unravel_index(choice, both.shape)
    return int(config), int(k)


def _log_scale(ax: Axes, **arrays: xr.DataArray) -> None:
    """Logarithmic axes ``x`` and ``y``, except for what has no positive number, as after a divergence at once."""
    for axis, array in arrays.items():
        if (array > 0).any():
            ax.set(**{f"{axis}scale": "log"})


def _label(array: xr.DataArray) -> str:
    units = array.attrs.get("units", "1")
    return str(array.attrs.get("long_name", array.name)) + ("" if units in ("1", "") else f" [{units}]")


def _legend(figure: Figure, scale: dict[float, Any], title: str) -> None:
    """A legend of up to 10 lines; beyond that every k-th value, the last one included."""
    values = list(scale)
    chosen = [values[i] for i in sorted({round(k) for k in np.linspace(0, len(values) - 1, min(len(values), 10))})]
    handles = [Line2D([], [], color=scale[v], lw=2) for v in chosen]
    figure.legend(handles, short_numbers(chosen), title=title, loc="outside right upper")
