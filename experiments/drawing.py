"""Figures that several experiments draw, of the package's own plots."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from periodic_jax import plots

PANELS = ("train_loss", "test_error", "weight_norm")


def four_panels(dataset: xr.Dataset, colour_by: str, title: str) -> Figure:
    """Training loss, test error, weight norm and phase diagram of all configurations of a run.

    Args:
        dataset: a flat run.
        colour_by: the axis that the colours show.
        title: in words.
    """
    names = [*PANELS, "effective_lr", "effective_grad_norm"]
    dataset = dataset[names].load()
    scale = plots.colours(dataset[colour_by].values)
    figure = Figure(figsize=(9.6, 6.4))
    axes = figure.subplots(2, 2).ravel()
    for ax, name in zip(axes, PANELS, strict=False):
        plots.curves(ax, dataset, name, colour_by, scale)
    plots.phase_diagram(axes[3], dataset, colour_by, scale)
    for line in axes[3].lines:
        line.set_rasterized(True)
    plots.style.legend(figure, scale, title)
    return figure


def loss_and_norm(parts: dict[str, xr.Dataset], columns: int = 4) -> Figure:
    """Mini-batch loss (grey) and weight norm (black) of the first configuration of several runs, a panel for each.

    Args:
        parts: flat runs, or parts of them, by the title of their panel.
        columns: of panels.
    """
    lines = -(-len(parts) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.1 * lines + 0.2))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (title, dataset) in zip(axes, parts.items(), strict=False):
        one = dataset[["loss", "weight_norm"]].isel(config=[0]).load()
        other = ax.twinx()
        loss = one.loss.values[0]
        bins = max(len(loss) // 400, 1)
        whole = len(loss) // bins * bins
        at = one.step.values[:whole].reshape(-1, bins)
        ax.plot(at[:, 0], np.median(loss[:whole].reshape(-1, bins), axis=1), color="#999999", lw=0.8)
        ax.set_yscale("log")
        ax.set_ylim(1e-4, 10)
        other.plot(at[:, 0], one.weight_norm.values[0, :whole].reshape(-1, bins)[:, 0], color="black", lw=1)
        other.set_yscale("log")
        other.set_ylim(0.2, 50)
        other.grid(False)
        ax.set_title(title, fontsize=9)
        if ax is not axes[0] and (list(axes).index(ax)) % columns:
            ax.tick_params(labelleft=False)
        if (list(axes).index(ax) + 1) % columns and ax is not axes[len(parts) - 1]:
            other.tick_params(labelright=False)
    for ax in axes[len(parts) :]:
        ax.set_visible(False)
    figure.supylabel("loss (grey)", fontsize=9)
    figure.supxlabel("step", fontsize=9)
    figure.text(0.995, 0.5, "weight norm (black)", rotation=90, va="center", ha="right", fontsize=9)
    return figure
