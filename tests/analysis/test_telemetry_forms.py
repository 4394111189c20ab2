"""Every form in which telemetry can be given: flat, a dimension for each axis, in any order, plain arrays."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from helpers import synthetic
from helpers.synthetic import trajectory

import periodic_jax as pj
from periodic_jax import ConfigError, analysis, open_run, plots
from periodic_jax.analysis.regimes import rotation_pace
from periodic_jax.core.grid import SweepGrid
from periodic_jax.storage.reader import flattened

# The axes are not ascending, so that the forms have the configurations in different orders.
GRID = SweepGrid.product(lr=[1.0, 0.25, 0.5], weight_decay=[4e-3, 1e-3])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    coords = zip(GRID.coords["lr"], GRID.coords["weight_decay"], strict=True)
    curves = [trajectory(700, [200, 400][: k % 3], lr=lr, weight_decay=decay) for k, (lr, decay) in enumerate(coords)]
    folder = tmp_path_factory.mktemp("forms") / "run"
    return synthetic.write_run(folder, GRID, synthetic.stack(curves), layers=())


def by_configuration(found):
    """An analysis with its configurations in one order."""
    return found.isel(config=np.lexsort([found[name] for name in ("weight_decay", "lr")]))


@pytest.mark.parametrize("dims", [("lr", "weight_decay", "step"), ("step", "lr", "weight_decay"),
                                  ("weight_decay", "step", "lr")], ids="-".join)  # fmt: skip
def test_either_form_in_any_order_gives_the_same_analysis(path, dims):
    expected = by_configuration(analysis.analyze(open_run(path, flat=True)))
    named = open_run(path).transpose(*dims, ...)
    for dataset in (named, open_run(path, flat=True).transpose("step", "config", ...).load()):
        found = by_configuration(analysis.analyze(dataset))
        xr.testing.assert_allclose(found, expected)  # fits sum the configurations in another order
    assert pj.analysis.analyze(open_run(path).isel(lr=1, weight_decay=0)).sizes["config"] == 1


def test_periods_and_regimes_go_by_the_names_of_dimensions(path):
    named = open_run(path)
    turned = named.transpose("step", "weight_decay", "lr", ...)
    expected = analysis.detect_periods({name: named[name].values for name in named.data_vars})
    found = analysis.detect_periods(turned)
    np.testing.assert_array_equal(found.found.T, expected.found)
    np.testing.assert_array_equal(found.onset.swapaxes(0, 1), expected.onset)
    numbers = [np.broadcast_to(named[name].values.reshape(shape), (3, 2)) for name, shape in
               (("lr", (3, 1)), ("weight_decay", (1, 2)))]  # fmt: skip
    plain = analysis.classify_regimes({name: named[name].values for name in named.data_vars}, *numbers)
    regimes = analysis.classify_regimes(turned, named.lr, named.weight_decay)
    np.testing.assert_array_equal(regimes.regime.T, plain.regime)
    np.testing.assert_allclose(regimes.confidence.T, plain.confidence, rtol=1e-9)  # sums in another order
    pace = rotation_pace(turned.angular_step, named.lr, named.weight_decay)
    np.testing.assert_allclose(pace.T, rotation_pace(named.angular_step.values, *numbers), rtol=1e-9)


def test_a_missing_learning_rate_follows_from_the_norm(path):
    whole = open_run(path, flat=True).load()
    whole.encoding = {}  # a Dataset of the user's own
    without = whole.drop_vars("effective_lr")
    expected = (whole.lr / whole.weight_norm**2).values
    np.testing.assert_allclose(flattened(without).effective_lr, expected, rtol=1e-6)
    assert (analysis.analyze(without).regime == analysis.analyze(whole).regime).all()
    np.testing.assert_array_equal(analysis.detect_periods(without).onset, analysis.detect_periods(whole).onset)
    fixed = flattened(without.assign_coords(elr=("config", np.full(6, 0.5))))
    assert (fixed.effective_lr == 0.5).all()


@pytest.mark.parametrize("missing", ["loss", "weight_norm", "angular_step"])
def test_what_is_missing_is_named(path, missing):
    dataset = open_run(path, flat=True).load().drop_vars(missing)
    dataset.encoding = {}
    with pytest.raises(ConfigError, match=f"no {missing}"):
        analysis.analyze(dataset)
    with pytest.raises(ConfigError, match=f"no {missing}"):
        analysis.classify_regimes(dataset, dataset.lr, dataset.weight_decay)


def test_what_cannot_be_analysed_is_refused_in_one_line(path):
    dataset = open_run(path, flat=True).load()
    dataset.encoding = {}
    with pytest.raises(ConfigError, match="no coordinate lr"):
        analysis.analyze(dataset.drop_vars(["lr", "effective_lr"]))
    with pytest.raises(ConfigError, match=r"no effective_lr; give loss.* \(or lr"):
        analysis.detect_periods({"loss": np.ones(5), "weight_norm": np.ones(5)})
    with pytest.raises(ConfigError, match="one shape"):
        analysis.detect_periods(dict(zip(("loss", "weight_norm", "effective_lr"), np.ones((3, 5)), strict=True),
                                     loss=np.ones((5, 2))))  # fmt: skip
    with pytest.raises(ConfigError, match="lr: of shape"):
        analysis.classify_regimes(dataset, np.ones(4), 1e-3)
    with pytest.raises(ConfigError, match="run: dict is not accepted"):
        analysis.analyze({"loss": np.ones(5)})


def test_hyperparameters_that_are_no_coordinates_have_their_defaults():
    curves = {name: (("step", "lr"), np.stack([values] * 2, axis=1)) for name, values in trajectory(300).items()}
    dataset = xr.Dataset(curves, {"lr": [0.5, 1.0], "weight_decay": 1e-3})
    found = analysis.analyze(dataset)
    assert (found.momentum.values.tolist(), found.seed.values.tolist()) == ([0, 0], [0, 0])
    assert found.weight_decay.values.tolist() == [1e-3, 1e-3]


def test_figures_take_either_form(path):
    """The same curves in the same colours, and the period of the same configuration."""
    flat, named = open_run(path, flat=True), open_run(path).transpose("step", ...)
    found = analysis.analyze(flat)

    def drawn(dataset):
        return {name: sorted(map(tuple, (line.get_xydata().ravel() for ax in figure.axes for line in ax.lines)))
                for name, figure in plots.figures(dataset, found)}  # fmt: skip

    with np.errstate(invalid="ignore"):
        one, other = drawn(flat), drawn(named)
    assert set(one) == set(other)
    for name, lines in one.items():
        for a, b in zip(lines, other[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    ax = mpl.figure.Figure().subplots()
    assert len(plots.curves(ax, named.isel(lr=0), "loss").lines) == 2
    with pytest.raises(ConfigError, match="analysis of other configurations"):
        next(plots.figures(named.isel(lr=[0, 1]), found))
