import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from periodic_jax import plots
from periodic_jax.plots.curvature import LEAST_FOR_HISTOGRAM


def measured(falls, onsets):
    """Sharpness in units of the threshold, of one configuration."""
    most = max(len(falls), len(onsets))
    arrays = {"fall": falls, "onset": onsets}
    padded = {name: np.append(values, np.full(most - len(values), np.nan)) for name, values in arrays.items()}
    variables = {
        f"{name}_elr_times_sharpness": (("config", "destabilisation"), 2 * a[None]) for name, a in padded.items()
    }
    return xr.Dataset({**variables, "stability_threshold": ("config", np.array([2.0]))})


@pytest.mark.parametrize("number", [1, 2, LEAST_FOR_HISTOGRAM - 1])
def test_few_measurements_are_drawn_one_by_one(number):
    falls, onsets = np.linspace(0.4, 0.8, number + 3), np.linspace(0.9, 1.3, number)
    (ax,) = plots.at_onsets(measured(falls, onsets)).axes
    assert not ax.patches
    drawn = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(drawn[0], falls)
    np.testing.assert_allclose(drawn[1], onsets)
    assert next(text.get_text() for text in ax.get_yticklabels()).startswith(str(number + 3))


def test_many_measurements_are_a_histogram():
    falls, onsets = np.geomspace(0.3, 0.9, 30), np.geomspace(0.8, 2, LEAST_FOR_HISTOGRAM)
    (ax,) = plots.at_onsets(measured(falls, onsets)).axes
    assert sum(bar.get_height() for bar in ax.patches) == 30 + LEAST_FOR_HISTOGRAM
    assert plots.at_onsets(measured(falls[:0], onsets)) is None
    assert isinstance(plots.at_onsets(measured(falls, onsets)), Figure)
