"""Detects destabilisations and the periods between them in recorded trajectories. NumPy and SciPy only.

In a period the weight norm falls (phase A: decay alone, the effective learning rate rises) until training
destabilises, and then jumps up within a few steps (phase B). The norm has next to no mini-batch noise, so its local
minima mark the onsets; the loss confirms them. All thresholds are relative to the noise of the curve itself.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import find_peaks

from periodic_jax.analysis.blocks import configs_in_cache, map_blocks
from periodic_jax.analysis.telemetry import steps_last
from periodic_jax.core import segments
from periodic_jax.dynamics import rotation_spent

LOSS_NOISE = 6.0  # standard deviations of ln loss that a rise must exceed: once in 10^9 steps by chance
NORM_NOISE = 10.0  # of ln ρ: the highest and the lowest of 10^5 noisy values are 9 apart
SLOWEST_RISE = 1 / 3  # of the fall's steps, to regain half of it: a burst takes a few steps, a wave as long as its fall


class Periods(NamedTuple):
    """Destabilisations of each configuration, in order, padded with NaN at the end: ``(..., most)`` but ``found``
    ``(...)``. Steps are positions along the last axis of the telemetry.
    """

    found: np.ndarray  # how many
    onset: np.ndarray  # step at which the weight norm is lowest, just before it jumps
    end: np.ndarray  # step at which the norm is highest before it falls again
    onset_weight_norm: np.ndarray
    onset_effective_lr: np.ndarray
    peak_weight_norm: np.ndarray
    loss_before: np.ndarray  # median loss over the steps before the onset, or over the later half of a short fall
    peak_loss: np.ndarray  # highest loss between onset and end
    lowest_loss: np.ndarray  # lowest loss of the fall
    fall: np.ndarray  # step at which the fall that led to the onset began: the end before, or the norm's first maximum
    fall_weight_norm: np.ndarray  # norm there
    spike: np.ndarray  # largest ratio by which the loss rises and falls again within the fall; noise alone makes 3 - 7
    rotation: np.ndarray  # Σ -ln cos θ from onset to end; NaN without ``angular_step``
    fall_rotation: np.ndarray  # the same over the fall, up to before the onset; NaN too where a step is missing


class Cycles(NamedTuple):
    """The periods from each destabilisation to the next, ``(..., most - 1)``, in steps."""

    length: np.ndarray  # onset to onset
    jump: np.ndarray  # phase B, onset to end
    fall: np.ndarray  # phase A, end to the next onset
    norm_ratio: np.ndarray  # norm at the beginning of phase A over the norm at its end


def detect_periods(
    telemetry: Mapping[Any, Any], *, min_growth: float = 1.1, min_loss_ratio: float = 3.0, window: int = 50
) -> Periods:
    """Find the destabilisations of every configuration.

    An onset is a local minimum of ln ρ of prominence at least ln ``min_growth`` around which the loss rises: its
    maximum while the norm grows is at least ``min_loss_ratio`` times its median over the ``window`` steps before, or
    over the later half of the fall if that is lower: of fast periods the window holds the bursts before. A slow descent
    has no such minimum. Where the curves are noisy, the prominence must also be `NORM_NOISE` standard
    deviations of the noise of ln ρ, and the rise `LOSS_NOISE` of that of ln loss, both from differences of
    neighbours; and half of the norm's growth must come within `SLOWEST_RISE` of the steps that it fell before, so
    that an equilibrium's fluctuations are none. Steps that are not finite are left out, wherever they are.

    Args:
        telemetry: a Dataset in either form of `open_run`, with its dimension ``step`` in any place, or a mapping of
            arrays ``(..., steps)``: ``loss``, ``weight_norm``, ``effective_lr`` (from ``lr`` where it is missing), and
            ``angular_step`` for the rotation; NaN where a value is missing.
        min_growth: least ratio of the norm after the jump to the norm before it, and of the norm's fall before.
        min_loss_ratio: least ratio of the loss at its peak to the loss before.
        window: steps over which the loss before is taken, or fewer of a short fall.

    Returns:
        The destabilisations, with the leading dimensions of the telemetry.

    Raises:
        ConfigError: what is missing, or shapes that differ.

    Example:
        >>> rho = np.concatenate([np.geomspace(4, 2, 100), np.geomspace(4, 2, 100)])
        >>> loss = np.where(np.arange(200) == 100, 1.0, 0.01)
        >>> detect_periods({"loss": loss, "weight_norm": rho, "effective_lr": 0.1 / rho**2}).onset.tolist()
        [99.0]
    """
    arrays = steps_last(telemetry, ("loss", "weight_norm", "effective_lr"), ("angular_step",))
    *lead, steps = arrays["weight_norm"].shape
    configs = math.prod(lead)
    flat = {name: array.reshape(configs, steps) for name, array in arrays.items()}

    def detect(block: slice) -> Periods:
        return _detect_block({name: a[block] for name, a in flat.items()}, min_growth, min_loss_ratio, window)

    periods = map_blocks(detect, configs, configs_in_cache(steps))
    return Periods(*(field.reshape((*lead, *field.shape[1:])) for field in periods))


def cycles(found: Periods) -> Cycles:
    """The periods between the destabilisations.

    Args:
        found: what `detect_periods` found.

    Returns:
        Length, phases and norm ratio of each period; NaN from the last destabilisation on.
    """
    length = np.diff(found.onset, axis=-1)
    jump = (found.end - found.onset)[..., :-1] + 0 * length
    norm_ratio = found.peak_weight_norm[..., :-1] / found.onset_weight_norm[..., 1:]
    return Cycles(length, jump, length - jump, norm_ratio)


def delta_jumps(angular_step: Any, delta: Any) -> np.ndarray:
    """Which recorded steps are δ-jumps: 1 - cos θ > δ, without cancellation at small angles.

    Args:
        angular_step: θ in radians, ``(..., steps)``; NaN is no jump.
        delta: δ, of a shape that broadcasts, such as ``(configs, 1)``.

    Returns:
        Truth values ``(..., steps)``.

    Example:
        >>> delta_jumps(np.array([0.1, 1.0, np.nan]), 0.4).tolist()
        [False, True, False]
    """
    half = np.sin(np.asarray(angular_step) / 2)
    return 2 * half * half > delta


def rotation(angular_step: Any) -> np.ndarray:
    """-ln cos θ of each step; beyond a right angle, where it does not exist, that of 1 mrad before it."""
    angle = np.asarray(angular_step)
    return rotation_spent(np.minimum(angle, angle.dtype.type(np.pi / 2 - 1e-3)))


def _detect_block(block: Mapping[str, np.ndarray], min_growth: float, min_loss_ratio: float, window: int) -> Periods:
    """The destabilisations of configurations with curves ``(configs, steps)``.

    All curves become one long one, without its missing steps, in which each configuration is a segment.
    """
    norm, loss = block["weight_norm"], block["loss"]
    recorded = np.isfinite(norm) & (norm > 0) & ~np.isinf(loss)
    row, step = np.nonzero(recorded)
    log_norm = np.log(norm[recorded], dtype=np.float64)
    positive = np.where(recorded & (loss > 0), loss, np.nan)[recorded]  # a loss of 0 has no logarithm
    log_loss = np.log(np.maximum(positive, np.finfo(np.float32).tiny), dtype=np.float64)
    firsts = np.searchsorted(row, np.arange(len(norm)))
    lasts = np.append(firsts[1:], len(row))
    noise = segments.noise(log_loss, firsts, order=1), segments.noise(log_norm, firsts, order=2)

    onset = _minima(log_norm, row, np.maximum(np.log(min_growth), NORM_NOISE * noise[1]))
    end, fall = _around(log_norm, firsts[row[onset]], lasts[row[onset]], onset)
    rise_needed = np.maximum(np.log(min_loss_ratio), LOSS_NOISE * noise[0][row[onset]])
    # Of fast periods the window holds the bursts before. No burst comes before the first fall.
    is_first = np.diff(row[onset], prepend=-1) > 0
    starts = firsts[row[onset]], np.where(is_first, firsts[row[onset]], (fall + onset + 1) // 2)
    before = np.fmin(*(segments.median_before(log_loss, start, onset, window) for start in starts))
    # Up to the first known loss from the end on: the one that is missing may have been the highest.
    known = np.append(np.flatnonzero(np.isfinite(log_loss)), len(log_loss))
    peak_end = np.minimum(known[np.searchsorted(known, end)] + 1, lasts[row[onset]])
    rise = segments.highest(log_loss, onset, peak_end) - before
    half_way = segments.first_at_least(log_norm, onset, end, (log_norm[onset] + log_norm[end]) / 2)
    # Where no loss is known on one of the sides, the norm has to do. Of a rise that the record's end cuts off, half of
    # what there is may come soon; but not as steeply as a burst.
    quick = half_way - onset <= np.maximum(SLOWEST_RISE * (onset - fall), 1)
    cut = end + 1 == lasts[row[onset]]
    growth, descent = log_norm[end] - log_norm[onset], log_norm[fall] - log_norm[onset]
    steep = growth / 2 * (onset - fall) * SLOWEST_RISE >= (half_way - onset) * descent
    confirmed = ~(rise < rise_needed) & quick & (steep | ~cut)
    onset = onset[confirmed]
    before, (end, fall) = before[confirmed], _around(log_norm, firsts[row[onset]], lasts[row[onset]], onset)

    burst = slow = np.full(len(onset), np.nan)
    if "angular_step" in block:
        spent = rotation(block["angular_step"][recorded])
        burst = segments.totals(np.nan_to_num(spent), onset, end + 1)
        whole = step[onset] - step[fall] == onset - fall
        slow = np.where(whole, segments.totals(spent, fall, np.maximum(onset, fall + 1)), np.nan)
    columns = (
        step[onset], step[end], norm[recorded][onset], block["effective_lr"][recorded][onset], norm[recorded][end],
        np.exp(before), segments.highest(loss[recorded], onset, end + 1),
        -segments.highest(-loss[recorded], fall, onset + 1), step[fall], norm[recorded][fall],
        np.exp(segments.largest_spike(log_loss, fall, onset + 1)), burst, slow,
    )  # fmt: skip
    count = np.bincount(row[onset], minlength=len(norm))
    return Periods(count, *segments.padded(np.array(columns, np.float64), row[onset], count))


def _minima(log_norm: np.ndarray, row: np.ndarray, prominence: np.ndarray) -> np.ndarray:
    """Positions of the minima, each the last of its plateau, that are deep enough for their configuration."""
    borders = np.flatnonzero(np.diff(row)) + 1
    # A peak of infinite height between two configurations keeps the search for a peak's feet within its own one.
    walled = np.insert(-log_norm, borders, np.inf)
    peaks, found = find_peaks(walled, prominence=prominence.min(initial=np.inf), plateau_size=1)
    inside = np.isfinite(walled[peaks])
    last = found["right_edges"][inside]
    last = last - np.searchsorted(borders + np.arange(len(borders)), last)
    return last[found["prominences"][inside] >= prominence[row[last]]]


def _around(
    log_norm: np.ndarray, first: np.ndarray, last: np.ndarray, onset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each onset, between first and last step of its configuration, the position of the highest norm up to the
    next onset, and of the highest since the one before.
    """
    following = np.minimum(np.append(onset[1:], len(log_norm)), last)
    end = segments.position_of_highest(log_norm, onset, following)
    fall, is_first = np.roll(end, 1), np.diff(first, prepend=-1) > 0
    fall[is_first] = segments.position_of_highest(log_norm, first[is_first], onset[is_first] + 1)
    return end, fall
