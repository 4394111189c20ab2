"""The minima of a run's periods: how good they are, how far apart, what lies between, what they are worth together."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from periodic_jax.plots import style
from periodic_jax.plots.style import STYLE, colours, named

MARKERS = {"straight": "o", "layers": "x"}
KINDS = {  # what is drawn over members -> line style and words
    "ensemble_error": ("-", "last minima: ensemble"),
    "average_test_error": (":", "their average"),
    "seed_ensemble_error": ("--", "whole runs of other seeds"),
    "equal_cost_ensemble_error": ("-.", "seeds at the same cost"),
}


def minima_errors(ax: Axes, found: xr.Dataset, colour_by: str) -> Axes:
    """Test error of each minimum against its step; hollow where the period had not ended.

    Args:
        ax: where to draw.
        found: of `minima.compare`.
        colour_by: the coordinate that the colour shows.
    """
    scale = colours(found[colour_by].values)
    for i in range(found.sizes["config"]):
        colour, steps = scale[float(found[colour_by].values[i])], found.step.values[i]
        errors, ended = 100 * found.test_error.values[i], np.isfinite(found.ended.values[i])
        ax.plot(steps, errors, "-", color=colour, lw=0.8)
        ax.plot(steps[ended], errors[ended], "o", color=colour, ms=4)
        ax.plot(steps[~ended], errors[~ended], "o", color=colour, ms=4, mfc="white")
    style.say_if_empty(ax, found.test_error.values)
    ax.set(xlabel="step", ylabel="test error [%]", title="minima (hollow: unfinished period)")
    return ax


def barriers(ax: Axes, found: xr.Dataset, colour_by: str) -> Axes:
    """Barrier against cosine of successive minima, on both paths, and between seeds; arguments as above."""
    scale = colours(found[colour_by].values)
    for i in range(found.sizes["config"]):
        colour = scale[float(found[colour_by].values[i])]
        cosines = np.diagonal(found.cosine.values[i], 1)[: found.sizes["pair"]]
        for path, marker in MARKERS.items():
            ax.plot(cosines, found.barrier.sel(path=path).values[i], marker, color=colour, ms=4, mfc="none")
    ax.plot(found.seed_cosine.values, found.seed_barrier.sel(path="straight").values, "k+", ms=6)
    words = {"o": "straight", "x": "layer by layer", "+": "two seeds"}
    handles = [Line2D([], [], color="black", ls="", marker=m, mfc="none", ms=4) for m in words]
    ax.legend(handles, list(words.values())).set_in_layout(False)
    style.say_if_empty(ax, found.barrier.values)
    ax.set(xlabel="cosine", ylabel="barrier [nats]", title="successive minima")
    if np.isfinite(found.barrier.values).any():
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_ylim(bottom=-2e-4)  # so that points at 0 are whole
    return ax


def paths(ax: Axes, found: xr.Dataset, colour_by: str) -> Axes:
    """Training loss on the straight paths from each minimum to the next, one after the other, of the configuration with
    most minima.
    """
    i = int(np.isfinite(found.step.values).sum(1).argmax())
    colour = colours(found[colour_by].values)[float(found[colour_by].values[i])]
    for path, line in (("straight", "-"), ("layers", ":")):
        for k, losses in enumerate(found.path_train_loss.sel(path=path).values[i]):
            if np.isfinite(losses).all():
                ax.plot(k + 1 + found.point.values, losses, line, color=colour, lw=1, label=path if not k else None)
    known = found.path_train_loss.values[i]
    style.fit_scale(ax, True, y=known)
    style.say_if_empty(ax, known)
    label = f"{named(colour_by)} {found[colour_by].values[i]:.3g}, seed {found.seed.values[i]}"
    ax.set(xlabel="minimum", ylabel="training loss [nats]", title="paths from one to the next")
    if np.isfinite(known).any():
        ax.legend(title=label).set_in_layout(False)
    return ax


def together(ax: Axes, found: xr.Dataset, colour_by: str) -> Axes:
    """Test error of ensembles and averages of the last minima, and of ensembles of seeds, against their members."""
    scale = colours(found[colour_by].values)
    for name, (line, _) in KINDS.items():
        for i in range(found.sizes["config"]):
            colour = scale[float(found[colour_by].values[i])]
            ax.plot(found.members.values, 100 * found[name].values[i], line, marker=".", color=colour, lw=1)
    shown = [name for name in KINDS if np.isfinite(found[name].values).any()]
    handles = [Line2D([], [], color="black", ls=KINDS[name][0], lw=1) for name in shown]
    ax.legend(handles, [KINDS[name][1] for name in shown]).set_in_layout(False)
    style.say_if_empty(ax, found.ensemble_error.values)
    ax.set(xlabel="members", ylabel="test error [%]", title="together")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_yscale("symlog", linthresh=1)  # averages may be worse by far
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return ax


def minima(found: xr.Dataset) -> Figure:
    """All four of these, of all configurations."""
    with mpl.rc_context(STYLE):
        colour_by, _ = style.axis_roles(found)
        figure = Figure(figsize=(9.6, 6.4))
        panels = (minima_errors, barriers, paths, together)
        for ax, draw in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            draw(ax, found, colour_by)
        style.legend(figure, colours(found[colour_by].values), named(colour_by))
        return figure
