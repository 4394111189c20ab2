"""Periods told while they are trained, window by window of steps, and the lowest point of each. NumPy only.

This is `detect_periods` as it can be read without the future: a destabilisation is a minimum of the weight
norm from which it grows by a tenth or more at once, while the loss rises beyond its noise. At the end of each window,
of each configuration:

* Its end is a candidate for the lowest point, with a score: the median loss of the window, or the mean of its last
  `LAST` steps, if that is higher, as where a burst has just begun.
* A fall begins when the norm is `GROWTH` times below its highest value since the last rise. (Only then can the next
  destabilisation come: that is the hysteresis.)
* A rise ends the fall when the norm is `GROWTH` times above its lowest value since, and `NORM_NOISE` standard
  deviations of its noise. The period has ended if the loss has meanwhile exceeded the lowest score by the factor
  `LOSS_RATIO` and by `LOSS_NOISE` standard deviations of its noise, and if the rise took at most `SLOWEST_RISE` of the
  steps of the fall, or a window. If not, it goes on.

The candidate of lowest score of a period that has ended is its minimum. What is shorter than a few windows is not told
apart.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.analysis.periods import LOSS_NOISE, NORM_NOISE, SLOWEST_RISE

GROWTH = 1.1  # as `min_growth` of `detect_periods`
LOSS_RATIO = 3.0  # as its `min_loss_ratio`
LAST = 10  # steps at the end of a window that tell the state there
Rule = dict[str, np.ndarray]  # what is known at a step, the configurations first; see `fresh`


class Verdict(NamedTuple):
    """What the end of a window says of each configuration, ``(configs,)``."""

    ended: np.ndarray  # the period before has ended: its lowest candidate is its minimum
    lowest: np.ndarray  # the weights here are the lowest candidate of their period so far
    step: np.ndarray  # of the lowest candidate before this window, -1 for none
    score: np.ndarray  # of it


def initial_rule(configs: int, every: int, dtype: Any) -> Rule:
    """What is known before the first step, as arrays of 32 bits, or of the telemetry's floating-point type.

    Args:
        configs: number of configurations.
        every: steps of a window.
        dtype: of the telemetry.
    """
    unknown, none = np.full(configs, np.nan, dtype), np.full(configs, -1, np.int32)
    return {
        "loss": np.full((configs, every), np.nan, dtype),  # of the window so far
        "norm": np.full((configs, every), np.nan, dtype),
        "score": unknown.copy(),  # of the lowest candidate of this period
        "noise": unknown.copy(),  # of ln loss in its window
        "step": none.copy(),
        "high": unknown.copy(),  # highest norm since the last rise
        "high_step": none.copy(),
        "low": unknown.copy(),  # lowest norm since; NaN before a fall
        "low_step": none.copy(),
        "peak": unknown.copy(),  # highest loss since then
        "found": np.zeros(configs, np.int32),  # periods that have ended
    }


def update_rule(rule: Rule, first_step: int, loss: np.ndarray, norm: np.ndarray) -> None:
    """Put consecutive steps ``(configs, steps)`` of one window into it."""
    every = rule["loss"].shape[1]
    place = slice(first_step % every, first_step % every + loss.shape[1])
    rule["loss"][:, place], rule["norm"][:, place] = loss, norm


def conclude_periods(rule: Rule, end: int, alive: np.ndarray) -> Verdict:
    """Read a whole window, and empty it.

    Args:
        rule: what is known; changed in place.
        end: updates made, a multiple of the window's length.
        alive: which configurations have not diverged.
    """
    configs, every = rule["loss"].shape
    before = Verdict(np.zeros(configs, bool), np.zeros(configs, bool), rule["step"].copy(), rule["score"].copy())
    rows = np.flatnonzero(alive & np.isfinite(rule["norm"][:, -1]) & (rule["norm"][:, -1] > 0))
    if len(rows):
        seen = _window(rule, rows, end)
        before.ended[rows] = _follow_norm(rule, rows, seen, every)
        over = rows[before.ended[rows]]
        rule["score"][over], rule["step"][over] = np.nan, -1
        rule["found"][over] += 1
        lower = ~(rule["score"][rows] <= seen["score"])
        before.lowest[rows] = lower
        kept = rows[lower]
        rule["score"][kept], rule["noise"][kept] = seen["score"][lower], seen["noise"][lower]
        rule["step"][kept] = end
    rule["loss"][:], rule["norm"][:] = np.nan, np.nan
    return before


def _window(rule: Rule, rows: np.ndarray, end: int) -> dict[str, np.ndarray]:
    """Of some configurations: score, noise of ln loss and of ln ρ, and where the norm is highest and lowest."""
    loss, norm = (rule[name][rows] for name in ("loss", "norm"))
    begin, number = end - loss.shape[1], np.arange(len(rows))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_loss, log_norm = np.log(loss, dtype=np.float64), np.log(norm, dtype=np.float64)
        score = np.fmax(np.nanmedian(loss, axis=1), np.nanmean(loss[:, -LAST:], axis=1)).astype(loss.dtype)
        noise = _noise(log_loss, 1).astype(loss.dtype)
    top, bottom = (choose(np.where(np.isfinite(norm), norm, blank), axis=1) for choose, blank in
                   ((np.argmax, -np.inf), (np.argmin, np.inf)))  # fmt: skip
    return {
        "loss": loss, "score": score, "noise": noise, "norm_noise": _noise(log_norm, 2), "last": norm[:, -1],
        "top": norm[number, top], "top_step": begin + top, "bottom": norm[number, bottom],
        "bottom_step": begin + bottom, "bottom_place": bottom, "end": np.full(len(rows), end),
    }  # fmt: skip


def _follow_norm(rule: Rule, rows: np.ndarray, seen: Mapping[str, np.ndarray], every: int) -> np.ndarray:
    """Go on with falls and rises of the norm; whether a period has ended."""
    falling = np.isfinite(rule["low"][rows])
    # Before a fall: the highest norm, until it is well below.
    higher = rows[~falling & ~(rule["high"][rows] >= seen["top"])]
    at = np.searchsorted(rows, higher)
    rule["high"][higher], rule["high_step"][higher] = seen["top"][at], seen["top_step"][at]
    begins = ~falling & (seen["last"] * GROWTH <= rule["high"][rows])
    # In a fall: the lowest norm, and the highest loss from there on.
    lower = begins | (falling & (seen["bottom"] < rule["low"][rows]))
    low = np.where(begins, seen["last"], seen["bottom"])
    place = np.where(begins, every - 1, seen["bottom_place"])
    onwards = np.arange(every) >= place[:, None]
    peak = np.fmax.reduce(np.where(onwards | ~lower[:, None], seen["loss"], np.nan), axis=1)
    peak = np.where(lower, peak, np.fmax(rule["peak"][rows], peak))
    low = np.where(lower, low, rule["low"][rows])
    low_step = np.where(lower, seen["end"] - every + place, rule["low_step"][rows])

    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(seen["last"], dtype=np.float64) - np.log(low, dtype=np.float64)
        rise = np.log(peak, dtype=np.float64) - np.log(rule["score"][rows], dtype=np.float64)
    grown = falling & (growth >= np.maximum(math.log(GROWTH), NORM_NOISE * seen["norm_noise"]))
    confirmed = rise >= np.maximum(math.log(LOSS_RATIO), LOSS_NOISE * np.nan_to_num(rule["noise"][rows]))
    steps = seen["end"] - 1 - low_step
    quick = steps <= np.maximum(SLOWEST_RISE * (low_step - rule["high_step"][rows]), every)

    rule["low"][rows] = np.where(grown | ~(falling | begins), np.nan, low)
    rule["low_step"][rows], rule["peak"][rows] = low_step, peak
    rule["high"][rows[grown]], rule["high_step"][rows[grown]] = seen["top"][grown], seen["top_step"][grown]
    return grown & confirmed & quick & (rule["step"][rows] >= 0)


def _noise(values: np.ndarray, order: int) -> np.ndarray:
    """Standard deviation of the noise of each row from differences of neighbours, as `core.segments.noise` tells it."""
    apart = np.abs(np.diff(values, order, axis=1))
    known = np.isfinite(apart)
    middle = np.zeros(len(apart))
    if (some := known.any(1)).any():
        middle[some] = np.nanmedian(np.where(known[some], apart[some], np.nan), axis=1)
    return 1.4826 / math.sqrt({1: 2, 2: 6}[order]) * middle


def most_periods(steps: int, every: int, rate: np.ndarray) -> np.ndarray:
    """The most periods that so many steps can have: two windows each, and ln `GROWTH` / rate steps of fall.

    Args:
        steps: of the run.
        every: of a window.
        rate: by which decay alone shrinks the norm in a step, -ln(1-ηλ/(1-μ)) at most, ``(configs,)``; 0: none ends.

    Example:
        >>> most_periods(10000, 100, np.array([1e-3, 1e-5, 0.0])).tolist()
        [50, 1, 0]
    """
    fall = np.divide(math.log(GROWTH), rate, out=np.full(np.shape(rate), np.inf), where=np.asarray(rate) > 0)
    return (steps / np.maximum(2 * every, fall)).astype(np.int64)
