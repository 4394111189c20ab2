"""When the next destabilisation can come, and when it is to be expected. NumPy only.

The window is that of the next δ-jump, δ = ηλ/2, from `dynamics.t_min` and `dynamics.t_max`, if the effective gradient
norm stays between its lowest and highest of late. A destabilisation begins with a step that makes the norm grow, which
is a δ-jump: as long as the gradient keeps to that range it cannot come before the window. Plain SGD only. The expected
step is that at which decay alone brings the effective learning rate to where earlier destabilisations began; it knows
nothing of the window.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax import dynamics
from periodic_jax.analysis.periods import Periods, delta_jumps

LEAST_RECENT = 50  # steps over which ℓ and L are taken; otherwise the later half of the fall so far


class ForecastOrigin(NamedTuple):
    """States from which to forecast, ``(configs, 1 + most)``: of the last step, then of each falling edge."""

    origin: np.ndarray  # the step
    effective_lr: np.ndarray  # η̃
    lr: np.ndarray  # η = η̃ρ²
    lowest_gradient: np.ndarray  # ℓ of late
    highest_gradient: np.ndarray  # L of late
    next_jump: np.ndarray  # step of the first δ-jump from the origin on; NaN if none is recorded


class Forecast(NamedTuple):
    """Forecasts, as steps of the run, in the shape of their `ForecastOrigin`."""

    origin: np.ndarray
    soonest: np.ndarray  # origin + t_min
    latest: np.ndarray  # origin + t_max
    expected: np.ndarray


def forecast_origin(telemetry: Mapping[Any, Any], periods: Periods, weight_decay: np.ndarray) -> ForecastOrigin:
    """The state of each configuration at its last step, and half-way down the falling edge before each destabilisation.

    Args:
        telemetry: ``weight_norm``, ``effective_lr``, ``effective_grad_norm``, ``angular_step``: ``(configs, steps)``.
        periods: the destabilisations, ``(configs, most)``.
        weight_decay: λ ``(configs,)``.

    Returns:
        The states; NaN behind the last destabilisation.

    Example:
        >>> from periodic_jax.analysis.periods import detect_periods
        >>> norm = 0.999 ** np.arange(100)[None]
        >>> curves = {"loss": norm, "weight_norm": norm, "effective_lr": norm**-2, "effective_grad_norm": norm}
        >>> curves |= {"angular_step": 0 * norm}
        >>> forecast_origin(curves, detect_periods(curves), np.array([1e-3])).origin.tolist()
        [[99.0]]
    """
    elr, norm, gradient, angle = (
        np.asarray(telemetry[name]) for name in ("effective_lr", "weight_norm", "effective_grad_norm", "angular_step")
    )
    table = np.full((len(ForecastOrigin._fields), len(norm), 1 + periods.onset.shape[1]), np.nan)
    for i in range(len(norm)):
        known = np.flatnonzero(np.isfinite(elr[i]) & np.isfinite(gradient[i]) & (norm[i] > 0))
        if not len(known):
            continue
        count = int(periods.found[i])
        fall, onset = (steps[i, :count].astype(int) for steps in (periods.fall, periods.onset))
        last_fall = int(periods.end[i, count - 1]) if count else known[np.argmax(norm[i, known])]
        delta = elr[i, known[0]] * norm[i, known[0]] ** 2 * weight_decay[i] / 2
        jumps = np.flatnonzero(delta_jumps(angle[i], delta))
        starts, origins = [last_fall, *fall], [known[-1], *(fall + onset) // 2]
        for k, (start, origin) in enumerate(zip(starts, origins, strict=True)):
            at = known[np.searchsorted(known, origin, side="right") - 1]
            recent = gradient[i, max(min((start + at) // 2, at - LEAST_RECENT), start, 0) : at + 1]
            recent = recent[np.isfinite(recent) & (recent > 0)]
            following = jumps[np.searchsorted(jumps, at) :]
            lowest, highest = (recent.min(), recent.max()) if len(recent) else (np.nan, np.nan)
            next_jump = following[0] if len(following) else np.nan
            table[:, i, k] = at, elr[i, at], elr[i, at] * norm[i, at] ** 2, lowest, highest, next_jump
    return ForecastOrigin(*table)


def forecast(
    state: ForecastOrigin, reference: np.ndarray, weight_decay: np.ndarray, momentum: np.ndarray, is_free: np.ndarray
) -> Forecast:
    """Forecast the next destabilisation of each state.

    Args:
        state: ``(configs, 1 + most)``.
        reference: effective learning rates at which to expect a destabilisation, ``(configs, 1 + most)``.
        weight_decay: λ ``(configs,)``.
        momentum: μ ``(configs,)``; the window is known for 0 only.
        is_free: whether the norm is not projected, ``(configs,)``.

    Returns:
        Window and expected step; NaN without decay, or without what they follow from.

    Example:
        >>> one = np.ones((1, 1))
        >>> state = ForecastOrigin(99 * one, 1e-3 * one, one, one, one, np.nan * one)
        >>> ahead = forecast(state, 2e-3 * one, np.array([1e-3]), np.zeros(1), np.array([True]))
        >>> ahead.soonest.item(), ahead.latest.item(), ahead.expected.item()
        (1824.0, 3550.0, 445.0)
    """
    decay, momentum = np.where(is_free & (weight_decay > 0), weight_decay, np.nan)[:, None], momentum[:, None]
    with np.errstate(all="ignore"):
        delta, rate = state.lr * decay / 2, (state.lr, decay)
        soonest = state.origin + dynamics.t_min(state.effective_lr, state.highest_gradient, delta, *rate)
        latest = state.origin + dynamics.t_max(state.effective_lr, state.lowest_gradient, delta, *rate)
        # The norm falls by the root of what the effective learning rate rises.
        steps = dynamics.falling_edge_steps(np.sqrt(reference / state.effective_lr), 1.0, *rate, momentum)
    is_plain = (momentum == 0) & np.isfinite(delta)
    soonest, latest = (np.where(is_plain, end, np.nan) for end in (soonest, latest))
    return Forecast(state.origin, soonest, latest, state.origin + np.maximum(np.round(steps), 0))


def references(onset_effective_lr: np.ndarray) -> np.ndarray:
    """Effective learning rate to expect: the geometric mean of those at a configuration's own destabilisations so far.

    Args:
        onset_effective_lr: ``(configs, most)``, NaN behind the last.

    Returns:
        ``(configs, 1 + most)``: after the last destabilisation, then before each of them, NaN for the first. For a
        configuration without any, the first is the mean of all configurations.

    Example:
        >>> references(np.array([[1.0, 4.0], [np.nan, np.nan]])).round(3).tolist()
        [[2.0, nan, 1.0], [2.0, nan, nan]]
    """
    logarithm = np.log(onset_effective_lr)
    known = np.isfinite(logarithm)
    first = np.zeros((len(known), 1))
    total = np.concatenate([first, np.cumsum(np.where(known, logarithm, 0), axis=1)], axis=1)
    count = np.concatenate([first, np.cumsum(known, axis=1)], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.exp(total / count)
    before, last = np.where(known, mean[:, :-1], np.nan), mean[:, -1:]
    if known.any():
        last = np.where(count[:, -1:] > 0, last, np.exp(logarithm[known].mean()))
    return np.concatenate([last, before], axis=1)
