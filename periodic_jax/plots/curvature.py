"""Curvature and gradient noise around the checkpoints of a run, and sharpness against what the learning rate bears."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_jax.core.density import broadened_density
from periodic_jax.core.formatting import counted
from periodic_jax.plots import style
from periodic_jax.plots.style import PHASE_A, PHASE_B, STYLE, colours, named
from periodic_jax.plots.trajectories import curves

LEAST_FOR_HISTOGRAM = 20  # measurements; fewer are drawn one by one


def against_checkpoints(ax: Axes, found: xr.Dataset, name: str, colour_by: str, dash_by: str | None = None) -> Axes:
    """One number of each configuration against the checkpoints.

    Args:
        ax: where to draw.
        found: a landscape, of one part of the images: ``isel(part=0)``.
        name: a variable over ``(config, checkpoint)``, or over ``rank`` too, of which the largest is drawn.
        colour_by: the coordinate that the colour shows.
        dash_by: the coordinate that the line style shows.
    """
    values = (found[name].isel(rank=0) if "rank" in found[name].dims else found[name]).values
    ax.set_xlabel("step")
    return _draw_rows(ax, found.checkpoint.values, values, name, style.line_styles(found, colour_by, dash_by))


def spectra(ax: Axes, found: xr.Dataset, name: str, colour_by: str, dash_by: str | None = None) -> Axes:
    """The leading eigenvalues of each configuration at the last checkpoint, largest first; arguments as above."""
    values = found[name].isel(checkpoint=-1).values
    ax.set_xlabel(f"rank, at step {int(found.checkpoint.values[-1])}")
    ranks = np.arange(1, values.shape[1] + 1)
    return _draw_rows(ax, ranks, values, name, style.line_styles(found, colour_by, dash_by))


def _draw_rows(ax: Axes, x: np.ndarray, values: np.ndarray, name: str, lines: Sequence[dict[str, Any]]) -> Axes:
    """Values ``(configs, len(x))`` of a quantity against whole numbers."""
    for row, line in zip(values, lines, strict=True):
        ax.plot(x, row, marker="o", ms=3, lw=0.8, **line)
    style.fit_scale(ax, True, y=values)
    style.note_if_empty(ax, values)
    ax.locator_params("x", integer=True)
    ax.set_ylabel(style.label(name))
    return ax


def landscape(found: xr.Dataset) -> Figure:
    """Sharpness against its threshold, leading eigenvalues, traces and the noise scale, of all images."""
    found = found.isel(part=0)
    with mpl.rc_context(STYLE):
        colour_by, dash_by = style.axis_roles(found)
        names = ["elr_times_sharpness", "sphere_hessian_eigenvalue", "hessian_eigenvalue", "hessian_trace"]
        names += ["gauss_newton_trace", "noise_scale", "gradient_norm", "loss"]
        ranked = [name for name in ("sphere_hessian_eigenvalue", "hessian_eigenvalue") if name in found][:1]
        shown = [name for name in names if name in found][: 4 - len(ranked)]
        figure = Figure(figsize=(9.6, 6.4))
        axes = figure.subplots(2, 2).ravel()
        for ax, name in zip(axes, shown, strict=False):
            against_checkpoints(ax, found, name, colour_by, dash_by)
            if name == "elr_times_sharpness":
                thresholds(ax, found)
        for ax, name in zip(axes[len(shown) :], ranked, strict=False):
            spectra(ax, found, name, colour_by, dash_by)
        for ax in axes[len(shown) + len(ranked) :]:
            ax.set_visible(False)
        scale = colours(found[colour_by].values)
        style.legend(figure, scale, named(colour_by), found[dash_by] if dash_by else None)
        return figure


def densities(found: xr.Dataset) -> Figure | None:
    """Spectral densities of each configuration at the last checkpoint, on the unit sphere where they were measured
    there, of all images; None where none was measured.

    Each eigenvalue is a normal distribution whose standard deviation is a hundredth of the range that is shown.
    """
    found = found.isel(part=0, checkpoint=-1)
    prefix = "sphere_" if "sphere_hessian_density_nodes" in found else ""
    names = [name for name in (f"{prefix}hessian", f"{prefix}gauss_newton") if f"{name}_density_nodes" in found]
    if not names:
        return None
    with mpl.rc_context(STYLE):
        colour_by, dash_by = style.axis_roles(found)
        figure = Figure(figsize=(9.6, 3.8))
        for ax, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            nodes, weights = (found[f"{name}_density_{end}"].values for end in ("nodes", "weights"))
            _draw_densities(ax, nodes, weights, style.line_styles(found, colour_by, dash_by))
            ax.set_xlabel(f"{style.label(f'{name}_eigenvalue')}, at step {int(found.checkpoint)}")
            ax.set_ylabel("density")
        scale = colours(found[colour_by].values)
        style.legend(figure, scale, named(colour_by), found[dash_by] if dash_by else None)
        return figure


def _draw_densities(ax: Axes, nodes: np.ndarray, weights: np.ndarray, lines: Sequence[dict[str, Any]]) -> None:
    """Densities of quadratures ``(configs, probes, nodes)``, down to a millionth of the highest."""
    known = nodes[np.isfinite(nodes)]
    style.note_if_empty(ax, nodes)
    if not known.size:
        return
    margin = (known.max() - known.min()) / 20 or 1.0
    at = np.linspace(known.min() - margin, known.max() + margin, 1000)
    density = broadened_density(nodes, weights, at, (at[-1] - at[0]) / 100)
    for row, line in zip(density, lines, strict=True):
        ax.plot(at, row, lw=0.8, **line)
    highest = np.nanmax(density)
    ax.set(yscale="log", ylim=(highest * 1e-6, highest * 2), xlim=(at[0], at[-1]))


def against_threshold(ax: Axes, dataset: xr.Dataset, name: str, *arguments: Any, **options: Any) -> Axes:
    """`trajectories.curves` of effective learning rate x sharpness, with the threshold; arguments as there."""
    curves(ax, dataset, name, *arguments, **options)
    thresholds(ax, dataset)
    return ax


def at_onsets(found: xr.Dataset) -> Figure | None:
    """How effective learning rate x sharpness is distributed before destabilisations and in the falls that lead there,
    over its threshold, as points where there are fewer than `LEAST_FOR_HISTOGRAM`; None where none was measured.

    Args:
        found: the analysis of a run that recorded it.
    """
    limit = found.stability_threshold.values[:, None]
    ratios = [(found[f"{name}_elr_times_sharpness"] / limit).values for name in ("fall", "onset")]
    known = [values[np.isfinite(values) & (values > 0)] for values in ratios]
    if not all(len(values) for values in known):
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 4))
        ax = figure.subplots()
        both = np.concatenate(known)
        labels = [
            f"{where}: median {np.median(values):.2f}"
            for where, values in zip(("first half of the fall", "before the onset"), known, strict=True)
        ]
        if min(map(len, known)) < LEAST_FOR_HISTOGRAM:
            for place, (values, colour, words) in enumerate(zip(known, (PHASE_A, PHASE_B), labels, strict=True)):
                ax.plot(values, np.full(len(values), 1 - place), "o", color=colour, ms=7, alpha=0.6, mew=0, label=words)
            ax.set_yticks((1, 0), [counted(len(known[0]), "fall"), counted(len(known[1]), "onset")])
            ax.set_ylim(-0.6, 1.6)
        else:
            number = np.clip(int(2 * np.sqrt(len(known[1]))), 8, 30)
            bins = np.geomspace(both.min(), both.max() * (1 + 1e-9), number + 1)
            ax.hist(known, bins, color=[PHASE_A, PHASE_B], label=labels)  # side by side
            ax.set_ylabel("destabilisations")
            ax.locator_params("y", integer=True)
        ax.axvline(1, color="black", lw=1, ls="--", label="threshold")
        style.fit_scale(ax, True, x=both)
        ax.set_xlabel("effective learning rate x sharpness / threshold")
        figure.legend(loc="outside upper center", ncols=3)  # over the bars it would hide some
        return figure


def thresholds(ax: Axes, dataset: xr.Dataset) -> None:
    """Lines at 2(1+μ), where minima of that sharpness are left."""
    for momentum in np.unique(dataset.momentum.values):
        at = 2 * (1 + float(momentum))
        ax.axhline(at, color="black", lw=1, ls="--")
        ax.text(
            0.99, at * 1.03, "threshold", transform=ax.get_yaxis_transform(), ha="right", va="bottom", fontsize=7,
            bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
        if not ax.get_autoscaley_on():  # fitted to what was measured alone; otherwise the limits include all lines
            low, high = ax.get_ylim()
            ax.set_ylim(min(low, at / 1.1), max(high, at * 1.1))
