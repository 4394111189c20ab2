"""The minima of a run's periods: how good they are, how far apart, what lies between, and their ensembles."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from periodic_jax.core.formatting import short_numbers
from periodic_jax.core.grid import SEED_AXES
from periodic_jax.plots import style
from periodic_jax.plots.style import STYLE, colours, named

MOST_SERIES = 6  # configurations whose curves of four kinds a panel has room for
PATHS = {"straight": ("o", "-", "straight"), "layers": ("x", ":", "layer by layer")}  # marker, line style, label
KINDS = {  # what is drawn against the number of members -> line style and label
    "ensemble_error": ("-", "last minima: ensemble"),
    "average_test_error": (":", "their average"),
    "seed_ensemble_error": ("--", "whole runs of other seeds"),
    "equal_cost_ensemble_error": ("-.", "seeds at the same cost"),
}


def minima_errors(ax: Axes, found: xr.Dataset, palette: Sequence[Any]) -> Axes:
    """Test error of each minimum against its step; hollow where the period had not ended.

    Args:
        ax: where to draw.
        found: of `inspection.minima.compare`.
        palette: a colour for each configuration.
    """
    for i, colour in enumerate(palette):
        steps = found.step.values[i]
        errors, ended = 100 * found.test_error.values[i], np.isfinite(found.ended.values[i])
        ax.plot(steps, errors, "-", color=colour, lw=0.8)
        ax.plot(steps[ended], errors[ended], "o", color=colour, ms=4)
        ax.plot(steps[~ended], errors[~ended], "o", color=colour, ms=4, mfc="white")
    style.note_if_empty(ax, found.test_error.values)
    ax.locator_params("x", integer=True)
    ax.set(xlabel="step", ylabel="test error [%]", title="minima (hollow: unfinished period)")
    return ax


def barriers(ax: Axes, found: xr.Dataset, palette: Sequence[Any]) -> Axes:
    """Barrier against cosine of successive minima, on both paths, and between seeds; arguments as above."""
    for i, colour in enumerate(palette):
        cosines = np.diagonal(found.cosine.values[i], 1)[: found.sizes["pair"]]
        for path, (marker, _, _) in PATHS.items():
            ax.plot(cosines, found.barrier.sel(path=path).values[i], marker, color=colour, ms=4, mfc="none")
    ax.plot(found.seed_cosine.values, found.seed_barrier.sel(path="straight").values, "k+", ms=6)
    labels = {label: marker for marker, _, label in PATHS.values()}
    if np.isfinite(found.seed_cosine.values).any():
        labels["two seeds"] = "+"
    _legend_below(ax, {label: {"ls": "", "marker": m, "mfc": "none", "ms": 4} for label, m in labels.items()})
    style.note_if_empty(ax, found.barrier.values)
    ax.set(xlabel="cosine", ylabel="barrier [nats]", title="successive minima")
    if np.isfinite(found.barrier.values).any():
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set_ylim(bottom=-2e-4)  # so that points at 0 are whole
    return ax


def paths(ax: Axes, found: xr.Dataset, palette: Sequence[Any]) -> Axes:
    """Training loss on the ways from each minimum to the next, one after the other, of the configuration with most
    minima; arguments as above.
    """
    i = int(np.isfinite(found.step.values).sum(1).argmax())
    for path, (_, line, _) in PATHS.items():
        for k, losses in enumerate(found.path_train_loss.sel(path=path).values[i]):
            if np.isfinite(losses).all():
                ax.plot(k + 1 + found.point.values, losses, line, color=palette[i], lw=1)
    known = found.path_train_loss.values[i]
    style.fit_scale(ax, True, y=known)
    style.note_if_empty(ax, known)
    of = ", ".join(f"{named(name)} {found[name].values[i]:.6g}" for name in _series_of(found))
    title = "from one to the next" + (f": {of}" if of else "")
    ax.set(xlabel="minimum", ylabel="training loss [nats]", title=textwrap.fill(title, 48))
    ax.locator_params("x", integer=True)
    _legend_below(ax, {label: {"ls": line, "lw": 1} for _, line, label in PATHS.values()})
    return ax


def ensembles(ax: Axes, found: xr.Dataset, palette: Sequence[Any]) -> Axes:
    """Test error of ensembles and averages of the last minima, and of ensembles of seeds, against their members;
    arguments as above.
    """
    for name, (line, _) in KINDS.items():
        for i, colour in enumerate(palette):
            ax.plot(found.members.values, 100 * found[name].values[i], line, marker=".", color=colour, lw=1)
    shown = [kind for name, kind in KINDS.items() if np.isfinite(found[name].values).any()]
    _legend_below(ax, {label: {"ls": line, "lw": 1} for line, label in shown})
    style.note_if_empty(ax, found.ensemble_error.values)
    ax.set(xlabel="members", ylabel="test error [%]", title="together")
    ax.locator_params("x", integer=True)
    errors = 100 * np.concatenate([found[name].values.ravel() for name in KINDS])
    if np.nanmin(errors, initial=np.inf) >= 1:
        style.fit_scale(ax, True, y=errors)
    else:
        ax.set_yscale("symlog", linthresh=1)  # averages may be worse by far
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter("{x:g}")
    return ax


def minima(found: xr.Dataset) -> Figure:
    """All four of these, of up to `MOST_SERIES` configurations, evenly over them, in a colour each."""
    with mpl.rc_context(STYLE):
        shown = style.spread(np.arange(found.sizes["config"]), MOST_SERIES)
        axes, configs = _series_of(found) or ["lr"], found.sizes["config"]
        found = found.isel(config=shown)
        scale = colours(np.arange(len(shown)))
        palette = list(scale.values())
        figure = Figure(figsize=(9.6, 7.6))
        panels = (minima_errors, barriers, paths, ensembles)
        for ax, draw in zip(figure.subplots(2, 2).ravel(), panels, strict=True):
            draw(ax, found, palette)
        if len(shown) < configs:
            figure.suptitle(f"{len(shown)} of {configs} configurations", fontsize=9)
        labels = [", ".join(of) for of in zip(*(short_numbers(found[name].values) for name in axes), strict=True)]
        handles = [Line2D([], [], color=colour, lw=2) for colour in palette]
        figure.legend(handles, labels, title=",\n".join(map(named, axes)), loc="outside right upper")
        return figure


def _series_of(found: xr.Dataset) -> list[str]:
    """The hyperparameters that differ between configurations: what the colours show first, the seed last."""
    return sorted(style.swept_axes(found), key=lambda name: (name in SEED_AXES, name != "lr"))


def _legend_below(ax: Axes, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """A legend of the lines drawn in a panel, by their labels; below it, where it hides nothing."""
    if entries:
        handles = [Line2D([], [], color="black", label=label, **line) for label, line in entries.items()]
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2 if len(handles) > 3 else 3)
