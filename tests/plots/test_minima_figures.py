"""The figure of minima, of made-up comparisons."""

import numpy as np
import pytest
import xarray as xr
from helpers.drawn import drawn_panels

from periodic_jax import plots
from periodic_jax.core.grid import SweepGrid
from periodic_jax.plots.minima import MOST_SERIES


def compared(grid, lowest=0.002, minima=4):
    """As `inspection.minima.compare` gives it, with test errors from ``lowest`` on."""
    rng, configs, pairs = np.random.default_rng(0), len(grid), minima - 1
    of_minima, members = ("config", "minimum"), ("config", "members")
    errors = {name: (members, lowest * (1 + rng.random((configs, 3)))) for name in (
        "ensemble_error", "average_test_error", "seed_ensemble_error", "equal_cost_ensemble_error")}  # fmt: skip
    variables = {
        "step": (of_minima, 100 * np.cumsum(1 + rng.random((configs, minima)), axis=1)),
        "ended": (of_minima, np.full((configs, minima), 9.0)),
        "test_error": (of_minima, lowest * (1 + rng.random((configs, minima)))),
        "cosine": (("config", "minimum", "other_minimum"), rng.random((configs, minima, minima))),
        "barrier": (("config", "pair", "path"), rng.random((configs, pairs, 2))),
        "path_train_loss": (("config", "pair", "path", "point"), 0.1 + rng.random((configs, pairs, 2, 5))),
        "seed_cosine": ("config", np.full(configs, np.nan)),
        "seed_barrier": (("config", "path"), np.full((configs, 2), np.nan)),
        **errors,
    }
    coords = {"members": [1, 2, 3], "path": ["straight", "layers"], "point": np.linspace(0, 1, 5)}
    return xr.Dataset(variables, coords | {name: ("config", values) for name, values in grid.coords.items()})


GRID = SweepGrid.product(lr=[0.03, 0.1, 0.3, 1.0], weight_decay=[1e-3, 3e-3, 1e-2], momentum=[0.9])


def test_many_configurations_are_thinned_to_what_can_be_told_apart():
    figure = plots.minima(compared(GRID))
    assert figure.get_suptitle() == f"{MOST_SERIES} of 12 configurations"
    assert len(figure.legends[0].texts) == MOST_SERIES
    errors, *_ = drawn_panels(figure)
    colours = [line.get_color() for line in errors.lines if len(line.get_xdata()) > 1]
    assert len(set(colours)) == MOST_SERIES
    assert plots.minima(compared(GRID).isel(config=slice(3))).get_suptitle() == ""


def test_titles_stay_in_the_figure_and_apart():
    figure = plots.minima(
        compared(SweepGrid.product(lr=[0.03, 0.1], weight_decay=[1e-3, 1e-2], noninvariant_lr=[0, 0.5]))
    )
    figure.canvas.draw()
    boxes = [ax.title.get_window_extent() for ax in drawn_panels(figure)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert [box.count_overlaps(boxes) for box in boxes] == [1] * 4  # each with itself


@pytest.mark.parametrize(("lowest", "scale"), [(0.6, "log"), (0.02, "log"), (0.002, "symlog")])
def test_errors_of_ensembles_fill_their_panel(lowest, scale):
    """From 0 only where they come near it."""
    ensembles = drawn_panels(plots.minima(compared(GRID, lowest)))[-1]
    bottom, top = ensembles.get_ylim()
    assert (bottom == 0) == (scale == "symlog")
    assert top > 100 * lowest
    assert ensembles.get_yscale() == scale
