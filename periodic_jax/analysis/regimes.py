"""Names what each configuration did, with the evidence that decided it. NumPy only.

Normal training, with decay and a free norm, converges, is periodic, settles in an equilibrium (chaotic: the loss stays
up and the weights wander at the pace that the decay sets), or diverges. At a fixed effective learning rate, or without
decay, nothing sets a pace: it converges, settles in a chaotic equilibrium, or diverges to a random walk.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.analysis.periods import LOSS_NOISE, MOST_AT_ONCE, Periods, detect_periods, rotation
from periodic_jax.core import segments
from periodic_jax.core.formatting import counted

REGIMES = ("converging", "periodic", "equilibrium", "diverged", "undecided")
BURN_IN = 1 / 3  # share of the steps left out before anything is judged
LEAST_STEPS = 100  # of which fewer are judged not at all, and at which half the confidence is left
LEAST_PACE = 0.5  # of an equilibrium: there the norm is within 2^(1/4) of ρ*
LEAST_LEVEL = 0.8  # loss that an equilibrium keeps; falling like 1/t it keeps 0.6, as measured on digits
MOST_BURSTS = 0.5  # share of an equilibrium's rotation that destabilisations may hold; 0 or 0.85 - 0.99 on digits
LARGEST_ANGLE = np.pi / 4  # median of a training that learns: beyond, each step forgets more than it keeps
LARGEST_LOSS_RATIO = 2.0  # of the loss after the burn-in to the first; or as much as the noise allows
MOST_IN_MEDIAN = 20_000


class Regimes(NamedTuple):
    """What each configuration did, and why: all ``(...)``."""

    regime: np.ndarray  # of `REGIMES`
    confidence: np.ndarray  # 0 to 1, 0.5 where the deciding evidence is at its threshold; not a calibrated probability
    because: np.ndarray  # the deciding evidence in words
    pace: np.ndarray  # `rotation_pace` after the burn-in
    burst_share: np.ndarray  # share of the rotation after the burn-in that destabilisations hold
    level: np.ndarray  # geometric mean of the loss over the last third of the steps, relative to the third before
    loss_ratio: np.ndarray  # median loss after the burn-in over the first loss
    angle: np.ndarray  # median angular step after the burn-in, radians


def classify_regimes(
    telemetry: Mapping[Any, Any], lr: Any, weight_decay: Any, momentum: Any = 0.0, *, periods: Periods | None = None
) -> Regimes:
    """Name what each configuration did, by the first of these that holds.

    diverged: loss or weights became infinite or NaN.
    undecided: fewer than `LEAST_STEPS` steps.
    diverged: after the burn-in (`BURN_IN`) the median loss is `LARGEST_LOSS_RATIO` times the first or more, and beyond
    the loss's noise; or the median angular step is `LARGEST_ANGLE` or more, a random walk.
    equilibrium: rotation keeps pace with the decay (at least `LEAST_PACE`), less than `MOST_BURSTS` of it is in
    destabilisations, and the loss has stopped falling (keeps at least `LEAST_LEVEL` from the middle third of the steps
    to the last). Without decay only the loss tells.
    periodic: at least one destabilisation.
    converging: the rest.

    Args:
        telemetry: as `detect_periods`, with ``angular_step``; and with ``diverged_at`` ``(...)``, NaN for never, to
            tell a run that diverged to NaN from one that has not come so far.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``; λ = 0 also where norm or effective learning rate are held.
        periods: what `detect_periods` found, if known.

    Returns:
        Regime, confidence and evidence of each configuration.

    Example:
        >>> loss, angle = 1 / np.arange(1, 301), np.full(300, 1e-6)
        >>> curves = {"loss": loss, "weight_norm": 0.999 ** np.arange(300), "effective_lr": loss, "angular_step": angle}
        >>> found = classify_regimes(curves, 1.0, 1e-3)
        >>> print(found.regime, found.because)
        converging rotation at 0.00 of the decay's pace, loss x 0.59 from the middle third to the last
    """
    found = detect_periods(telemetry) if periods is None else periods
    loss, norm, angle = (np.asarray(telemetry[name]) for name in ("loss", "weight_norm", "angular_step"))
    lead, steps = norm.shape[:-1], norm.shape[-1]
    diverged_at = np.asarray(telemetry["diverged_at"], np.float64) if "diverged_at" in telemetry else np.nan
    flat = [array.reshape(math.prod(lead), steps) for array in (loss, norm, angle)]
    each = [np.broadcast_to(value, lead).ravel() for value in (lr, weight_decay, momentum, diverged_at, found.found)]
    bursts = [a.reshape(math.prod(lead), a.shape[-1]) for a in (found.onset, found.rotation)]
    rows = max(MOST_AT_ONCE // max(steps, 1), 1)
    blocks = [_of_block(*(a[i : i + rows] for a in (*flat, *each, *bursts))) for i in range(0, math.prod(lead), rows)]
    columns = [np.concatenate(parts) for parts in zip(*blocks, strict=True)] if blocks else [np.zeros(0)] * 8
    return Regimes(*(column.reshape(lead) for column in columns))


def rotation_pace(angular_step: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> np.ndarray:
    """Mean rotation per step over what keeps the norm constant: mean(-ln cos θ) / -ln(1 - ηλ/(1+μ)).

    1 in an equilibrium and on average over whole periods; far below 1 while the weights only shrink. Infinite without
    decay; NaN without any step.

    Args:
        angular_step: radians ``(..., steps)``; NaN is left out.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``.
    """
    spent = rotation(angular_step)
    needed = -np.log1p(-np.asarray(lr) * np.asarray(weight_decay) / (1 + np.asarray(momentum)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nansum(spent, axis=-1, dtype=np.float64) / np.isfinite(spent).sum(-1) / needed


def _of_block(
    loss: np.ndarray, norm: np.ndarray, angle: np.ndarray, lr: np.ndarray, weight_decay: np.ndarray,
    momentum: np.ndarray, diverged_at: np.ndarray, count: np.ndarray, onset: np.ndarray, burst: np.ndarray,
) -> Regimes:  # fmt: skip
    """Of configurations with curves ``(configs, steps)``."""
    known = np.isfinite(loss) & np.isfinite(norm)
    place = np.arange(loss.shape[1])
    reached = np.max(np.where(known, place + 1, 0), axis=1, initial=0)
    begin = BURN_IN * reached[:, None]
    late = known & (place >= begin)
    log_loss = np.log(np.where(known & (loss > 0), loss, np.nan))
    noise = np.array([segments.noise(row, np.zeros(1, int), 1)[0] for row in log_loss])
    with np.errstate(divide="ignore", invalid="ignore"):
        pace = rotation_pace(np.where(late, angle, np.nan), lr, weight_decay, momentum)
        spent = np.where(late, np.nan_to_num(rotation(angle)), 0).sum(1, dtype=np.float64)
        burst_share = np.minimum(np.where(onset >= begin, burst, 0).sum(1) / spent, 1)
        middle = place >= (1 + BURN_IN) / 2 * reached[:, None]
        level = np.exp(_mean(log_loss, late & middle) - _mean(log_loss, late & ~middle))
        first = loss[np.arange(len(loss)), known.argmax(1)] if loss.size else np.full(len(loss), np.nan)
        loss_ratio = _median(loss, late) / first
    turn, decays = _median(angle, late), lr * weight_decay > 0

    paced = np.where(decays, _beyond(pace, LEAST_PACE, 2), np.where(spent > 0, 1.0, 0.0))
    settled = np.fmin(
        np.fmin(paced, _beyond(level, LEAST_LEVEL, 8)), 1 - np.nan_to_num(burst_share) * (0.5 / MOST_BURSTS)
    )
    most = np.maximum(LARGEST_LOSS_RATIO, np.exp(LOSS_NOISE * noise))
    bursting = np.minimum(1 - settled, count / (count + 0.25))
    conditions = {  # in order, each with the confidence that it gives
        ("diverged", 0): (np.isfinite(diverged_at) | np.isinf(loss).any(1) | np.isinf(norm).any(1), 1.0),
        ("undecided", 1): (reached < LEAST_STEPS, 0.0),
        ("diverged", 2): (loss_ratio >= most, _beyond(loss_ratio, most, 1)),
        ("diverged", 3): (turn >= LARGEST_ANGLE, _beyond(turn, LARGEST_ANGLE, 4)),
        ("equilibrium", 4): (settled >= 0.5, settled),
        ("periodic", 5): (count > 0, bursting),
        ("converging", 6): (np.full(len(loss), True), 1 - settled),
    }
    choice = np.argmax([condition for condition, _ in conditions.values()], axis=0)
    certain = np.select([choice == k for k in range(7)], [confidence for _, confidence in conditions.values()])
    certain = np.where(choice == 0, 1, certain * reached / (reached + LEAST_STEPS))
    regime = np.array([name for name, _ in conditions])[choice]
    numbers = zip(choice, diverged_at, reached, loss_ratio, turn, burst_share, pace, level, count, decays, strict=True)
    because = np.array([_words(*row) for row in numbers], object)
    return Regimes(regime, certain, because, pace, burst_share, level, loss_ratio, turn)


def _beyond(value: np.ndarray, threshold: Any, steepness: int) -> np.ndarray:
    """How sure a value is above its threshold: x^k / (1 + x^k) of their ratio x, 0.5 at the threshold; 0 for NaN."""
    ratio = np.clip(np.nan_to_num(value, nan=0, posinf=np.inf) / threshold, 0, 1e6)
    return ratio**steepness / (1 + ratio**steepness)


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen, finite values of each row, NaN where there are none."""
    chosen = chosen & np.isfinite(values)
    return np.where(chosen, values, 0).sum(1, dtype=np.float64) / chosen.sum(1)


def _median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Median of the chosen, finite values of each row, of at most about `MOST_IN_MEDIAN` evenly spaced ones."""
    every = max(values.shape[1] // MOST_IN_MEDIAN, 1)
    part = np.where(chosen & np.isfinite(values), values, np.nan)[:, ::every]
    empty = np.isnan(part).all(1)
    return np.where(
        empty, np.nan, np.nanmedian(np.where(np.expand_dims(empty, 1), 0, part), axis=1) if part.size else np.nan
    )


def _words(
    choice: int, diverged_at: float, reached: int, loss_ratio: float, turn: float, burst_share: float, pace: float,
    level: float, count: int, decays: bool,
) -> str:  # fmt: skip
    """The evidence for the chosen condition, for people."""
    at = f" at step {diverged_at:.0f}" if np.isfinite(diverged_at) else ""
    keeps = f"rotation at {pace:.2f} of the decay's pace" if decays else "no decay sets a pace"
    level_text = f"loss x {level:.2f} from the middle third to the last"
    jumps = counted(count, "destabilisation")
    held = f", which hold {burst_share:.0%} of the rotation" if burst_share > 0 else ""
    return (
        f"not finite{at}",
        f"only {counted(reached, 'step')}",
        f"loss {loss_ratio:.3g} times the first",
        f"a step turns by {np.degrees(turn):.0f} degrees, a random walk",
        f"{keeps}, {level_text}",
        f"{jumps}{held}",
        f"{keeps}, {level_text}",
    )[choice]
