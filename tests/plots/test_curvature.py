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


def spectrum(nodes, prefix="", kinds=("hessian", "gauss_newton")):
    """A landscape of densities alone: equal weights on the same nodes for each matrix."""
    nodes = np.asarray(nodes, float)[:, None, None]  # (config, checkpoint, part, probe, node)
    dims = ("config", "checkpoint", "part", "probe", "node")
    weights = np.full(nodes.shape, 1 / nodes.shape[-1])
    names = [f"{prefix}{kind}_density" for kind in kinds]
    variables = {f"{name}_nodes": (dims, nodes) for name in names}
    variables |= {f"{name}_weights": (dims, weights) for name in names}
    lr = ("config", np.geomspace(0.1, 1, len(nodes)))
    return xr.Dataset(variables, {"checkpoint": [40], "lr": lr, "weight_decay": ("config", np.zeros(len(nodes)))})


def test_densities_have_their_mass_where_the_nodes_are():
    found = spectrum([[[0.0, 10.0], [0.0, 20.0]], [[0.0, 0.0], [0.0, 0.0]]], prefix="sphere_")
    for ax in plots.densities(found).axes:
        assert len(ax.lines) == 2
        at, density = ax.lines[0].get_data()
        assert np.trapezoid(density, at) == pytest.approx(1, rel=1e-3)
        for near, mass in ((0, 0.5), (10, 0.25), (20, 0.25)):
            part = abs(at - near) < 2
            assert np.trapezoid(density[part], at[part]) == pytest.approx(mass, rel=1e-2)
        assert "on the sphere, at step 40" in ax.get_xlabel()


def test_densities_of_what_was_not_measured():
    assert plots.densities(spectrum([[[0.0, 1.0]]], kinds=("other",))) is None
    (ax,) = plots.densities(spectrum([[[np.nan, np.nan]]], kinds=("hessian",))).axes
    assert not ax.lines
    (ax,) = plots.densities(spectrum([[[np.nan] * 3], [[3.0] * 3]], kinds=("hessian",))).axes
    assert np.isfinite(ax.lines[1].get_ydata()).all()
