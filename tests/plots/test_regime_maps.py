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
    *points, fit = ax.lines
    measured = np.concatenate([line.get_ydata() for line in points[::2]])
    assert sorted(measured) == sorted(found.period_length.values[np.isfinite(found.period_length.values)])
    predicted = np.concatenate([line.get_ydata() for line in points[1::2]])
    assert sorted(predicted) == sorted(
        found.predicted_fall_steps.values[:, 1:][np.isfinite(found.period_length.values)]
    )
    x = np.concatenate([line.get_xdata() for line in points[::2]])
    slope, intercept = np.polyfit(np.log(x), np.log(measured), 1)
    np.testing.assert_allclose(fit.get_ydata(), np.exp(intercept) * fit.get_xdata() ** slope)
    rates = np.repeat(found.lr * found.weight_decay, np.isfinite(found.period_length).sum("period"))
    np.testing.assert_allclose(x, rates, rtol=1e-5)


def test_equilibria_measured_against_predicted(periodic):
    _, found = periodic
    for ax, name in zip(drawn_panels(plots.equilibria(found)), ("weight_norm", "effective_lr"), strict=True):
        *points, equal = ax.lines
        drawn = np.sort(np.concatenate([line.get_xydata() for line in points]), axis=0)
        both = np.stack([found[f"equilibrium_{name}"], found[f"measured_{name}"]], 1)
        np.testing.assert_allclose(drawn, np.sort(both, axis=0))
        np.testing.assert_array_equal(equal.get_xdata(), equal.get_ydata())
