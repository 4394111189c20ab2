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
from matplotlib.ticker import MaxNLocator, PercentFormatter

from periodic_jax.core.grid import AXES, SEED_AXES
from periodic_jax.core.segments import extremes
from periodic_jax.plots import style
from periodic_jax.plots.style import MOST_PANELS, STYLE, axis_roles, colours, named
from periodic_jax.storage.reader import flattened
from periodic_jax.storage.schema import describe

BUCKETS = 1500  # of a curve that is drawn: more than a figure has pixels across


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
        dataset: a run, or a part of one, in either form of `open_run`.
        name: a per-step or an evaluated quantity.
        colour_by: the coordinate that the colour shows.
        scale: a colour for each of its values; made from the dataset if None.
        dash_by: the coordinate that the line style shows.
        steps_per_epoch: to count epochs instead of steps.
        log_steps: logarithmic steps, counted from 1.

    Returns:
        ``ax``.
    """
    dataset = flattened(dataset)
    values = dataset[name].values
    x = dataset[dataset[name].dims[-1]].values
    known = np.isfinite(values).any(0)
    if known.any():  # what is measured now and then is drawn as one line, too
        values, x = values[:, known], x[known]
    if log_steps:
        x = x + 1
    if steps_per_epoch:
        x = x / steps_per_epoch
    for row, line in zip(values, style.line_styles(dataset, colour_by, dash_by, scale), strict=True):
        drawn = slice(None) if len(x) <= 2 * BUCKETS else extremes(row[None], BUCKETS)
        ax.plot(x[drawn], row[drawn], lw=0.8, **line)
    style.fit_scale(ax, describe(name).log, y=values)
    style.note_if_empty(ax, values)
    if describe(name).number == "percent":
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    if log_steps:
        ax.set_xscale("log")
    elif not steps_per_epoch:
        ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    words = textwrap.fill(style.label(name), 40)  # no longer than a panel is high
    ax.set(xlabel="epoch" if steps_per_epoch else "step", ylabel=words)
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
        dataset: a run, or a part of one, in either form of `open_run`.
        colour_by, scale: as in `curves`.
        dash_by: taken for the sake of `in_panels`; dashes would hide the jumps.
    """
    dataset = flattened(dataset)
    elr, gradient = dataset.effective_lr.values, dataset.effective_grad_norm.values
    for x, y, line in zip(elr, gradient, style.line_styles(dataset, colour_by, None, scale), strict=True):
        both = np.stack([x, y])
        if both.shape[1] > 2 * BUCKETS:
            both = both[:, extremes(both, BUCKETS)]
        ax.plot(*both, lw=0.4, alpha=0.8, **line)
        ax.plot(*both[:, :1], "o", mfc="white", mec=line["color"], ms=5, zorder=3)
    style.fit_scale(ax, True, x=elr, y=gradient)
    style.note_if_empty(ax, elr * gradient)
    ax.set(xlabel=style.label("effective_lr"), ylabel=style.label("effective_grad_norm"))
    return ax


def in_panels(dataset: xr.Dataset, draw: Callable[..., Axes], *args: Any, **options: Any) -> Figure:
    """A figure with one panel for each value of the second axis, all with the same colours, and a shared legend.

    Line styles show a third axis; the title notes that the curves of a fourth are drawn alike.

    Args:
        dataset: a run, in either form of `open_run`.
        draw: `curves` or `phase_diagram`, called as ``draw(ax, part, *args, colour_by, scale, dash_by=, **options)``.
        *args: for ``draw``, e.g. the quantity.
        **options: for ``draw``.
    """
    quantities = list(args) or ["effective_lr", "effective_grad_norm"]
    dataset = flattened(dataset)[quantities].load()  # once, not for every panel
    with mpl.rc_context(STYLE):
        colour_by, panel_by = axis_roles(dataset)
        others = [name for name in style.swept_axes(dataset) if name not in (colour_by, panel_by)]
        dash_by = others[0] if others and others[0] not in SEED_AXES and draw is not phase_diagram else None
        scale = colours(dataset[colour_by].values)
        shared = {"sharex": True, "sharey": True}
        figure, panels, notes = style.panels_by(dataset, panel_by, (4.4, 3.2), (0.8, 0.2), **shared)
        for ax, part in panels:
            draw(ax, part, *args, colour_by, scale, dash_by=dash_by, **options)
        axes = [ax for ax, _ in panels]
        style.label_outer(axes)
        # Scales that suit all panels, not only the last one drawn.
        if draw is phase_diagram:
            style.fit_scale(axes[0], True, x=dataset.effective_lr, y=dataset.effective_grad_norm)
            notes.insert(0, "rings: start; phase A drifts right and down, phase B jumps up and back to the left")
        else:
            style.fit_scale(axes[0], describe(args[0]).log, y=dataset[args[0]])
        if alike := [named(name) for name in others if name != dash_by]:
            notes.append(f"all values of {' and '.join(alike)} drawn alike")
        if notes:
            width = 55 * style.columns_of(axes)
            figure.suptitle(textwrap.fill("; ".join(notes), width), fontsize=9)  # not into the legend
        style.legend(figure, scale, named(colour_by), dataset[dash_by] if dash_by else None)
        return figure


def layer_norms(ax: Axes, dataset: xr.Dataset, scale: dict[float, Any] | None = None) -> Axes:
    """Weight norm of each scale-invariant layer of one configuration against the step.

    Args:
        ax: where to draw.
        dataset: one configuration of a run that was recorded with ``--per-layer``: ``isel(config=i)``.
        scale: a colour for each place of a layer.
    """
    values = dataset.layer_weight_norm.transpose("step", "layer").values
    scale = scale or colours(np.arange(values.shape[1]))
    for k, row in enumerate(values.T):
        drawn = extremes(row[None], BUCKETS)
        ax.plot(dataset.step.values[drawn], row[drawn], color=scale[k], ls=style.DASHES[k % 2])
    style.fit_scale(ax, True, y=values)
    ax.set(xlabel="step", ylabel=style.label("layer_weight_norm"))
    return ax


def layers(dataset: xr.Dataset) -> Figure:
    """The norms of all layers, a panel for each of up to `MOST_PANELS` configurations."""
    with mpl.rc_context(STYLE):
        dataset = flattened(dataset)
        configs = dataset.sizes["config"]
        chosen = style.spread(np.arange(configs), MOST_PANELS)
        scale = colours(np.arange(dataset.sizes["layer"]))
        figure, axes = style.panel_grid(len(chosen), (4.4, 3.2), (1.6, 0.2), sharex=True)
        for ax, i in zip(axes, chosen, strict=True):
            layer_norms(ax, dataset[["layer_weight_norm"]].isel(config=i).load(), scale)
            ax.set_title(configuration(dataset, int(i)))
        style.label_outer(axes)
        if len(chosen) < configs:
            figure.suptitle(f"{len(chosen)} of {configs} configurations", fontsize=9)
        shown = style.spread(np.arange(len(scale)), style.MOST_IN_LEGEND)
        names = [str(name).replace("$", r"\$")[:40] for name in dataset.layer.values]
        handles = [Line2D([], [], color=scale[k], ls=style.DASHES[k % 2], lw=1.5, label=names[k]) for k in shown]
        title = "layer" if len(shown) == len(scale) else f"{len(shown)} of {len(scale)} layers"
        figure.legend(handles=handles, title=title, loc="outside right upper")
        return figure


def configuration(dataset: xr.Dataset, i: int) -> str:
    """A configuration in words: learning rate, decay and what else differs."""
    names = list(dict.fromkeys(["lr", "weight_decay", *(n for n in AXES if n in style.swept_axes(dataset))]))
    return ", ".join(f"{named(name)} {float(dataset[name].values[i]):g}" for name in names)
