"""Which steps of long curves to draw, so that every jump stays visible. NumPy only."""

import numpy as np


def extremes(curves: np.ndarray, buckets: int) -> np.ndarray:
    """Positions of the lowest and the highest value of each curve in each of ``buckets`` equal stretches, and of the
    first and last known one.

    Curves drawn through these points alone have the same extremes in every stretch as the whole ones.

    Args:
        curves: ``(curves, steps)`` of floats; NaN and infinities are unknown.
        buckets: stretches, from 1.

    Returns:
        Positions in ascending order, each once: all known ones where the steps are no more than two a stretch.

    Example:
        >>> extremes(np.array([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 0.0, 5.0]]), 2).tolist()
        [0, 1, 3, 4, 6, 7]
    """
    known = np.isfinite(curves)
    somewhere = np.flatnonzero(known.any(0))
    if not len(somewhere) or curves.shape[1] <= 2 * buckets:
        return somewhere
    size = -(-curves.shape[1] // buckets)
    padding = ((0, 0), (0, -curves.shape[1] % size))
    chosen = [somewhere[:1], somewhere[-1:]]
    for missing, choose in ((np.inf, np.argmin), (-np.inf, np.argmax)):
        filled = np.pad(np.where(known, curves, missing), padding, constant_values=missing)
        places = choose(filled.reshape(len(curves), -1, size), axis=2) + size * np.arange(filled.shape[1] // size)
        chosen.append(np.unique(places))
    places = np.unique(np.concatenate(chosen))
    # A stretch in which nothing is known answers with its first place, which may lie behind the last step.
    return places[np.isin(places, somewhere, assume_unique=True)]


GOLDEN = (5**0.5 - 1) / 2
MOST_DIFFERENCES = 4096  # of a curve, from which its noise is estimated: to about 2 %


def highest(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The highest known value of each stretch, NaN where none is known.

    Example:
        >>> highest(np.array([1.0, np.nan, 3.0, 2.0]), np.array([0, 2]), np.array([2, 4])).tolist()
        [1.0, 3.0]
    """
    return _reduced(np.fmax, values, np.nan, first, last)


def position_of_highest(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Where each stretch is highest; the first such place. No value may be missing; stretches may overlap."""
    return first_at_least(values, first, last - 1, _reduced(np.maximum, values, -np.inf, first, last))


def first_at_least(values: np.ndarray, first: np.ndarray, last: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The first place from ``first`` up to ``last``, which is the answer where no earlier one has it, with a value of
    at least ``level``. Stretches may overlap.
    """
    place, waiting = np.asarray(first).copy(), np.arange(len(first))
    width = 64
    while len(waiting):
        at = place[waiting, None] + np.arange(width)
        reached = (values[np.minimum(at, len(values) - 1)] >= level[waiting, None]) | (at >= last[waiting, None])
        some = reached.any(1)
        place[waiting] += np.where(some, np.argmax(reached, 1), width)
        waiting = waiting[~some]
        width = min(2 * width, max(2**22 // max(len(waiting), 1), 64))
    return place


def totals(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """The sum of each stretch, in double precision.

    Example:
        >>> totals(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 2]), np.array([2, 3])).tolist()
        [3.0, 3.0]
    """
    return _reduced(np.add, values, 0.0, first, last)


def _reduced(how: np.ufunc, values: np.ndarray, neutral: float, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    # One number more, in double precision, so that the last stretch may end with the array.
    return how.reduceat(np.append(values, neutral), np.stack([first, last], 1).ravel())[::2]


def largest_spike(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Height of the largest spike of each stretch: how far it rises above the lowest value before, or falls again to
    the lowest after it, whichever is less. 0 where the stretch only falls, or only rises.

    Example:
        >>> largest_spike(np.array([3.0, 1.0, 2.0, 0.0, 9.0]), np.array([0]), np.array([5])).tolist()
        [1.0]
    """
    lengths = last - first
    starts = np.cumsum(lengths) - lengths
    stretch = values[np.repeat(first - starts, lengths) + np.arange(lengths.sum())]
    # Each stretch is laid below all before it, so that one running minimum starts anew in each; or above, backwards.
    span = np.fmax.reduce(stretch, initial=0) - np.fmin.reduce(stretch, initial=0) + 1
    shift = span * np.repeat(np.arange(len(first)), lengths)
    before = stretch - (np.fmin.accumulate(stretch - shift) + shift)
    after = stretch - (np.fmin.accumulate((stretch + shift)[::-1])[::-1] - shift)
    return np.nan_to_num(np.fmax.reduceat(np.minimum(before, after), starts))


def median_before(values: np.ndarray, first: np.ndarray, position: np.ndarray, window: int) -> np.ndarray:
    """Median of the known values from ``window`` places before each position, not before ``first``, to the position."""
    at = position[:, None] - np.arange(window + 1)
    near = np.sort(np.where(at >= first[:, None], values[np.maximum(at, 0)] if len(values) else np.nan, np.nan), axis=1)
    known = np.isfinite(near).sum(1)
    middle = np.clip(np.stack([(known - 1) // 2, known // 2], axis=1), 0, window)
    return np.where(known, np.take_along_axis(near, middle, 1).mean(1), np.nan)


def noise(values: np.ndarray, firsts: np.ndarray, order: int) -> np.ndarray:
    """Standard deviation of the noise of each of the stretches that ``firsts`` begin and the next ones end.

    From the median of the absolute differences of neighbours, of first or second ``order``, as normal noise would have
    it: a slope, bursts and what is missing leave it as it is.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> float(noise(3 * rng.normal(size=5000) + np.arange(5000), np.array([0]), 2).round(1)[0])
        3.0
    """
    scale = 1.4826 / np.sqrt({1: 2, 2: 6}[order])
    deviations = np.zeros(len(firsts))
    for i, (first, last) in enumerate(zip(firsts, np.append(firsts, len(values))[1:], strict=True)):
        at = np.arange(first, last - order)
        if len(at) > MOST_DIFFERENCES:  # spread evenly, but without a step that a rhythm of the curve could share
            at = first + (np.arange(MOST_DIFFERENCES) * GOLDEN % 1 * len(at)).astype(int)
        known = values[at] - values[at + 1] if order == 1 else values[at] - 2 * values[at + 1] + values[at + 2]
        known = np.abs(known[np.isfinite(known)])
        deviations[i] = scale * np.median(known) if len(known) else 0
    return deviations


def ends(known: np.ndarray) -> np.ndarray:
    """One more than the last position that is known of each row ``(rows, steps)``; 0 where there is none.

    Example:
        >>> ends(np.array([[True, False, True, False], [False] * 4])).tolist()
        [3, 0]
    """
    return np.max(np.where(known, np.arange(known.shape[1]) + 1, 0), axis=1, initial=0)


def mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen values of each row ``(rows, steps)``, in double precision; NaN where none is chosen.

    Example:
        >>> mean(np.array([[1.0, 2.0, 9.0]]), np.array([[True, True, False]])).tolist()
        [1.5]
    """
    return np.where(chosen, values, 0).sum(1, dtype=np.float64) / chosen.sum(1)


def padded(columns: np.ndarray, config: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Columns ``(fields, periods)`` in the order of their configurations as ``(fields, configs, most)``, NaN behind."""
    place = np.arange(len(config)) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((len(columns), len(count), int(count.max(initial=0))), np.nan)
    table[:, config, place] = columns
    return table
