"""Detects periods during training, window by window of steps, and the lowest point of each. NumPy only.

This is `detect_periods` without knowledge of the future: a destabilisation is a minimum of the weight
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

The candidate of lowest score of a period that has ended is its minimum. Periods shorter than a few windows are not
resolved.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.analysis.periods import LOSS_NOISE, NORM_NOISE, SLOWEST_RISE

GROWTH = 1.1  # as `min_growth` of `detect_periods`
LOSS_RATIO = 3.0  # as its `min_loss_ratio`
LAST = 10  # steps at the end of a window from which the score there is taken
Rule = dict[str, np.ndarray]  # what is known at a step, the configurations first; see `fresh`


class Verdict(NamedTuple):
    """What follows for each configuration from a window, ``(configs,)``."""

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
    configs = len(rule["step"])
    before = Verdict(np.zeros(configs, bool), np.zeros(configs, bool), rule["step"].copy(), rule["score"].copy())
    chosen = np.flatnonzero(alive & np.isfinite(rule["norm"][:, -1]) & (rule["norm"][:, -1] > 0))
    if len(chosen):
        part = {name: array[chosen] for name, array in rule.items()}
        candidate = _candidate(part, end)
        before.ended[chosen] = ended = _follow_norm(part, end)
        part["score"][ended], part["step"][ended] = np.nan, -1
        part["found"] += ended
        before.lowest[chosen] = lower = ~(part["score"] <= candidate["score"])
        for name, values in candidate.items():
            np.copyto(part[name], values, where=lower, casting="same_kind")
        for name, array in part.items():
            rule[name][chosen] = array
    rule["loss"][:], rule["norm"][:] = np.nan, np.nan
    return before


def _candidate(part: Rule, end: int) -> Rule:
    """The end of a window as candidate for the lowest point: score, noise of ln loss, and step."""
    loss = part["loss"]
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.fmax(np.nanmedian(loss, axis=1), np.nanmean(loss[:, -LAST:], axis=1))
        noise = _noise(np.log(loss, dtype=np.float64), 1)
    return {"score": score, "noise": noise, "step": np.full(len(loss), end)}


def _follow_norm(part: Rule, end: int) -> np.ndarray:
    """Update the falls and rises of the norm of some configurations; whether a period has ended."""
    norm, every, each = part["norm"], part["norm"].shape[1], np.arange(len(part["norm"]))
    top, bottom = (choose(np.where(np.isfinite(norm), norm, blank), axis=1)
                   for choose, blank in ((np.argmax, -np.inf), (np.argmin, np.inf)))  # fmt: skip
    last, falling = norm[:, -1], np.isfinite(part["low"])

    def restart_high(where: np.ndarray) -> None:
        np.copyto(part["high"], norm[each, top], where=where)
        np.copyto(part["high_step"], end - every + top, where=where, casting="same_kind")

    # Before a fall: the highest norm, until it is well below.
    restart_high(~falling & ~(part["high"] >= norm[each, top]))
    begins = ~falling & (last * GROWTH <= part["high"])
    # In a fall: the lowest norm, and the highest loss from there on.
    place = np.where(begins, every - 1, bottom)
    lower = begins | (falling & (norm[each, bottom] < part["low"]))
    onwards = np.arange(every) >= place[:, None]
    peak = np.fmax.reduce(np.where(onwards | ~lower[:, None], part["loss"], np.nan), axis=1)
    part["peak"] = np.where(lower, peak, np.fmax(part["peak"], peak))
    part["low"] = np.where(lower, norm[each, place], part["low"])
    part["low_step"] = np.where(lower, end - every + place, part["low_step"])

    with np.errstate(divide="ignore", invalid="ignore"):
        growth = np.log(last, dtype=np.float64) - np.log(part["low"], dtype=np.float64)
        rise = np.log(part["peak"], dtype=np.float64) - np.log(part["score"], dtype=np.float64)
        noise = _noise(np.log(norm, dtype=np.float64), 2)
    grown = falling & (growth >= np.maximum(math.log(GROWTH), NORM_NOISE * noise))
    confirmed = rise >= np.maximum(math.log(LOSS_RATIO), LOSS_NOISE * np.nan_to_num(part["noise"]))
    fall = part["low_step"] - part["high_step"]
    quick = end - 1 - part["low_step"] <= np.maximum(SLOWEST_RISE * fall, every)
    part["low"][grown | ~(falling | begins)] = np.nan
    restart_high(grown)
    return grown & confirmed & quick & (part["step"] >= 0)


def _noise(values: np.ndarray, order: int) -> np.ndarray:
    """Standard deviation of the noise of each row from differences of neighbours, as by `core.segments.noise`."""
    differences = np.abs(np.diff(values, order, axis=1))
    known = np.isfinite(differences)
    differences = np.where(known, differences, np.where(known.any(1, keepdims=True), np.nan, 0))
    return 1.4826 / math.sqrt({1: 2, 2: 6}[order]) * np.nanmedian(differences, axis=1)


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
