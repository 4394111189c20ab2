"""Figures of the analysis of a whole run: the regime map, period lengths, equilibria."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from periodic_jax.core.formatting import short_numbers
from periodic_jax.core.grid import SEED_AXES
from periodic_jax.core.optimizers import find_optimizer
from periodic_jax.plots import style
from periodic_jax.plots.style import FAINT, REGIME_COLOURS, STYLE, named

MOST_WRITTEN = 16  # cells in a row of the regime map that have room for text
MOST_TICKS = 12
MARKERS = {"converging": "o", "periodic": "s", "equilibrium": "D", "diverged": "X", "undecided": "."}


def map_axes(found: xr.Dataset) -> tuple[str, str]:
    """The axes across and up the regime map: the two with most values, the learning rate across."""
    names = list(dict.fromkeys([*style.swept_axes(found)[:2], "lr", "weight_decay"]))[:2]
    across, up = sorted(names, key=lambda name: (name != "lr", name in SEED_AXES))
    return across, up


def regime_map(ax: Axes, found: xr.Dataset, across: str = "lr", up: str = "weight_decay") -> Axes:
    """Regimes over two axes of the grid: colour and letter show the regime, faint where the confidence in it is below
    `style.FAINT`, the number its destabilisations.

    A cell of several configurations is parted into stripes, one for each, with their numbers one above the other where
    there is room.

    Args:
        ax: where to draw.
        found: the analysis of a run, or a part of it.
        across, up: names of axes.
    """
    columns, rows = np.unique(found[across]), np.unique(found[up])
    faint = _is_faint(found)
    for i, j in np.ndindex(len(columns), len(rows)):
        here = np.flatnonzero((found[across].values == columns[i]) & (found[up].values == rows[j]))
        has_text = len(columns) <= MOST_WRITTEN and len(here) * len(columns) <= 2 * MOST_WRITTEN
        for k, config in enumerate(here):
            regime, count = str(found.regime.values[config]), int(found.destabilisations.values[config])
            alpha = 0.4 if faint[config] else 1
            width = 1 / len(here)
            left = i - 0.5 + k * width
            ax.bar(left, 1, width, j - 0.5, align="edge", fc=(REGIME_COLOURS[regime], alpha), ec="white", lw=0.5)
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


def _is_faint(found: xr.Dataset) -> np.ndarray:
    """Which configurations have a regime that is not sure, ``(configs,)``; none where confidence was not kept."""
    if "confidence" not in found:
        return np.zeros(found.sizes["config"], bool)
    return (found.confidence.values < FAINT) & (found.regime.values != "undecided")


def regimes(found: xr.Dataset) -> Figure:
    """The regime map over the two largest axes, a panel for each value of the third, with a legend."""
    with mpl.rc_context(STYLE):
        across, up = map_axes(found)
        others = [name for name in style.swept_axes(found) if name not in (across, up)]
        panel_by = next((name for name in others if name not in SEED_AXES), None)
        size = [float(np.clip(0.5 * len(np.unique(found[name])) + least, *ends))
                for name, least, ends in ((across, 1.2, (3, 8)), (up, 0.9, (1.8, 6)))]  # fmt: skip
        figure, panels, notes = style.panels_by(found, panel_by, (size[0], size[1]), (1.6, 0.6))
        for ax, part in panels:
            regime_map(ax, part, across, up)
        present = [name for name in REGIME_COLOURS if (found.regime == name).any()]
        handles = [Patch(fc=REGIME_COLOURS[name], ec="grey", label=f"{name[0].upper()}: {name}") for name in present]
        title = "regime; number:\ndestabilisations" + (
            f"\nfaint: confidence\nbelow {FAINT:g}" if _is_faint(found).any() else ""
        )
        figure.legend(handles=handles, title=title, loc="outside right upper")
        if striped := [named(name) for name in others if name != panel_by]:
            notes.append(f"stripes in a cell: {' and '.join(striped)}")
        if notes:
            figure.suptitle("; ".join(notes), fontsize=9)
        return figure


def period_lengths(ax: Axes, found: xr.Dataset) -> Axes:
    """Length of every period against ηλ/(1-μ), the fitted line, and the falls that decay alone would make.

    Configurations of one product stand side by side, in the order of their learning rates.

    Args:
        ax: where to draw.
        found: the analysis of a run.
    """
    rate, length = found.decay_rate.values[:, 1:], found.period_length.values
    predicted = found.predicted_fall_steps.values[:, 1:]
    good = np.isfinite(rate) & np.isfinite(length)
    aside = _aside(found)
    for i, line in enumerate(style.line_styles(found, "lr")):
        at, expected = aside[i] * rate[i, good[i]], predicted[i, good[i]]
        ax.plot(at, length[i, good[i]], "o", color=line["color"], ms=3, alpha=0.5, mew=0)
        if np.isfinite(expected).any():  # one for all: a mark for each would hide what was measured
            ax.plot(np.median(at), np.nanmedian(expected), "_", color="black", ms=6, mew=1.5)
    handles = [
        Line2D([], [], marker="o", ls="", color="grey", ms=4, label="period (colour: learning rate)"),
        Line2D([], [], marker="_", ls="", color="black", ms=7, label="predicted: median fall by decay alone"),
    ]
    fit = found.sel(fit="period_length")
    if np.isfinite(slope := float(fit.slope)):
        ends = np.array([rate[good].min(), rate[good].max()])
        ends_of_slope = f" [{float(fit.slope_low):.2f}, {float(fit.slope_high):.2f}]"
        label = f"fit: slope {slope:.2f}" + (ends_of_slope if np.isfinite(fit.slope_low) else "")
        handles += ax.plot(ends, np.exp(float(fit.slope_intercept)) * ends**slope, color="black", lw=1, label=label)
    style.fit_scale(ax, True, x=rate[good], y=np.concatenate([length[good], predicted[good]]))
    divided = "" if _is_decoupled(found) else " / (1 - momentum)"
    ax.set(xlabel=f"learning rate x weight decay{divided}", ylabel="period length [steps]")
    ax.legend(handles=handles, loc="best")
    return ax


def _aside(found: xr.Dataset) -> np.ndarray:
    """Factors ``(configs,)`` on the product of learning rate and decay that part configurations of one product."""
    rate = (found.lr * found.weight_decay / (1 if _is_decoupled(found) else 1 - found.momentum)).values
    factors = np.ones(len(rate))
    for text in set(texts := np.array([f"{value:.6g}" for value in rate])):
        alike = np.flatnonzero(texts == text)
        order = np.argsort(np.argsort(found.lr.values[alike], kind="stable"))
        factors[alike] = np.exp(min(0.05, 0.2 / len(alike)) * (order - (len(alike) - 1) / 2))
    return factors


def _is_decoupled(found: xr.Dataset) -> bool:
    """Whether decay shrinks the weights at the same pace whatever the momentum."""
    return find_optimizer(found.attrs.get("optimizer", "sgd")).is_decoupled


def equilibrium(ax: Axes, found: xr.Dataset, name: str = "weight_norm") -> Axes:
    """Measured against predicted equilibrium of each configuration that is in one, with the line of equality.

    Args:
        ax: where to draw.
        found: the analysis of a run.
        name: ``weight_norm`` or ``effective_lr``.
    """
    predicted, measured = found[f"equilibrium_{name}"].values, found[f"measured_{name}"].values
    good = in_equilibrium(found) & np.isfinite(predicted) & np.isfinite(measured) & (predicted > 0)
    if good.any():
        ax.plot(
            predicted[good], measured[good], MARKERS["equilibrium"], color=REGIME_COLOURS["equilibrium"], mec="black",
            mew=0.5, ms=6, label="equilibrium",
        )  # fmt: skip
        ends = [min(predicted[good].min(), measured[good].min()), max(predicted[good].max(), measured[good].max())]
        ax.plot(ends, ends, color="grey", lw=0.8, ls="--", zorder=1, label="equal")
        style.fit_scale(ax, True, x=ends, y=ends)
    style.note_if_empty(ax, np.where(good, measured, np.nan))
    ax.set(xlabel=f"predicted {style.label(name)}", ylabel=f"measured {style.label(name)}")
    return ax


def in_equilibrium(found: xr.Dataset) -> np.ndarray:
    """Which configurations are in an equilibrium that the decay sets, ``(configs,)``."""
    return (found.regime.values == "equilibrium") & np.isfinite(found.equilibrium_weight_norm.values)


def equilibria(found: xr.Dataset) -> Figure:
    """`equilibrium` of weight norm and effective learning rate side by side."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 4))
        axes = figure.subplots(1, 2)
        for ax, name in zip(axes, ("weight_norm", "effective_lr"), strict=True):
            equilibrium(ax, found, name)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        return figure


def periods(found: xr.Dataset) -> Figure:
    """`period_lengths` with a legend of the learning rates."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.5, 4.5))
        period_lengths(figure.subplots(), found)
        style.legend(figure, style.colours(found.lr.values), named("lr"))
        return figure
