"""Figures that several experiments draw, of the package's own plots."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from periodic_jax import plots
from periodic_jax.plots.style import legend

STRETCHES = 400  # of a curve, whose medians are drawn
LOSSES, NORMS = (1e-4, 10), (0.2, 50)
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
    legend(figure, scale, title)
    return figure


def loss_and_norm(parts: dict[str, xr.Dataset], columns: int = 4, norms: tuple[float, float] = NORMS) -> Figure:
    """Mini-batch loss (grey) and weight norm (black) of the first configuration of several runs, a panel for each.

    Args:
        parts: flat runs, or parts of them, by the title of their panel.
        columns: of panels.
        norms: that the axis of the weight norm spans.
    """
    lines = -(-len(parts) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.3, 2 * lines + 0.3))
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for k, (ax, (title, dataset)) in enumerate(zip(axes, parts.items(), strict=False)):
        one = dataset[["loss", "weight_norm"]].isel(config=[0]).load()
        loss, norm, step = one.loss.values[0], one.weight_norm.values[0], one.step.values / 1000
        stretch = max(len(loss) // STRETCHES, 1)
        whole = len(loss) // stretch * stretch
        ax.plot(step[:whole:stretch], np.median(loss[:whole].reshape(-1, stretch), axis=1), color="#999999", lw=0.8)
        ax.set(yscale="log", ylim=LOSSES, xlim=(0, step[-1]))
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        other = ax.twinx()
        other.plot(step[:whole:stretch], norm[:whole:stretch], color="black", lw=1)
        other.set(yscale="log", ylim=norms)
        other.grid(False)
        other.spines["right"].set_visible(True)
        ax.set_title(title, fontsize=9)
        if k % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("loss (grey)")
        if k % columns == columns - 1 or k == len(parts) - 1:
            other.set_ylabel("weight norm (black)")
        else:
            other.tick_params(labelright=False)
    for ax in axes[len(parts) :]:
        ax.set_visible(False)
    figure.supxlabel("step / 1000", fontsize=9)
    return figure
