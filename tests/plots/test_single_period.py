import numpy as np
from helpers.drawn import drawn_panels
from helpers.synthetic import open_flat, stack, trajectory
from matplotlib.figure import Figure

from periodic_jax import analysis, plots
from periodic_jax.core.grid import SweepGrid


def test_one_period_shows_the_clearest(tmp_path):
    """Marked from onset to onset: the one between two jumps of which the lesser grew the norm most."""
    grid = SweepGrid.product(lr=[0.5, 1.0], weight_decay=5e-3)
    small = trajectory(600, [100, 200, 300], lr=0.5, weight_decay=5e-3, growth=1.04)
    large = trajectory(600, [60, 160, 240, 480], weight_decay=5e-3, growth=[1.15, 1.03, 1.08, 1.08])
    dataset = open_flat(tmp_path / "run", grid, stack([small, large]))
    figure = plots.one_period(dataset, analysis.analyze(dataset))
    axes = drawn_panels(figure)
    assert axes[0].get_title() == "learning rate 1, weight decay 0.005: 240 steps"
    for ax, name in zip(axes, ("loss", "weight_norm", "effective_lr"), strict=True):
        curve, *onsets = sorted(ax.lines, key=lambda line: -len(line.get_xdata()))
        assert [line.get_xdata()[0] for line in onsets] == [240, 480]
        x = curve.get_xdata()
        assert x[0] < 240
        assert x[-1] > 485
        np.testing.assert_array_equal(curve.get_ydata(), large[name][x].astype(np.float32))
    words = [text.get_text() for text in figure.legends[0].texts]
    assert words == ["phase A: norm falls, ELR rises", "phase B: destabilisation", "onset"]
    assert figure.legends[0].get_window_extent().y0 > axes[0].get_tightbbox().y1 - 2


def test_phases_part_the_trajectory(periodic):
    """Each step is drawn in one of the two colours, those at their borders in both."""
    dataset, found = periodic
    config = int(found.destabilisations.values.argmax())
    before, fall, burst, start, onsets = plots.phases(Figure().subplots(), dataset, found, config).lines
    x = dataset.effective_lr.values[config]
    inside = np.zeros(len(x), bool)
    onset_steps = found.onset_step.values[config, : int(found.destabilisations[config])].astype(int)
    for first, last in zip(onset_steps, found.end_step.values[config], strict=False):
        inside[first : int(last) + 1] = True
    assert inside.sum() > 5
    drawn = burst.get_xdata()
    np.testing.assert_array_equal(drawn, np.where(inside, x, np.nan))
    first = onset_steps[0]
    assert set(x[first:][~inside[first:]]) < set(fall.get_xdata())
    np.testing.assert_array_equal(before.get_xdata(), np.where(np.arange(len(x)) <= first, x, np.nan))
    assert np.isnan(fall.get_xdata()[:first]).all()  # the way to the first onset is of no period
    assert before.get_label() == "before the first onset"
    assert start.get_xdata() == x[:1]
    np.testing.assert_array_equal(onsets.get_xdata(), x[onset_steps])
