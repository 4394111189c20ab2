import numpy as np
import pytest
from helpers.synthetic import cut, stack, trajectory

from periodic_jax import dynamics
from periodic_jax.analysis.forecast import forecast, forecast_origin, references
from periodic_jax.analysis.periods import delta_jumps, detect_periods

DECAY = np.array([1e-3, 1e-3])
ONSETS = (500, 1300, 2100)


@pytest.fixture(scope="module")
def curves():
    """Bursts that undo each fall, and a descent; with gradients that matter a little."""
    growth = (1 - 1e-3) ** (-800 / 5)
    bursting = trajectory(2600, ONSETS, growth=growth, quiet=0.01)
    return stack([bursting, cut(trajectory(2600, quiet=0.01, norm=9.0), 2000)])


@pytest.fixture(scope="module")
def now(curves):
    return forecast_origin(curves, detect_periods(curves), DECAY)


def test_origins_are_the_last_step_and_half_way_down_each_falling_edge(curves, now):
    np.testing.assert_array_equal(now.origin, [[2599, 250, 902, 1702], [1999, np.nan, np.nan, np.nan]])
    for config, column in ((0, 2), (0, 0), (1, 0)):
        at = int(now.origin[config, column])
        assert now.effective_lr[config, column] == curves["effective_lr"][config, at]
        assert now.lr[config, column] == pytest.approx(1.0)
        fall = {(0, 2): 505, (0, 0): 2105, (1, 0): 0}[config, column]
        recent = curves["effective_grad_norm"][config, (fall + at) // 2 : at + 1]
        assert now.lowest_gradient[config, column] == recent.min()
        assert now.highest_gradient[config, column] == recent.max()
    jumps = delta_jumps(curves["angular_step"], 5e-4)
    assert now.next_jump[0, 2] == 902 + np.argmax(jumps[0, 902:])
    assert np.isnan(now.next_jump[1, 0])


def test_forecasts(now):
    reference = references(detect_onsets := np.full((2, 3), np.nan))
    assert np.isnan(reference).all()
    detect_onsets[0] = [0.1, 0.2, 0.1]
    reference = references(detect_onsets)
    np.testing.assert_allclose(reference[0], [(0.002) ** (1 / 3), np.nan, 0.1, np.sqrt(0.02)])
    np.testing.assert_allclose(reference[1], [(0.002) ** (1 / 3), np.nan, np.nan, np.nan])  # those of all others
    ahead = forecast(now, reference, DECAY, np.zeros(2), np.array([True, True]))
    elr = now.effective_lr[0, 0]
    wait = np.log(reference[0, 0] / elr) / (-2 * np.log(1 - 1e-3))
    soonest = dynamics.t_min(elr, now.highest_gradient[0, 0], 5e-4, now.lr[0, 0], 1e-3)
    assert ahead.soonest[0, 0] == 2599 + soonest
    assert ahead.latest[0, 0] == 2599 + dynamics.t_max(elr, now.lowest_gradient[0, 0], 5e-4, now.lr[0, 0], 1e-3)
    assert ahead.expected[0, 0] == 2599 + round(max(wait, 0))
    assert (ahead.soonest <= ahead.latest)[np.isfinite(ahead.latest)].all()


def test_a_forecast_of_a_regular_run_is_right(curves, now):
    found = detect_periods(curves)
    ahead = forecast(now, references(found.onset_effective_lr), DECAY, np.zeros(2), np.ones(2, bool))
    errors = np.abs(ahead.expected[0, 2:] - found.onset[0, 1:])
    assert (errors <= 8).all()  # of 800
    assert ahead.expected[0, 0] == pytest.approx(2900, abs=30)


@pytest.mark.parametrize(
    ("decay", "momentum", "free", "window", "expected"),
    [(1e-3, 0.9, True, False, True), (1e-3, 0.0, False, False, False), (0.0, 0.0, True, False, False)],
)
def test_where_nothing_can_be_said(now, decay, momentum, free, window, expected):
    reference = np.full((2, 4), 10.0)
    ahead = forecast(now, reference, np.full(2, decay), np.full(2, momentum), np.full(2, free))
    assert np.isfinite(ahead.latest[:, 0]).all() == window
    assert np.isfinite(ahead.expected[:, 0]).all() == expected


def test_nothing_recorded(recwarn):
    empty = {name: values[None] for name, values in cut(trajectory(50), 0).items()}
    now = forecast_origin(empty, detect_periods(empty), np.array([1e-3]))
    ahead = forecast(now, references(np.zeros((1, 0))), np.array([1e-3]), np.zeros(1), np.ones(1, bool))
    assert np.isnan(np.array(ahead)).all()
    assert not recwarn.list
