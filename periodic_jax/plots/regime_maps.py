"""Figures of the analysis of a whole run: the regime map, period lengths, equilibria."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from periodic_jax.core.formatting import short_numbers
from periodic_jax.plots import style
from periodic_jax.plots.style import REGIME_COLOURS, STYLE, named

MOST_WRITTEN = 16  # cells in a row of the regime map that have room for text
MOST_TICKS = 12
MARKERS = {"converging": "o", "periodic": "s", "equilibrium": "D", "diverged": "X", "undecided": "."}


def map_axes(found: xr.Dataset) -> tuple[str, str]:
    """The axes across and up the regime map: the two with most values, the learning rate across."""
    names = list(dict.fromkeys([*style.swept_axes(found)[:2], "lr", "weight_decay"]))[:2]
    across, up = sorted(names, key=lambda name: (name != "lr", name == "seed"))
    return across, up


def regime_map(ax: Axes, found: xr.Dataset, across: str = "lr", up: str = "weight_decay") -> Axes:
    """Regimes over two axes of the grid: colour and letter show the regime, the number its destabilisations.

    A cell of several configurations is parted into stripes, one for each, with their numbers one above the other where
    there is room.

    Args:
        ax: where to draw.
        found: the analysis of a run, or a part of it.
        across, up: names of axes.
    """
    columns, rows = np.unique(found[across]), np.unique(found[up])
    for i, j in np.ndindex(len(columns), len(rows)):
        here = np.flatnonzero((found[across].values == columns[i]) & (found[up].values == rows[j]))
        has_text = len(columns) <= MOST_WRITTEN and len(here) * len(columns) <= 2 * MOST_WRITTEN
        for k, config in enumerate(here):
            regime, count = str(found.regime.values[config]), int(found.destabilisations.values[config])
            width = 1 / len(here)
            left = i - 0.5 + k * width
            ax.bar(left, 1, width, j - 0.5, align="edge", color=REGIME_COLOURS[regime], ec="white", lw=0.5)
            if has_text:
                text = regime[0].upper() + (f"\n{count}" if count else "")
                colour = "white" if regime == "diverged" else "black"
                ax.text(left + width / 2, j, text, ha="center", va="center", fontsize=8, color=colour)
    # Wider than the borders of stripes.
    ax.hlines(np.arange(len(rows) + 1) - 0.5, -0.5, len(columns) - 0.5, color="white", lw=3)
    ax.vlines(np.arange(len(columns) + 1) - 0.5, -0.5, len(rows) - 0.5, color="white", lw=3)
    for axis, values in ((ax.xaxis, columns), (ax.yaxis, rows)):
        shown = style.spread(np.arange(len(values)), MOST_TICKS)
        axis.set_ticks(shown, short_numbers(values[shown]))
    ax.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel=named(across), ylabel=named(up))
    ax.grid(False)
    return ax


def regimes(found: xr.Dataset) -> Figure:
    """The regime map over the two largest axes, a panel for each value of the third, with a legend."""
    with mpl.rc_context(STYLE):
        across, up = map_axes(found)
        others = [name for name in style.swept_axes(found) if name not in (across, up)]
        panel_by = next((name for name in others if name != "seed"), None)
        size = [float(np.clip(0.5 * len(np.unique(found[name])) + least, *ends))
                for name, least, ends in ((across, 1.2, (3, 8)), (up, 0.9, (1.8, 6)))]  # fmt: skip
        figure, panels, notes = style.panels_by(found, panel_by, (size[0], size[1]), (1.6, 0.6))
        for ax, part in panels:
            regime_map(ax, part, across, up)
        present = [name for name in REGIME_COLOURS if (found.regime == name).any()]
        handles = [Patch(fc=REGIME_COLOURS[name], ec="grey", label=f"{name[0].upper()}: {name}") for name in present]
        figure.legend(handles=handles, title="regime; number:\ndestabilisations", loc="outside right upper")
        if striped := [named(name) for name in others if name != panel_by]:
            notes.append(f"stripes in a cell: {' and '.join(striped)}")
        if notes:
            figure.suptitle("; ".join(notes), fontsize=9)
        return figure


def period_lengths(ax: Axes, found: xr.Dataset) -> Axes:
    """Length of every period against ηλ/(1-μ), the fitted line, and the falls that decay alone would make.

    Args:
        ax: where to draw.
        found: the analysis of a run.
    """
    rate, length = found.decay_rate.values[:, 1:], found.period_length.values
    predicted = found.predicted_fall_steps.values[:, 1:]
    good = np.isfinite(rate) & np.isfinite(length)
    for i, line in enumerate(style.line_styles(found, "lr")):
        ax.plot(rate[i, good[i]], length[i, good[i]], "o", color=line["color"], ms=3.5, alpha=0.6, mew=0)
        # Beside what was measured, not on it.
        ax.plot(1.04 * rate[i, good[i]], predicted[i, good[i]], "_", color="black", ms=7, mew=0.6, alpha=0.6)
    handles = [
        Line2D([], [], marker="o", ls="", color="grey", ms=4, label="period (colour: learning rate)"),
        Line2D([], [], marker="_", ls="", color="black", ms=7, label="predicted: its fall by decay alone"),
    ]
    fit = found.sel(fit="period_length")
    if np.isfinite(slope := float(fit.slope)):
        ends = np.array([rate[good].min(), rate[good].max()])
        ends_of_slope = f" [{float(fit.slope_low):.2f}, {float(fit.slope_high):.2f}]"
        label = f"fit: slope {slope:.2f}" + (ends_of_slope if np.isfinite(fit.slope_low) else "")
        handles += ax.plot(ends, np.exp(float(fit.slope_intercept)) * ends**slope, color="black", lw=1, label=label)
    style.fit_scale(ax, True, x=rate[good], y=np.concatenate([length[good], predicted[good]]))
    ax.set(xlabel="learning rate x weight decay / (1 - momentum)", ylabel="period length [steps]")
    ax.legend(handles=handles, loc="best")
    return ax


def equilibrium(ax: Axes, found: xr.Dataset, name: str = "weight_norm") -> Axes:
    """Measured against predicted equilibrium of each configuration, with the line of equality.

    Args:
        ax: where to draw.
        found: the analysis of a run.
        name: ``weight_norm`` or ``effective_lr``.
    """
    predicted, measured = found[f"equilibrium_{name}"].values, found[f"measured_{name}"].values
    good = np.isfinite(predicted) & np.isfinite(measured) & (predicted > 0)
    for regime, marker in MARKERS.items():
        chosen = good & (found.regime.values == regime)
        if chosen.any():
            ax.plot(
                predicted[chosen], measured[chosen], marker, color=REGIME_COLOURS[regime], mec="black", mew=0.5, ms=6,
                label=regime,
            )  # fmt: skip
    if good.any():
        ends = [min(predicted[good].min(), measured[good].min()), max(predicted[good].max(), measured[good].max())]
        ax.plot(ends, ends, color="grey", lw=0.8, ls="--", zorder=1, label="equal")
        style.fit_scale(ax, True, x=ends, y=ends)
    ax.set(xlabel=f"predicted {style.label(name)}", ylabel=f"measured {style.label(name)}")
    return ax


def equilibria(found: xr.Dataset) -> Figure:
    """`equilibrium` of weight norm and effective learning rate side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4))
        axes = figure.subplots(1, 2)
        for ax, name in zip(axes, ("weight_norm", "effective_lr"), strict=True):
            equilibrium(ax, found, name)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        if (found.regime.values == "converging").any():
            figure.suptitle("converging configurations have not come to their equilibrium yet", fontsize=9)
        return figure


def periods(found: xr.Dataset) -> Figure:
    """`period_lengths` with a legend of the learning rates."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4.5))
        period_lengths(figure.subplots(), found)
        style.legend(figure, style.colours(found.lr.values), named("lr"))
        return figure
