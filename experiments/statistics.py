"""Means, trends and slopes with 95 % intervals, by resampling whole configurations first and periods within them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

RESAMPLES = 1000
LEAST = 3  # values that a trend needs


class Estimate(NamedTuple):
    """A number and its 95 % interval; NaN where it cannot be told."""

    value: float
    low: float = float("nan")
    high: float = float("nan")

    def sign(self) -> int | None:
        """1 or -1 where the interval is on one side of 0, None where it is not.

        Example:
            >>> Estimate(2.0, 1.0, 3.0).sign(), Estimate(2.0, -1.0, 3.0).sign()
            (1, None)
        """
        if self.low > 0:
            return 1
        return -1 if self.high < 0 else None


def estimate(groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], Any]) -> Estimate:
    """The mean of a statistic over groups, and the interval of it when groups, and values within them, are drawn anew.

    Args:
        groups: of each configuration (of each seed) its values ``(n, ...)``, along whose first axis they are drawn.
        statistic: of one group; NaN where it has none.

    Returns:
        The mean of the statistics that are known; with an interval where there is something to draw.

    Example:
        >>> estimate([np.array([1.0, 3.0]), np.array([5.0])], np.mean).value
        3.5
    """
    known = [np.asarray(group) for group in groups if np.isfinite(statistic(np.asarray(group)))]
    if not known:
        return Estimate(float("nan"))
    value = float(np.mean([statistic(group) for group in known]))
    if len(known) == 1 and len(known[0]) < LEAST:
        return Estimate(value)
    rng = np.random.default_rng(0)
    drawn = np.full(RESAMPLES, np.nan)
    for k in range(RESAMPLES):
        chosen = [known[i] for i in rng.integers(len(known), size=len(known))]
        again = [statistic(group[rng.integers(len(group), size=len(group))]) for group in chosen]
        again = [one for one in again if np.isfinite(one)]
        drawn[k] = np.mean(again) if again else np.nan
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def trend(series: Iterable[ArrayLike]) -> Estimate:
    """The mean change from one value to the next, by least squares in each series.

    Args:
        series: of each configuration, a value for each of its periods, in order.

    Example:
        >>> trend([np.array([1.0, 2.0, 3.0, 4.0])]).value.__round__(6)
        1.0
    """
    points = [np.stack([np.arange(len(one)), one], axis=1) for one in map(np.asarray, series) if len(one) >= LEAST]
    return estimate(points, _slope)


def slope(x: ArrayLike, y: ArrayLike) -> Estimate:
    """The slope of y on x by least squares, each point a configuration.

    Example:
        >>> slope([0.0, 1.0, 2.0, 3.0], [1.0, 3.0, 5.0, 7.0]).value.__round__(6)
        2.0
    """
    return estimate([np.stack([np.asarray(x), np.asarray(y)], axis=1)], _slope)


def _slope(points: np.ndarray) -> float:
    """Of one value on the other; NaN for fewer than `LEAST` points, and where they do not differ in x."""
    if len(points) < LEAST or np.ptp(points[:, 0]) == 0:
        return float("nan")
    x, y = (points - points.mean(0)).T
    return float(x @ y / (x @ x))
