"""Axes, colours and scales that all figures share."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from periodic_jax import plots


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("two axes", ("lr", "weight_decay")),
        ("one configuration", ("lr", None)),
        ("sixty configurations", ("lr", "weight_decay")),
        ("no product", ("lr", "momentum")),
    ],
)
def test_axis_roles(run, name, roles):
    assert plots.axis_roles(run(name)) == roles


def test_colours_are_distinct_and_get_lighter():
    scale = plots.colours(np.array([1.0, 0.1, 1.0, 10.0]))
    assert list(scale) == [0.1, 1.0, 10.0]
    lightness = [np.dot(colour[:3], [0.3, 0.59, 0.11]) for colour in scale.values()]
    assert lightness == sorted(lightness)
    assert np.diff(lightness).min() > 0.2
    assert len(plots.colours(np.array([3.0, 3.0]))) == 1


@pytest.mark.parametrize(
    ("values", "scale", "limits"),
    [
        ([5.0, 5.0000005], "linear", (4.5, 5.5)),
        ([0.0, 0.0], "linear", (-1.0, 1.0)),
        ([np.nan, np.nan], "linear", None),
        ([1.0, 1.2], "linear", None),
        ([1.0, 50.0], "log", None),
        ([1e-6, 1.0], "log", None),
        ([0.0, 1.0, 1e5], "log", None),
    ],
)
def test_scales_suit_the_numbers(values, scale, limits):
    ax = Figure().subplots()
    ax.plot(values)
    plots.fit_scale(ax, True, y=np.array(values))
    assert ax.get_yscale() == scale
    ax.figure.draw_without_rendering()
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert max(map(len, labels)) <= 25  # characters, with the mark-up of powers
    assert ax.yaxis.get_offset_text().get_text() == ""
    if limits:
        assert ax.get_ylim() == pytest.approx(limits)
