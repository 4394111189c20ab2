"""Colours, scales, labels and legends that all figures share.

Swept numbers are shown by viridis from dark to light, which the colour-blind distinguish and which grey preserves;
named things by colours of Okabe and Ito of different lightness, and by a letter wherever colour alone would have to do.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import short_numbers
from periodic_jax.core.grid import AXES, SEED_AXES
from periodic_jax.storage.reader import flattened
from periodic_jax.storage.schema import describe

STYLE_FILE = Path(__file__).with_name("periodic_jax.mplstyle")
# All rcParams but the backend, which draws nothing here: what the user's matplotlibrc sets, such as text.usetex, stays
# out of the figures.
STYLE: dict[Any, Any] = {k: v for k, v in mpl.rc_params_from_file(STYLE_FILE).items() if k != "backend"}
REGIME_COLOURS = {  # in order of lightness in grey: 0.79, 0.66, 0.47, 0.2, 0.95
    "converging": "#A6CEE3", "periodic": "#E69F00", "equilibrium": "#009E73", "diverged": "#333333", "undecided":
    "#F0F0F0",
}  # fmt: skip
PHASE_A, PHASE_B = "#56B4E9", "#D55E00"
FAINT = 0.7  # confidence in a regime below which its cell is drawn faint
DASHES = ("-", "--", ":", "-.")
MOST_IN_LEGEND = 10
MOST_PANELS = 6
NARROW = 1.5  # ratio of the largest to the smallest number from which a logarithmic axis says more than a linear one
CONSTANT = 1e-3  # relative range below which a quantity counts as constant


def matched(dataset: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """A run in either form of `open_run` as a flat one, with the configurations in the order of its analysis.

    Raises:
        ConfigError: the analysis is of other configurations.
    """
    dataset = flattened(dataset)
    shown, wanted = (np.stack([of[name].values for name in AXES]) for of in (dataset, found))
    if np.array_equal(shown, wanted):
        return dataset
    places = [np.lexsort(columns) for columns in (shown, wanted)]
    if not np.array_equal(shown[:, places[0]], wanted[:, places[1]]):
        raise ConfigError("found", "an analysis of other configurations", "pj.analysis.analyze of the same run")
    return dataset.isel(config=places[0][np.argsort(places[1])])


def swept_axes(dataset: xr.Dataset) -> list[str]:
    """The coordinates that differ, those with most values first; the seed last, ``lr`` and decay first among equals."""
    counts = {name: len(np.unique(dataset[name])) for name in AXES if name in dataset.variables}
    order = ["lr", "weight_decay", "elr", "momentum", *AXES]
    return sorted(
        (name for name, count in counts.items() if count > 1),
        key=lambda name: (name in SEED_AXES, -counts[name], order.index(name)),
    )


def axis_roles(dataset: xr.Dataset) -> tuple[str, str | None]:
    """Which coordinate the colours show, and which the panels: the two with most values, ``lr`` before decay before
    others, so that the panels are no more than the colours.
    """
    swept = swept_axes(dataset)
    first = sorted(swept[:2], key=lambda name: name != "lr")
    return (first[0] if first else "lr"), (first[1] if len(first) > 1 else None)


def colours(values: np.ndarray) -> dict[float, Any]:
    """A colour for each distinct value, dark to light in the order of the values."""
    distinct = np.unique(values)
    cmap = mpl.colormaps["viridis"]
    return {float(v): cmap(0.9 * i / max(len(distinct) - 1, 1)) for i, v in enumerate(distinct)}


def dashes(values: np.ndarray) -> dict[float, str]:
    """A line style for each distinct value; beyond four values they come again."""
    return {float(v): DASHES[i % len(DASHES)] for i, v in enumerate(np.unique(values))}


def line_styles(
    dataset: xr.Dataset, colour_by: str, dash_by: str | None = None, scale: dict[float, Any] | None = None
) -> list[dict[str, Any]]:
    """Colour and line style of each configuration, as keywords of `Axes.plot`.

    Args:
        dataset: with one ``config`` dimension.
        colour_by: the coordinate that the colour shows.
        dash_by: the coordinate that the line style shows.
        scale: a colour for each value of ``colour_by``; made from the dataset if None.
    """
    values = dataset[colour_by].values
    dashed = dataset[dash_by].values if dash_by else np.zeros(len(values))
    scale, styles = scale or colours(values), dashes(dashed)
    return [{"color": scale[float(v)], "ls": styles[float(d)]} for v, d in zip(values, dashed, strict=True)]


def panel_grid(
    count: int, size: tuple[float, float], margin: tuple[float, float], **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, up to three in a row.

    Args:
        count: of panels.
        size: width and height of each.
        margin: width and height of what is around them.
        **options: for `Figure.subplots`.
    """
    rows = -(-count // 3)
    columns = -(-count // rows)
    figure = Figure(figsize=(size[0] * columns + margin[0], size[1] * rows + margin[1]))
    axes: list[Axes] = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax in axes[count:]:
        ax.set_visible(False)
    return figure, axes[:count]


def panels_by(
    dataset: xr.Dataset, axis: str | None, size: tuple[float, float], margin: tuple[float, float], **options: Any
) -> tuple[Figure, list[tuple[Axes, xr.Dataset]], list[str]]:
    """A figure with a titled panel for each value of an axis, or for up to `MOST_PANELS` of them.

    Args:
        dataset: with one ``config`` dimension.
        axis: its name; None for a single panel.
        size, margin, **options: as of `panel_grid`.

    Returns:
        The figure, each panel with its configurations, and what the figure's title should say of values left out.
    """
    if axis is None:
        figure, (ax,) = panel_grid(1, size, margin, **options)
        return figure, [(ax, dataset)], []
    values = np.unique(dataset[axis])
    shown = spread(values, MOST_PANELS)
    figure, axes = panel_grid(len(shown), size, margin, **options)
    for ax, text in zip(axes, short_numbers(shown), strict=True):
        ax.set_title(f"{named(axis)} {text}")
    parts = [dataset.isel(config=np.flatnonzero(dataset[axis] == value)) for value in shown]
    left_out = [f"{len(shown)} of {len(values)} values of {named(axis)}"] if len(shown) < len(values) else []
    return figure, list(zip(axes, parts, strict=True)), left_out


def columns_of(axes: Sequence[Axes]) -> int:
    """The columns of the grid in which panels stand."""
    grid = axes[0].get_gridspec()
    return 1 if grid is None else grid.ncols


def label_outer(axes: Sequence[Axes]) -> None:
    """Leave the labels of panels that share their scales only where no other panel is to the left, or below."""
    columns = columns_of(axes)
    for k, ax in enumerate(axes):
        if k % columns:
            ax.set_ylabel("")
        if k + columns < len(axes):
            ax.set_xlabel("")
        else:  # nothing below, or the place below is not used
            ax.tick_params(which="both", labelbottom=True)


def legend(figure: Figure, scale: dict[float, Any], title: str, dashed: xr.DataArray | None = None) -> None:
    """What the colours mean: a legend of up to `MOST_IN_LEGEND` lines, and a bar of all colours beyond that.

    Args:
        figure: that has room on its right.
        scale: a colour for each value.
        title: what the values are.
        dashed: the coordinate that the line style shows.
    """
    handles: list[Line2D] = []
    if dashed is not None:
        styles = dashes(dashed.values)
        for line, value in zip(styles.values(), short_numbers(styles), strict=True):
            handles.append(Line2D([], [], color="black", ls=line, lw=1, label=f"{named(str(dashed.name))} {value}"))
    values, texts = list(scale), short_numbers(scale)
    if len(values) <= MOST_IN_LEGEND:
        lines = [Line2D([], [], color=scale[v], lw=2, label=text) for v, text in zip(values, texts, strict=True)]
        figure.legend(handles=lines + handles, title=title, loc="outside right upper")
        return
    norm = BoundaryNorm(np.arange(len(values) + 1) - 0.5, len(values))
    mappable = ScalarMappable(norm, ListedColormap(list(scale.values())))
    shown = spread(np.arange(len(values)), 8).tolist()
    panels = [ax for ax in figure.axes if ax.get_visible()]
    bar = figure.colorbar(mappable, ax=panels, label=title, fraction=0.05, pad=0.02)
    bar.set_ticks(shown, labels=short_numbers([values[k] for k in shown]))
    bar.minorticks_off()
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=4)


def fit_scale(ax: Axes, log: bool, **arrays: Any) -> None:
    """Scales and limits of the axes ``x`` and ``y`` for what is drawn on them.

    What is held constant gets a tenth of room on both sides, and not the digits of its rounding; what spans little, or
    has no positive number as after a divergence at once, a linear axis; the rest a logarithmic one if ``log``.
    """
    for name, array in arrays.items():
        values = np.asarray(array)
        known = values[np.isfinite(values)]
        positive = known[known > 0]
        if len(known) and np.ptp(known) <= CONSTANT * np.abs(known).max():
            middle = float(np.median(known))
            room = 0.1 * abs(middle) or 1.0
            getattr(ax, f"set_{name}lim")(middle - room, middle + room)
        elif log and len(positive) and known.max() > NARROW * positive.min():
            getattr(ax, f"set_{name}scale")("log")
            decades = np.log10(known.max() / positive.min())
            if decades < 2:  # one numbered tick would say little
                axis = getattr(ax, f"{name}axis")
                # Few enough to read: 1 2 5 10 over a decade or more, and more of them over less.
                axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 8)))
                axis.set_major_formatter(lambda value, _: f"{value:g}")
                axis.set_minor_formatter(NullFormatter())


def note_if_empty(ax: Axes, values: np.ndarray) -> None:
    """Note where there is nothing to draw."""
    if not np.isfinite(values).any():
        ax.text(0.5, 0.5, "nothing recorded", transform=ax.transAxes, ha="center", va="center", color="grey")


def label(name: str) -> str:
    """A quantity with its unit; from the package's own list, so that no file puts text into a figure."""
    return describe(name).label


def named(axis: str) -> str:
    """A hyperparameter in words."""
    return describe(axis).short or axis.replace("_", " ")


def spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly over them, the first and the last included."""
    return values[np.unique(np.linspace(0, len(values) - 1, min(len(values), most)).round().astype(int))]
