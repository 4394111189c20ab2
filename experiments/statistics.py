"""Trends and slopes with 95 % intervals, over whole configurations and the periods within them; see
`periodic_jax.analysis.resampling`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from periodic_jax.analysis.resampling import resampled_interval

Statistic = Callable[[np.ndarray], np.ndarray]  # of how often each point is drawn, (draws, points)
LEAST = 3  # points that a slope needs, and configurations that an interval needs


class Estimate(NamedTuple):
    """A number and its 95 % interval; NaN where it cannot be told."""

    value: float
    low: float
    high: float

    def sign(self) -> int | None:
        """1 or -1 where the interval is on one side of 0, None where it is not.

        Example:
            >>> Estimate(2.0, 1.0, 3.0).sign(), Estimate(2.0, -1.0, 3.0).sign()
            (1, None)
        """
        if self.low > 0:
            return 1
        return -1 if self.high < 0 else None

    def near(self, expected: float, tolerance: float) -> bool | None:
        """Whether the interval is within a tolerance of a number, or wholly beyond it; None where it holds the border.

        Example:
            >>> one = Estimate(1.0, 0.9, 1.1)
            >>> one.near(1.0, 0.2), one.near(2.0, 0.2), one.near(1.3, 0.2)
            (True, False, None)
        """
        if self.low > expected - tolerance and self.high < expected + tolerance:
            return True
        return False if self.high < expected - tolerance or self.low > expected + tolerance else None


def trend(series: Iterable[ArrayLike]) -> Estimate:
    """The mean change from one value to the next, by least squares in each series.

    Args:
        series: of each configuration, a value for each of its periods, in order. Those of fewer than `LEAST` are left
            out; fewer than `LEAST` configurations have no interval.

    Example:
        >>> trend([[1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 5.0]]).value.__round__(6)
        1.5
    """
    kept = [np.asarray(one, np.float64) for one in series]
    kept = [one for one in kept if len(one) >= LEAST]
    if not kept:
        return Estimate(np.nan, np.nan, np.nan)
    groups = np.repeat(np.arange(len(kept)), [len(one) for one in kept])

    def mean_of_slopes(times: np.ndarray) -> np.ndarray:
        parts = [times[:, groups == k] for k in range(len(kept))]
        slopes = np.stack([_slopes(np.arange(len(y)), y, part) for y, part in zip(kept, parts, strict=True)])
        shares = np.stack([part.mean(1) for part in parts]) * np.isfinite(slopes)
        return np.nansum(shares * slopes, axis=0) / shares.sum(0)

    return _with_interval(mean_of_slopes, groups)


def slope(x: ArrayLike, y: ArrayLike, lines: ArrayLike | None = None) -> Estimate:
    """The slope of y on x by least squares, each point a configuration.

    Args:
        x, y: ``(points,)``.
        lines: a label for each point, ``(points,)``. Points of one label lie on one line; all lines have the same
            slope and each its own height. One line for all, unless given.

    Example:
        >>> slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0]).value.__round__(6)
        2.0
        >>> slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 9.0, 11.0], ["a", "a", "b", "b"]).value.__round__(6)
        2.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return _with_interval(lambda times: _slopes(x, y, times, lines), np.arange(len(x)))


def mean(values: ArrayLike) -> Estimate:
    """The mean of a value of each configuration.

    Example:
        >>> mean([1.0, 2.0, 3.0]).value
        2.0
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return Estimate(np.nan, np.nan, np.nan)
    return _with_interval(lambda times: times @ values / times.sum(1), np.arange(len(values)))


def _with_interval(statistic: Statistic, groups: np.ndarray) -> Estimate:
    with np.errstate(invalid="ignore", divide="ignore"):  # draws that determine nothing are NaN
        value = float(statistic(np.ones((1, len(groups))))[0])
        if len(np.unique(groups)) < LEAST:  # two configurations show a difference, no trend
            return Estimate(value, np.nan, np.nan)
        return Estimate(value, *resampled_interval(statistic, groups))


def _slopes(x: np.ndarray, y: np.ndarray, times: np.ndarray, lines: ArrayLike | None = None) -> np.ndarray:
    """Of y on x, each point taken so many times ``(draws, points)``; NaN for fewer than `LEAST` different points."""
    labels = np.zeros(len(x)) if lines is None else np.asarray(lines)
    on_line = (labels[:, None] == np.unique(labels)).astype(np.float64)  # (points, lines)
    count = times @ on_line
    x_sum, y_sum = times @ (x[:, None] * on_line), times @ (y[:, None] * on_line)
    drawn = np.maximum(count, 1)
    spread = times @ (x * x) - (x_sum**2 / drawn).sum(1)
    together = times @ (x * y) - (x_sum * y_sum / drawn).sum(1)
    found = together / np.where(spread > 1e-12 * times.sum(1), spread, np.nan)
    return np.where((times > 0).sum(1) >= LEAST, found, np.nan)
