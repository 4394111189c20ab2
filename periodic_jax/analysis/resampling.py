"""Intervals from resampling what is independent: configurations and seeds, not the periods of one of them."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95  # of every interval
DRAWS, LEAST_DRAWS = 2000, 200
MOST_COUNTS = 2**22  # in all draws together: many units have an interval that few draws tell


class Interval(NamedTuple):
    """Ends of an interval, NaN where nothing can be told."""

    low: float
    high: float


def resampled_interval(
    statistic: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, *, level: float = LEVEL
) -> Interval:
    """The bootstrap interval of a statistic of units, such as runs with different seeds, in independent groups.

    Groups are drawn with replacement, and the units of each drawn one with replacement too. The percentiles are those
    of Student's distribution: with n groups, Φ(√(n/(n-1)) t_{n-1}) in place of the tail (Hesterberg's expanded
    percentile interval), since those of few groups are too narrow.

    Args:
        statistic: takes how often each unit is drawn, ``(draws, units)``; returns ``(draws,)``, NaN where a draw does
            not determine it.
        groups: a label for each unit, ``(units,)``.
        level: of the interval.

    Returns:
        The same interval for the same arguments. NaN with fewer than two groups, or where most draws are NaN.

    Example:
        >>> values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        >>> low, high = resampled_interval(lambda times: times @ values / times.sum(1), np.arange(6))
        >>> 1 < low < 3.5 < high < 6
        True
    """
    _, group = np.unique(groups, return_inverse=True)
    number = int(group.max(initial=-1)) + 1
    if number < 2:
        return Interval(np.nan, np.nan)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(group == k) for k in range(number)]
    draws = int(np.clip(MOST_COUNTS // len(group), LEAST_DRAWS, DRAWS))
    found = [statistic(_times(rng, members, len(group))) for _ in range(-(-draws // LEAST_DRAWS))]
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    if 2 * len(values) < draws:
        return Interval(np.nan, np.nan)
    tail = stats.norm.cdf(np.sqrt(number / (number - 1)) * stats.t.ppf((1 - level) / 2, number - 1))
    low, high = np.quantile(values, (tail, 1 - tail))
    return Interval(float(low), float(high))


def _times(rng: np.random.Generator, members: list[np.ndarray], units: int) -> np.ndarray:
    """How often each unit is drawn, in `LEAST_DRAWS` draws: ``(draws, units)``."""
    drawn = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), LEAST_DRAWS)
    times = np.empty((LEAST_DRAWS, units))
    for of_group, here in zip(drawn.T, members, strict=True):
        alone = len(here) == 1  # the usual case
        times[:, here] = (
            of_group[:, None] if alone else rng.multinomial(of_group * len(here), [1 / len(here)] * len(here))
        )
    return times
