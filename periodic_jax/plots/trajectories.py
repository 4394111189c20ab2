"""Curves of every configuration: quantities against steps or epochs, the phase diagram, layers."""

import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from periodic_jax.core.formatting import short_numbers
from periodic_jax.core.grid import AXES
from periodic_jax.core.segments import extremes
from periodic_jax.plots import style
from periodic_jax.plots.style import STYLE, axis_roles, colours, named
from periodic_jax.storage.schema import describe

MOST_PANELS = 6
BUCKETS = 1500  # of a curve that is drawn: more than a figure has pixels across
LAYERS_OF = 6  # configurations whose layers are shown


def curves(
    ax: Axes,
    dataset: xr.Dataset,
    name: str,
    colour_by: str = "lr",
    scale: dict[float, Any] | None = None,
    *,
    dash_by: str | None = None,
    steps_per_epoch: int | None = None,
    log_steps: bool = False,
) -> Axes:
    """One quantity of every configuration against the step or the epoch.

    Args:
        ax: where to draw.
        dataset: a flat run, or a part of one.
        name: a per-step or an evaluated quantity.
        colour_by: the coordinate that the colour shows.
        scale: a colour for each of its values; made from the dataset if None.
        dash_by: the coordinate that the line style shows.
        steps_per_epoch: to count epochs instead of steps.
        log_steps: logarithmic steps, counted from 1.

    Returns:
        ``ax``.
    """
    scale = scale or colours(dataset[colour_by].values)
    styles = style.dashes(dataset[dash_by].values) if dash_by else {}
    values = dataset[name].values
    x = dataset[dataset[name].dims[-1]].values
    known = np.isfinite(values).any(0)
    if known.any():  # what is measured now and then is drawn as one line, too
        values, x = values[:, known], x[known]
    if log_steps:
        x = x + 1
    if steps_per_epoch:
        x = x / steps_per_epoch
    for i in range(dataset.sizes["config"]):
        kept = slice(None) if len(x) <= 2 * BUCKETS else extremes(values[i : i + 1], BUCKETS)
        line = styles[float(dataset[dash_by].values[i])] if dash_by else "-"
        ax.plot(x[kept], values[i, kept], color=scale[float(dataset[colour_by].values[i])], lw=0.8, ls=line)
    style.fit_scale(ax, describe(name).log, y=values)
    style.note_if_empty(ax, values)
    if log_steps:
        ax.set_xscale("log")
    elif not steps_per_epoch:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set_xlabel("epoch" if steps_per_epoch else "step")
    ax.set_ylabel(style.label(name))
    return ax


def phase_diagram(
    ax: Axes,
    dataset: xr.Dataset,
    colour_by: str = "lr",
    scale: dict[float, Any] | None = None,
    *,
    dash_by: str | None = None,
) -> Axes:
    """Effective gradient norm against effective learning rate, with a ring where each trajectory starts.

    While the norm decays a trajectory drifts to the right and down (phase A); a destabilisation throws it up and back
    to the left (phase B).

    Args:
        ax: where to draw.
        dataset: a flat run, or a part of one.
        colour_by, scale: as in `curves`.
        dash_by: taken for the sake of `in_panels`; dashes would hide the jumps.
    """
    scale = scale or colours(dataset[colour_by].values)
    elr, gradient = dataset.effective_lr.values, dataset.effective_grad_norm.values
    for i in range(dataset.sizes["config"]):
        both = np.stack([elr[i], gradient[i]])
        if both.shape[1] > 2 * BUCKETS:
            both = both[:, extremes(both, BUCKETS)]
        colour = scale[float(dataset[colour_by].values[i])]
        ax.plot(*both, color=colour, lw=0.4, alpha=0.8)
        ax.plot(*both[:, :1], "o", mfc="white", mec=colour, ms=5, zorder=3)
    style.fit_scale(ax, True, x=elr, y=gradient)
    style.note_if_empty(ax, elr * gradient)
    ax.set_xlabel(style.label("effective_lr"))
    ax.set_ylabel(style.label("effective_grad_norm"))
    return ax


def in_panels(dataset: xr.Dataset, draw: Callable[..., Axes], *args: Any, **options: Any) -> Figure:
    """A figure with one panel for each value of the second axis, all with the same colours, and a shared legend.

    Line styles show a third axis; of a fourth the title says that its curves are drawn alike.

    Args:
        dataset: a flat run.
        draw: `curves` or `phase_diagram`, called as ``draw(ax, part, *args, colour_by, scale, dash_by=, **options)``.
        *args: for ``draw``, e.g. the quantity.
        **options: for ``draw``.
    """
    used = {str(a) for a in args} | {"effective_lr", "effective_grad_norm"}
    dataset = dataset[[name for name in dataset.data_vars if name in used]].load()  # once, not for every panel
    with mpl.rc_context(STYLE):
        colour_by, panel_by = axis_roles(dataset)
        others = [name for name in style.swept_axes(dataset) if name not in (colour_by, panel_by)]
        dash_by = others[0] if others and others[0] != "seed" and draw is not phase_diagram else None
        scale = colours(dataset[colour_by].values)
        values = np.unique(dataset[panel_by]) if panel_by else np.array([np.nan])
        shown = style.spread(values, MOST_PANELS)
        rows = -(-len(shown) // 3)
        columns = -(-len(shown) // rows)
        figure = Figure(figsize=(4.4 * columns + 0.8, 3.2 * rows + 0.2))
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for k, (ax, value, text) in enumerate(zip(axes, shown, short_numbers(shown), strict=False)):
            part = dataset.isel(config=np.flatnonzero(dataset[panel_by] == value)) if panel_by else dataset
            draw(ax, part, *args, colour_by, scale, dash_by=dash_by, **options)
            if panel_by:
                ax.set_title(f"{named(panel_by)} {text}")
            if k % columns:
                ax.set_ylabel("")
            if k + columns < len(shown):
                ax.set_xlabel("")
            else:  # nothing below, or the place below is not used
                ax.tick_params(which="both", labelbottom=True)
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        _share_scales(axes[: len(shown)], dataset, draw, args)
        title = (
            [f"{len(shown)} of {len(values)} values of {named(panel_by)}"]
            if panel_by and len(shown) < len(values)
            else []
        )
        alike = [named(name) for name in others if name != dash_by]
        title += [f"all values of {' and '.join(alike)} drawn alike"] if alike else []
        if draw is phase_diagram:
            title.insert(0, "rings: start; phase A drifts right and down, phase B jumps up and back to the left")
        if title:
            figure.suptitle(textwrap.fill("; ".join(title), 55 * columns), fontsize=9)  # not into the legend
        more = {named(dash_by): style.dashes(dataset[dash_by].values)} if dash_by else None
        style.legend(figure, scale, named(colour_by), more)
        return figure


def _share_scales(axes: np.ndarray, dataset: xr.Dataset, draw: Callable[..., Axes], args: tuple[Any, ...]) -> None:
    """Scales that suit all panels, not only the last one drawn."""
    if draw is not phase_diagram:
        style.fit_scale(axes[0], describe(args[0]).log, y=dataset[args[0]].values)
    else:
        style.fit_scale(axes[0], True, x=dataset.effective_lr.values, y=dataset.effective_grad_norm.values)


def layer_norms(ax: Axes, dataset: xr.Dataset, scale: dict[float, Any] | None = None) -> Axes:
    """Weight norm of each scale-invariant layer of one configuration against the step.

    Args:
        ax: where to draw.
        dataset: one configuration of a flat run that was recorded with ``--per-layer``: ``isel(config=i)``.
        scale: a colour for each place of a layer.
    """
    values = dataset.layer_weight_norm.values
    scale = scale or colours(np.arange(values.shape[1]))
    for k in range(values.shape[1]):
        kept = extremes(values[None, :, k], BUCKETS)
        ax.plot(dataset.step.values[kept], values[kept, k], color=scale[k], ls=style.DASHES[k % 2])
    style.fit_scale(ax, True, y=values)
    ax.set_xlabel("step")
    ax.set_ylabel(style.label("layer_weight_norm"))
    return ax


def layers(dataset: xr.Dataset) -> Figure:
    """The norms of all layers, a panel for each of up to `LAYERS_OF` configurations."""
    with mpl.rc_context(STYLE):
        chosen = style.spread(np.arange(dataset.sizes["config"]), LAYERS_OF)
        rows = -(-len(chosen) // 3)
        columns = -(-len(chosen) // rows)
        scale = colours(np.arange(dataset.sizes["layer"]))
        figure = Figure(figsize=(4.4 * columns + 1.6, 3.2 * rows + 0.2))
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for k, (ax, i) in enumerate(zip(axes, chosen, strict=False)):
            part = dataset[["layer_weight_norm"]].isel(config=i).load()
            layer_norms(ax, part, scale)
            ax.set_title(configuration(dataset, int(i)))
            if k % columns:
                ax.set_ylabel("")
            if k + columns < len(chosen):
                ax.set_xlabel("")
            else:
                ax.tick_params(which="both", labelbottom=True)
        for ax in axes[len(chosen) :]:
            ax.set_visible(False)
        if len(chosen) < dataset.sizes["config"]:
            figure.suptitle(f"{len(chosen)} of {dataset.sizes['config']} configurations", fontsize=9)
        shown = style.spread(np.arange(len(scale)), style.MOST_IN_LEGEND)
        names = [str(name).replace("$", r"\$")[:40] for name in dataset.layer.values]
        handles = [Line2D([], [], color=scale[k], ls=style.DASHES[k % 2], lw=1.5) for k in shown]
        title = "layer" if len(shown) == len(scale) else f"{len(shown)} of {len(scale)} layers"
        figure.legend(handles, [names[k] for k in shown], title=title, loc="outside right upper")
        return figure


def configuration(dataset: xr.Dataset, i: int) -> str:
    """A configuration in words: learning rate, decay and what else differs."""
    names = list(dict.fromkeys(["lr", "weight_decay", *(n for n in AXES if n in style.swept_axes(dataset))]))
    return ", ".join(f"{named(name)} {float(dataset[name].values[i]):g}" for name in names)
