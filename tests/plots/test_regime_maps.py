import matplotlib as mpl
import numpy as np
from helpers.drawn import drawn_panels
from matplotlib.figure import Figure

from periodic_jax import analysis, plots


def test_regime_map_colours_and_counts(periodic):
    _, found = periodic
    ax = plots.regime_map(Figure().subplots(), found)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.5", "1", "2"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.001", "0.005"]
    assert len(ax.patches) == 6
    for bar, text in zip(ax.patches, ax.texts, strict=True):
        column, row = round(bar.get_x() + 0.5), round(bar.get_y() + 0.5)
        (config,) = np.flatnonzero((found.lr == [0.5, 1, 2][column]) & (found.weight_decay == [1e-3, 5e-3][row]))
        regime, count = str(found.regime[config].values), int(found.destabilisations[config])
        assert mpl.colors.to_hex(bar.get_facecolor()).upper() == plots.REGIME_COLOURS[regime]
        assert text.get_text().split() == [regime[0].upper(), *([str(count)] if count else [])]


def test_regime_map_of_many_configurations_has_no_words_and_stripes_for_seeds(run):
    found = analysis.analyze(run("sixty configurations"))
    figure = plots.regimes(found)
    (ax,) = drawn_panels(figure)
    assert len(ax.patches) == 60
    assert figure.get_suptitle() == "stripes in a cell: seed"
    wide = found.assign_coords(lr=("config", np.arange(1.0, 61.0)))
    assert not plots.regime_map(Figure().subplots(), wide).texts


def test_period_lengths_fit_and_prediction(periodic):
    _, found = periodic
    ax = plots.period_lengths(Figure().subplots(), found)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    measured = np.concatenate([line.get_ydata() for line in points])
    known = np.isfinite(found.period_length.values)
    assert sorted(measured) == sorted(found.period_length.values[known])
    marks = [line.get_ydata().item() for line in ax.lines if line.get_marker() == "_"]
    falls = np.where(known, found.predicted_fall_steps.values[:, 1:], np.nan)
    assert marks == [np.median(row[np.isfinite(row)]) for row in falls if np.isfinite(row).any()]
    fit = ax.lines[-1]
    rates = np.repeat(found.lr * found.weight_decay, np.isfinite(found.period_length).sum("period"))
    slope, intercept = np.polyfit(np.log(rates), np.log(measured), 1)
    np.testing.assert_allclose(fit.get_ydata(), np.exp(intercept) * fit.get_xdata() ** slope, rtol=1e-3)
    # Six products, each of one configuration: no point stands aside.
    np.testing.assert_allclose(
        np.concatenate([line.get_xdata() for line in points]), rates, rtol=1e-6
    )  # single precision


def test_period_lengths_of_one_product_stand_side_by_side(periodic):
    """In the order of their learning rates, around the product."""
    _, found = periodic
    shown = found.isel(config=np.flatnonzero(np.isfinite(found.period_length).any("period")))
    alike = shown.assign_coords(weight_decay=("config", 1e-3 / shown.lr.values))
    alike["decay_rate"] = 1e-3 + 0 * shown.decay_rate
    points = [line for line in plots.period_lengths(Figure().subplots(), alike).lines if line.get_marker() == "o"]
    places = [line.get_xdata()[0] for line in points]
    assert len(set(places)) == len(places) > 1
    assert 0.9e-3 < min(places) < 1e-3 < max(places) < 1.1e-3
    assert np.argsort(places).tolist() == np.argsort(shown.lr.values, kind="stable").tolist()


def test_an_uncertain_regime_is_faint(periodic):
    _, found = periodic
    found = found.assign(confidence=("config", np.array([0.69, 0.71, 0.5, 1, 0, 0.9])))
    found["regime"] = ("config", ["periodic", "periodic", "converging", "equilibrium", "undecided", "diverged"])
    ax = plots.regime_map(Figure().subplots(), found)
    sure = {
        (round(bar.get_x() + 0.5), round(bar.get_y() + 0.5)): bar.get_facecolor()[3] for bar in ax.patches
    }  # fmt: skip
    for i in range(6):
        place = [0.5, 1, 2].index(found.lr.values[i]), [1e-3, 5e-3].index(found.weight_decay.values[i])
        assert (sure[place] == 1) == (i not in (0, 2))
    assert "faint" in plots.regimes(found).legends[0].get_title().get_text()
    assert (
        "faint"
        not in plots.regimes(found.assign(confidence=found.confidence * 0 + 1)).legends[0].get_title().get_text()
    )


def test_equilibria_measured_against_predicted(periodic):
    """Of the configurations that are in one, and no figure where none is."""
    dataset, found = periodic
    names = ["periodic", "equilibrium", "converging", "equilibrium", "undecided", "diverged"]
    assert "equilibrium" not in dict(plots.figures(dataset, found.assign(regime=("config", ["periodic"] * 6))))
    found = found.assign(regime=("config", names))
    for ax, name in zip(drawn_panels(plots.equilibria(found)), ("weight_norm", "effective_lr"), strict=True):
        points, equal = ax.lines
        both = np.stack([found[f"equilibrium_{name}"], found[f"measured_{name}"]], 1)[[1, 3]]
        np.testing.assert_allclose(points.get_xydata(), both)
        np.testing.assert_array_equal(equal.get_xdata(), equal.get_ydata())
