"""One period from near: its steps, and its loop through the phase diagram."""

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from periodic_jax.plots import style
from periodic_jax.plots.style import PHASE_A, PHASE_B, STYLE
from periodic_jax.plots.trajectories import configuration

SPIKE = 7.0  # that mini-batches alone make of the loss within a fall
LABEL_A, LABEL_B = "phase A: norm falls, ELR rises", "phase B: destabilisation"
LABEL_BEFORE = "before the first onset"


def one_period(dataset: xr.Dataset, found: xr.Dataset) -> Figure | None:
    """A close-up of the clearest period of the run: loss, weight norm and effective learning rate from one
    destabilisation to the next, the onsets marked.

    Args:
        dataset: a run, in either form of `open_run`.
        found: its analysis.

    Returns:
        The figure, or None where no configuration destabilised twice.
    """
    choice = clearest(found)
    if choice is None:
        return None
    dataset, (config, k) = style.matched(dataset, found), choice
    first, last = found.onset_step.values[config, k : k + 2].astype(int).tolist()
    fall, end = found.end_step.values[config, k : k + 2].astype(int).tolist()
    margin = max((last - first) // 12, 5)
    names = ["loss", "weight_norm", "effective_lr"]
    part = dataset[names].isel(config=config, step=slice(max(first - margin, 0), end + margin)).load()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7, 6))
        axes = figure.subplots(3, 1, sharex=True)
        for ax, name in zip(axes, names, strict=True):
            ax.axvspan(fall, last, color=PHASE_A, alpha=0.2, lw=0, label=LABEL_A)
            for left, right in ((first, fall), (last, end)):
                ax.axvspan(left, right, color=PHASE_B, alpha=0.4, lw=0, label=LABEL_B)
                ax.axvline(left, color="black", lw=0.8, ls=":", label="onset")
            ax.plot(part.step, part[name], color="black", lw=0.7)
            style.fit_scale(ax, True, y=part[name])
            ax.set_ylabel(style.label(name))
        handles, labels = axes[0].get_legend_handles_labels()
        unique = dict(zip(labels, handles, strict=True))
        figure.legend(list(unique.values()), list(unique), loc="outside upper center", ncols=3)
        axes[-1].set_xlabel("step")
        axes[0].set_title(f"{configuration(dataset, config)}: {last - first} steps")
        return figure


def phases(ax: Axes, dataset: xr.Dataset, found: xr.Dataset, config: int) -> Axes:
    """The phase diagram of one configuration, phases A and B in colours, with a ring at the start.

    What comes before the first onset is of no period, and grey.

    Args:
        ax: where to draw.
        dataset: a run, in either form of `open_run`.
        found: its analysis.
        config: position of the configuration.
    """
    part = style.matched(dataset, found)[["effective_lr", "effective_grad_norm"]].isel(config=config).load()
    x, y = part.effective_lr.values, part.effective_grad_norm.values
    onsets, ends = (found[name].values[config] for name in ("onset_step", "end_step"))
    onsets, ends = onsets[np.isfinite(onsets)].astype(int), ends[np.isfinite(onsets)].astype(int)
    # Both phases have the steps at their borders, so that no gap is left between them.
    first = onsets[0] if len(onsets) else len(x) - 1
    before, fall = np.arange(len(x)) <= first, np.arange(len(x)) >= first
    burst = np.zeros(len(x), bool)
    for onset, end in zip(onsets, ends, strict=True):
        fall[onset + 1 : end] = False
        burst[onset : end + 1] = True
    drawn = ((before, "0.7", 0.5, LABEL_BEFORE), (fall, PHASE_A, 0.5, LABEL_A), (burst, PHASE_B, 0.9, LABEL_B))
    for phase, colour, width, label in drawn:
        ax.plot(np.where(phase, x, np.nan), np.where(phase, y, np.nan), color=colour, lw=width, label=label)
    ax.plot(x[:1], y[:1], "o", mfc="white", mec="black", ms=6, ls="", zorder=3, label="start")
    ax.plot(x[onsets], y[onsets], "v", color="black", ms=3, ls="", zorder=2.5, label="onset")
    style.fit_scale(ax, True, x=x, y=y)
    ax.set(xlabel=style.label("effective_lr"), ylabel=style.label("effective_grad_norm"))
    return ax


def phases_of_clearest(dataset: xr.Dataset, found: xr.Dataset) -> Figure | None:
    """`phases` of the configuration with the clearest period, or None where there is none."""
    choice = clearest(found)
    if choice is None:
        return None
    dataset = style.matched(dataset, found)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6, 5))
        ax = phases(figure.subplots(), dataset, found, choice[0])
        ax.set_title(configuration(dataset, choice[0]))
        figure.legend(loc="outside lower center", ncols=3)
        return figure


def clearest(found: xr.Dataset) -> tuple[int, int] | None:
    """The period between two onsets that grew the norm most at its start and end, among those whose fall is free of
    smaller spikes: the loss rises and falls again there less than `SPIKE`-fold, or least of all.

    Args:
        found: the analysis of a run.

    Returns:
        Configuration and number of the period; None without any.
    """
    onset = found.onset_step.values
    growth = found.peak_weight_norm.values / found.onset_weight_norm.values
    both = np.where(np.isfinite(onset[:, 1:]), np.minimum(growth[:, :-1], growth[:, 1:]), np.nan)
    if not np.isfinite(both).any():
        return None
    spike = np.where(np.isfinite(both), found.spike.values[:, 1:], np.inf)
    choice = np.nanargmax(np.where(spike <= max(SPIKE, spike.min()), both, -np.inf))
    config, k = np.unravel_index(choice, both.shape)
    return int(config), int(k)
