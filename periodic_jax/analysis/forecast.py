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
    """Where configurations stand at some steps, ``(configs, origins)``."""

    origin: np.ndarray  # the step
    effective_lr: np.ndarray
    lr: np.ndarray
    lowest_gradient: np.ndarray  # of late
    highest_gradient: np.ndarray
    next_jump: np.ndarray  # step of the first δ-jump from the origin on; NaN if none is recorded


class Forecast(NamedTuple):
    """Forecasts made at some steps, ``(configs, origins)``, as steps of the run."""

    origin: np.ndarray
    soonest: np.ndarray  # origin + t_min
    latest: np.ndarray  # origin + t_max
    expected: np.ndarray


def forecast_origin(telemetry: Mapping[Any, Any], found: Periods, weight_decay: np.ndarray) -> ForecastOrigin:
    """Where each configuration stands half-way down each fall that led to a destabilisation, and at its last step.

    Args:
        telemetry: ``weight_norm``, ``effective_lr``, ``effective_grad_norm``, ``angular_step``: ``(configs, steps)``.
        found: the destabilisations.
        weight_decay: λ ``(configs,)``.

    Returns:
        For each destabilisation, and behind them for the last step.
    """
    elr, norm, gradient, angle = (
        np.asarray(telemetry[name]) for name in ("effective_lr", "weight_norm", "effective_grad_norm", "angular_step")
    )
    configs = len(norm)
    most = found.onset.shape[1]
    table = np.full((len(ForecastOrigin._fields), configs, most + 1), np.nan)
    for i in range(configs):
        known = np.flatnonzero(np.isfinite(elr[i]) & np.isfinite(gradient[i]) & (norm[i] > 0))
        if not len(known):
            continue
        count = int(found.found[i])
        origins = (found.fall[i, :count] + found.onset[i, :count]) // 2
        last_fall = found.end[i, count - 1] if count else known[np.argmax(norm[i, known])]
        falls = [*found.fall[i, :count].astype(int), int(last_fall)]
        delta = elr[i, known[0]] * norm[i, known[0]] ** 2 * weight_decay[i] / 2
        jumps = np.flatnonzero(delta_jumps(angle[i], delta))
        for k, (origin, fall) in enumerate(zip([*origins.astype(int), int(known[-1])], falls, strict=True)):
            at = known[np.searchsorted(known, origin, side="right") - 1]
            recent = gradient[i, max(min((fall + at) // 2, at - LEAST_RECENT), fall, 0) : at + 1]
            recent = recent[np.isfinite(recent) & (recent > 0)]
            following = jumps[np.searchsorted(jumps, at) :]
            lowest, highest = (recent.min(), recent.max()) if len(recent) else (np.nan, np.nan)
            row = (
                at,
                elr[i, at],
                elr[i, at] * norm[i, at] ** 2,
                lowest,
                highest,
                following[0] if len(following) else np.nan,
            )
            table[:, i, k if k < count else most] = row
    return ForecastOrigin(*table)


def forecast(
    now: ForecastOrigin, reference: np.ndarray, weight_decay: np.ndarray, momentum: np.ndarray, free: np.ndarray
) -> Forecast:
    """Forecasts from where configurations stand.

    Args:
        now: ``(configs, origins)``.
        reference: effective learning rates at which a destabilisation is to be expected, ``(configs, origins)``.
        weight_decay: λ ``(configs,)``.
        momentum: μ ``(configs,)``; the window is known for 0 only.
        free: whether the norm is, ``(configs,)``.

    Returns:
        Window and expected step; NaN where there is no decay or nothing to go by.
    """
    column = [np.where(free & (weight_decay > 0), weight_decay, np.nan)[:, None], np.asarray(momentum)[:, None]]
    with np.errstate(all="ignore"):
        rate = now.lr, column[0]
        delta = now.lr * column[0] / 2
        soonest = now.origin + dynamics.t_min(now.effective_lr, now.highest_gradient, delta, *rate)
        latest = now.origin + dynamics.t_max(now.effective_lr, now.lowest_gradient, delta, *rate)
        # The norm falls by the root of what the effective learning rate rises.
        steps = dynamics.falling_edge_steps(np.sqrt(reference / now.effective_lr), 1.0, *rate, column[1])
    plain = (column[1] == 0) & np.isfinite(delta)
    soonest, latest = (np.where(plain, end, np.nan) for end in (soonest, latest))
    return Forecast(now.origin, soonest, latest, now.origin + np.maximum(np.round(steps), 0))


def references(onset_effective_lr: np.ndarray) -> np.ndarray:
    """Effective learning rate to expect: the geometric mean of those at a configuration's own destabilisations so far.

    Args:
        onset_effective_lr: ``(configs, most)``, NaN behind the last.

    Returns:
        ``(configs, most + 1)``: before each destabilisation, NaN for the first, and after the last one. Where a
        configuration had none, the mean of all configurations stands for after the last one.
    """
    configs = len(onset_effective_lr)
    logarithm = np.log(onset_effective_lr)
    known = np.isfinite(logarithm)
    total = np.concatenate([np.zeros((configs, 1)), np.cumsum(np.where(known, logarithm, 0), axis=1)], axis=1)
    count = np.concatenate([np.zeros((configs, 1)), np.cumsum(known, axis=1)], axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.exp(total / count)
    own[:, :-1] = np.where(known, own[:, :-1], np.nan)
    if known.any():
        own[:, -1] = np.where(count[:, -1] > 0, own[:, -1], np.exp(logarithm[known].mean()))
    return own
