import numpy as np
import pytest
from scipy import stats

from periodic_jax.analysis.resampling import Interval, resampled_interval


def weighted_mean(values):
    return lambda times: times @ values / times.sum(1)


@pytest.mark.parametrize("units", [5, 12])
def test_interval_against_scipys_bootstrap(units):
    """The percentiles of SciPy's own draws, at the tails that Student's distribution has."""
    values = np.random.default_rng(units).normal(size=units)
    low, high = resampled_interval(weighted_mean(values), np.arange(units), level=0.8)
    tail = stats.norm.cdf(np.sqrt(units / (units - 1)) * stats.t.ppf(0.1, units - 1))
    draws = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).bootstrap_distribution
    np.testing.assert_allclose([low, high], np.quantile(draws, [tail, 1 - tail]), atol=0.1 * values.std())


def test_interval_of_few_groups_holds_the_mean_as_often_as_it_says():
    """Six runs whose periods hang together: taken as independent, the periods would hold it in a half of the draws."""
    rng, held, widths = np.random.default_rng(0), 0, []
    for _ in range(200):
        values = rng.normal(size=(6, 1)) + 0.3 * rng.normal(size=(6, 40))
        found = resampled_interval(weighted_mean(values.ravel()), np.repeat(np.arange(6), 40))
        held += found.low <= 0 <= found.high
        widths.append((found.high - found.low) / np.ptp(stats.t.interval(0.95, 5, scale=stats.sem(values.mean(1)))))
    assert 183 <= held <= 197  # 190 expected, within 2.3 standard deviations of that many draws
    assert 0.85 < np.median(widths) < 1  # against Student's interval of the six means


def test_groups_are_drawn_and_units_within_them():
    """Variance between draws is that between groups; within groups, too, where there is only one kind of them."""
    alike = np.repeat([0.0, 1.0, 2.0, 3.0, 4.0], 4)  # four seeds that agree
    by_group = resampled_interval(weighted_mean(alike), np.repeat(np.arange(5), 4), level=0.8)
    by_unit = resampled_interval(weighted_mean(alike), np.arange(20), level=0.8)
    assert by_group.high - by_group.low > 1.5 * (by_unit.high - by_unit.low)
    seeds = np.tile([0.0, 1.0, 2.0, 3.0], 5)  # groups that agree, of seeds that do not
    within = resampled_interval(weighted_mean(seeds), np.repeat(np.arange(5), 4))
    assert within.low < 1.4 < 1.6 < within.high


def test_the_same_interval_again_and_for_any_labels():
    values = np.random.default_rng(0).normal(size=9)
    one = resampled_interval(weighted_mean(values), np.arange(9))
    assert one == resampled_interval(weighted_mean(values), 7 + 3 * np.arange(9))
    assert one == resampled_interval(weighted_mean(values), np.array(list("abcdefghi")))


@pytest.mark.parametrize("groups", [np.zeros(0), np.zeros(1), np.zeros(5)])
def test_fewer_than_two_groups_have_no_interval(groups):
    found = resampled_interval(weighted_mean(np.arange(len(groups))), groups)
    assert np.isnan(found).all()
    assert type(found) is Interval


def test_draws_that_do_not_determine_the_statistic_are_left_out():
    groups = np.arange(4)
    whole = resampled_interval(lambda times: np.where(times[:, 0] > 0, 1.0, np.nan), groups)
    assert whole == (1, 1)
    assert np.isnan(resampled_interval(lambda times: np.full(len(times), np.nan), groups)).all()
