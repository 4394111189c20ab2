"""Names what each configuration did, with the evidence that decided it. NumPy only.

Normal training, with decay and a free norm, converges, is periodic, settles in an equilibrium (chaotic: the loss stays
up and the weights wander at the pace that the decay sets), or diverges. On a fixed sphere, or at a fixed effective
learning rate, nothing sets a pace: it converges, settles in a chaotic equilibrium, or diverges to a random walk. A free
norm without decay only grows, so there is no equilibrium. What the record does not tell is undecided.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.analysis.periods import LOSS_NOISE, Periods, detect_periods, rotation
from periodic_jax.analysis.telemetry import aligned, broadcast, of_configurations, steps_last
from periodic_jax.core import segments
from periodic_jax.core.blocks import configs_in_cache, map_blocks
from periodic_jax.core.formatting import counted

REGIMES = ("converging", "periodic", "equilibrium", "diverged", "undecided")
BURN_IN = 1 / 3  # share of the steps left out before anything is judged
LEAST_STEPS = 100  # of which fewer are judged not at all
HALF_SURE_STEPS = 150  # at which half the confidence in what needs time to show is left
LEAST_CONFIDENCE = 0.5  # in a regime; below, it is undecided
LEAST_TURN = 0.03  # radians that the weights turn in all, step by step, before anything can be told of them
LEAST_RATE = 0.1  # of the learning rate after the burn-in that must be left at the end
LEAST_PACE = 0.5  # of an equilibrium, and one over the largest: there the norm is within 2^(1/4) of ρ*
LEAST_LEVEL = 0.8  # loss that an equilibrium keeps; falling like 1/t it keeps 0.6, as measured on digits
STEADY_LEVEL = 0.9  # that it keeps at least where the loss falls significantly; those on digits and CIFAR-10 do
PARTS = 12  # of the steps after the burn-in, whose mean losses tell whether it falls
FALLING = 0.75  # share of the pairs of parts whose later loss is lower: Kendall's test at 1 %, 0.5 by chance
HALF_SURE_DECAY = 0.2  # -Σ ln a at which quiet weights are half as sure a sign of convergence as for ever
MOST_BURSTS = 0.5  # share of an equilibrium's rotation that destabilisations may hold; 0 or 0.85 - 0.99 on digits
LARGEST_ANGLE = np.pi / 4  # median of a training that learns: beyond, each step forgets more than it keeps
LARGEST_LOSS_RATIO = 2.0  # of the loss after the burn-in to the first; or as much as the noise allows
MOST_IN_MEDIAN = 20_000


class Regimes(NamedTuple):
    """What each configuration did, and why: all ``(...)``."""

    regime: np.ndarray  # of `REGIMES`
    confidence: np.ndarray  # 0 to 1, 0.5 where the deciding evidence is at its threshold; not a calibrated probability
    because: np.ndarray  # the deciding evidence as text
    pace: np.ndarray  # `rotation_pace` after the burn-in
    burst_share: np.ndarray  # share of the rotation after the burn-in that is in destabilisations
    level: np.ndarray  # geometric mean of the loss over the last third of the steps, relative to the third before
    loss_ratio: np.ndarray  # median loss after the burn-in over the first loss
    angle: np.ndarray  # median angular step after the burn-in, radians


class Evidence(NamedTuple):
    """Evidence that the rules decide on, each ``(configs,)``, or scalars of one configuration."""

    diverged_at: Any  # step, NaN for never
    is_infinite: Any  # whether loss or norm became infinite
    steps: Any  # reached
    most_loss_ratio: Any  # that training which learns may have, by the noise of its loss
    balance: Any  # confidence in an equilibrium, 0 to 1
    destabilisations: Any  # how many
    decays: Any  # whether there is weight decay
    is_held: Any  # whether norm or effective learning rate are fixed
    turned: Any  # sum of the angular steps, radians; NaN where none is known
    rate_left: Any  # learning rate at the end over the highest after the burn-in; NaN where it is not known
    is_falling: Any  # whether the loss falls significantly, and below `STEADY_LEVEL`
    converges: Any  # confidence in convergence, 0 to 1
    pace: Any  # from here on as in `Regimes`
    burst_share: Any
    level: Any
    loss_ratio: Any
    angle: Any


class Rule(NamedTuple):
    """A regime with the condition under which a configuration is in it."""

    regime: str  # of `REGIMES`
    holds: Callable[[Evidence], Any]  # truth values (configs,)
    confidence: Callable[[Evidence], Any]  # (configs,), before what few steps take off
    reason: Callable[[Evidence], str]  # of one configuration


def classify_regimes(
    telemetry: Mapping[Any, Any], lr: Any, weight_decay: Any, momentum: Any = 0.0, *, is_held: Any = False,
    periods: Periods | None = None,
) -> Regimes:  # fmt: skip
    """Name what each configuration did, by the first of these rules, which are `RULES`, that holds.

    diverged: loss or weights became infinite or NaN.
    undecided: fewer than `LEAST_STEPS` steps.
    diverged: after the burn-in (`BURN_IN`) the median loss is `LARGEST_LOSS_RATIO` times the first or more, and beyond
    the loss's noise; or the median angular step is `LARGEST_ANGLE` or more, a random walk.
    undecided: the weights have hardly turned (less than `LEAST_TURN` in all), or the schedule has ended (less than
    `LEAST_RATE` of the learning rate is left).
    equilibrium: rotation keeps pace with the decay (at least `LEAST_PACE`, at most 1 / `LEAST_PACE`), less than
    `MOST_BURSTS` of it is in destabilisations, and the loss has stopped falling: from the middle third of the steps to
    the last it keeps at least `LEAST_LEVEL`, and `STEADY_LEVEL` where its fall is significant. Where norm or effective
    learning rate are held only the loss decides. Never without decay otherwise.
    periodic: at least one destabilisation.
    converging: the rest, as the loss keeps less than `LEAST_LEVEL`, or the weights shrink at less than `LEAST_PACE`.

    Undecided is also what is told with less confidence than `LEAST_CONFIDENCE`: a loss that falls, but slowly; weights
    that are quiet before decay could change them; few steps. The reason then names the regime that comes nearest.

    Args:
        telemetry: as `detect_periods`, with ``angular_step``; and with ``diverged_at`` ``(...)``, NaN for never, to
            distinguish a run that diverged to NaN from one that has not come so far.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``, or with named dimensions, as ``ds.lr``; λ = 0 also where norm or
            effective learning rate are fixed. η is that of each step, ``effective_lr`` times ρ², where these are
            recorded.
        is_held: whether norm or effective learning rate are fixed, ``(...)``.
        periods: the result of `detect_periods`, if known.

    Returns:
        Regime, confidence and evidence of each configuration.

    Example:
        >>> loss, angle, norm = 1 / np.arange(1, 1001), np.full(1000, 1e-3), 0.999 ** np.arange(1000)
        >>> curves = {"loss": loss, "weight_norm": norm, "effective_lr": norm**-2, "angular_step": angle}
        >>> regimes = classify_regimes(curves, 1.0, 1e-3)
        >>> print(regimes.regime, regimes.because)
        converging rotation at 0.00 of the decay's pace, loss x 0.59 and falling from the middle third to the last
    """
    periods = detect_periods(telemetry) if periods is None else periods
    arrays = steps_last(telemetry, ("loss", "weight_norm", "effective_lr", "angular_step"))
    lr, weight_decay, momentum, is_held = (
        of_configurations(telemetry, value) for value in (lr, weight_decay, momentum, is_held)
    )
    lead, configs = arrays["loss"].shape[:-1], math.prod(arrays["loss"].shape[:-1])
    diverged_at = of_configurations(telemetry, telemetry["diverged_at"]) if "diverged_at" in telemetry else np.nan
    scalars = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "diverged_at": diverged_at}
    scalars["is_held"] = is_held
    arrays |= {name: broadcast(name, value, lead) for name, value in scalars.items()}
    arrays |= {name: getattr(periods, name) for name in ("found", "onset", "rotation")}
    flat = {name: array.reshape((configs, *array.shape[len(lead) :])) for name, array in arrays.items()}
    evidence = map_blocks(
        lambda block: _evidence({name: array[block] for name, array in flat.items()}),
        configs, configs_in_cache(arrays["loss"].shape[-1]),
    )  # fmt: skip
    choice = np.argmax([rule.holds(evidence) for rule in RULES], axis=0)
    confidence = np.select([choice == k for k in range(len(RULES))], [rule.confidence(evidence) for rule in RULES])
    regime = np.array([rule.regime for rule in RULES])[choice]
    # A divergence shows at once.
    confidence *= np.where(regime == "diverged", 1, evidence.steps / (evidence.steps + HALF_SURE_STEPS))
    each = zip(choice, map(Evidence._make, zip(*evidence, strict=True)), strict=True)
    reasons = np.array([RULES[k].reason(case) for k, case in each], object)
    for i in np.flatnonzero((regime != "undecided") & (confidence < LEAST_CONFIDENCE)):
        reasons[i] = f"{regime[i]} at a confidence of {confidence[i]:.2f} only: {reasons[i]}"
    is_decided = confidence >= LEAST_CONFIDENCE
    regime, confidence = np.where(is_decided, regime, "undecided"), np.where(is_decided, confidence, 0)
    columns = (regime, confidence, reasons, *(getattr(evidence, name) for name in Regimes._fields[3:]))
    return Regimes(*(column.reshape(lead) for column in columns))


def rotation_pace(angular_step: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> np.ndarray:
    """Mean rotation per step over what keeps the norm constant: mean(-ln cos θ) / -ln(1 - ηλ/(1+μ)).

    1 in an equilibrium and on average over whole periods; far below 1 while the weights only shrink. Infinite without
    decay; NaN without any step.

    Args:
        angular_step: radians ``(..., steps)``; NaN is left out.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``.

    Example:
        >>> float(rotation_pace(np.full(100, np.arccos(1 - 1e-3)), 1.0, 1e-3).round(3))
        1.0
    """
    angular_step, lr, weight_decay, momentum = aligned(angular_step, lr, weight_decay, momentum)
    spent = rotation(angular_step)
    needed = -np.log1p(-np.asarray(lr) * np.asarray(weight_decay) / (1 + np.asarray(momentum)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nansum(spent, axis=-1, dtype=np.float64) / np.isfinite(spent).sum(-1) / needed


def _pace_and_level(e: Evidence) -> str:
    fall = " and falling" if e.is_falling else ""
    parts = ["no decay sets a pace"] if not e.decays else []
    if e.decays and np.isfinite(e.pace):
        parts.append(f"rotation at {e.pace:.2f} of the decay's pace")
    if np.isfinite(e.level):
        parts.append(f"loss x {e.level:.2f}{fall} from the middle third to the last")
    return ", ".join(parts) or "neither rotation nor loss is known"


RULES = (  # the first that holds wins
    Rule(
        "diverged", lambda e: np.isfinite(e.diverged_at) | e.is_infinite, lambda e: np.ones(len(e.steps)),
        lambda e: "not finite" + (f" at step {e.diverged_at:.0f}" if np.isfinite(e.diverged_at) else ""),
    ),
    Rule(
        "undecided", lambda e: e.steps < LEAST_STEPS, lambda e: np.zeros(len(e.steps)),
        lambda e: f"only {counted(e.steps, 'step')}" if e.steps else "no step with both loss and weight norm",
    ),
    Rule(
        "diverged", lambda e: e.loss_ratio >= e.most_loss_ratio,
        lambda e: _beyond(e.loss_ratio, e.most_loss_ratio, 1), lambda e: f"loss {e.loss_ratio:.3g} times the first",
    ),
    Rule(
        "diverged", lambda e: e.angle >= LARGEST_ANGLE, lambda e: _beyond(e.angle, LARGEST_ANGLE, 4),
        lambda e: f"a step turns by {np.degrees(e.angle):.0f} degrees, a random walk",
    ),
    Rule(
        "undecided", lambda e: e.turned < LEAST_TURN, lambda e: np.zeros(len(e.steps)),
        lambda e: f"the weights have turned by {np.degrees(e.turned):.2g} degrees in all",
    ),
    Rule(
        "undecided", lambda e: e.rate_left < LEAST_RATE, lambda e: np.zeros(len(e.steps)),
        lambda e: f"the schedule has ended, at {e.rate_left:.2g} of the learning rate"
        + (f", after {counted(e.destabilisations, 'destabilisation')}" if e.destabilisations else ""),
    ),
    Rule("equilibrium", lambda e: (e.balance >= 0.5) & ~e.is_falling, lambda e: e.balance, _pace_and_level),
    Rule(
        "periodic", lambda e: e.destabilisations > 0,
        lambda e: np.minimum(1 - e.balance, e.destabilisations / (e.destabilisations + 0.25)),
        lambda e: counted(e.destabilisations, "destabilisation")
        + (f", with {e.burst_share:.0%} of the rotation" if e.burst_share > 0 else ""),
    ),
    Rule("converging", lambda e: np.ones(len(e.steps), bool), lambda e: e.converges, _pace_and_level),
)  # fmt: skip


def after_burn_in(known: np.ndarray) -> np.ndarray:
    """Which of the known steps ``(configs, steps)`` come after the first `BURN_IN` of all steps up to the last known.

    Example:
        >>> after_burn_in(np.array([[True, True, True, False]])).tolist()
        [[False, True, True, False]]
    """
    return known & (np.arange(known.shape[1]) >= BURN_IN * segments.ends(known)[:, None])


def _evidence(block: Mapping[str, np.ndarray]) -> Evidence:
    """The evidence on some configurations: telemetry, hyperparameters and fields of `Periods` by name."""
    loss, norm, angle = (block[name] for name in ("loss", "weight_norm", "angular_step"))
    known = np.isfinite(loss) & np.isfinite(norm)
    late, steps = after_burn_in(known), segments.ends(known)
    place = np.arange(loss.shape[1])
    log_loss = np.log(np.where(known & (loss > 0), loss, np.nan))
    noise = segments.noise(log_loss.ravel(), len(place) * np.arange(len(loss)), 1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        decay, balanced, rate_left = _decay(block, known, late, steps)
        turns = np.isfinite(angle)
        spent = np.where(late, np.nan_to_num(rotation(angle)), 0).sum(1, dtype=np.float64)
        pace = np.where((late & turns).any(1), spent, np.nan) / np.where(late & turns, balanced, 0).sum(1)
        bursts = np.where(block["onset"] >= BURN_IN * steps[:, None], block["rotation"], 0).sum(1)
        burst_share = np.minimum(bursts / spent, 1)
        last, judged = place >= (1 + BURN_IN) / 2 * steps[:, None], late & np.isfinite(log_loss)
        level = np.exp(segments.mean(log_loss, judged & last) - segments.mean(log_loss, judged & ~last))
        first = loss[np.arange(len(loss)), known.argmax(1)] if loss.size else np.full(len(loss), np.nan)
        loss_ratio = _median(loss, late) / first
        turned = np.where((known & turns).any(1), np.where(known & turns, angle, 0).sum(1, dtype=np.float64), np.nan)
        falling = falling_pairs(log_loss, judged)
    decays, is_held = block["lr"] * block["weight_decay"] > 0, block["is_held"].astype(bool)
    keeps_pace = np.fmin(_beyond(pace, LEAST_PACE, 2), 1 - _beyond(pace, 1 / LEAST_PACE, 2))
    paced = np.where(decays, keeps_pace, np.where(is_held & (spent > 0), 1.0, 0.0))
    outside = 1 - np.nan_to_num(burst_share) * (0.5 / MOST_BURSTS)
    keeps_level = _beyond(level, LEAST_LEVEL, 8)
    quiet = np.where(decays & np.isfinite(pace), 1 - _beyond(pace, LEAST_PACE, 2), 0) * _beyond(
        decay, HALF_SURE_DECAY, 1
    )
    return Evidence(
        diverged_at=block["diverged_at"], is_infinite=np.isinf(loss).any(1) | np.isinf(norm).any(1), steps=steps,
        most_loss_ratio=np.maximum(LARGEST_LOSS_RATIO, np.exp(LOSS_NOISE * noise)),
        balance=np.fmin(np.fmin(paced, keeps_level), outside), destabilisations=block["found"], decays=decays,
        is_held=is_held, turned=turned, rate_left=rate_left, is_falling=(falling >= FALLING) & (level < STEADY_LEVEL),
        converges=np.maximum(np.where(np.isfinite(level), 1 - keeps_level, 0), quiet), pace=pace,
        burst_share=burst_share, level=level, loss_ratio=loss_ratio, angle=_median(angle, late),
    )  # fmt: skip


def _decay(
    block: Mapping[str, np.ndarray], known: np.ndarray, late: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-Σ ln a of each configuration, rotation per step that keeps the norm constant, and share of the rate left at the
    end, from the learning rate η = η̃ρ² of each step.
    """
    elr = np.where(known, block["effective_lr"], np.nan)
    lr = elr * np.square(block["weight_norm"])
    rate, momentum = np.where(np.isfinite(lr), lr, block["lr"][:, None]), block["momentum"][:, None]
    # The rate that is not held changes with the norm; a schedule takes both down.
    lefts = []
    for values in (lr, elr):
        highest = np.max(np.where(late & np.isfinite(values), values, 0), axis=1, initial=0)
        end = values[np.arange(len(values)), steps - 1] if values.size else np.full(len(values), np.nan)
        lefts.append(np.where((highest == 0) & (end == 0), 0, end / highest))
    shrink = rate * block["weight_decay"][:, None]
    decay = np.where(known, -np.log1p(-shrink / (1 - momentum)), 0).sum(1, dtype=np.float64)
    return decay, -np.log1p(-shrink / (1 + momentum)), np.fmax(*lefts)


def falling_pairs(log_loss: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Share of the pairs of `PARTS` equal parts of the chosen steps whose later one has the lower mean; ``(configs,)``.

    Half of them by chance; Kendall's rank correlation with time is 1 minus twice the share. NaN where a part has none.

    Example:
        >>> curves = np.stack([-np.arange(48.0), np.arange(48) % 4])
        >>> falling_pairs(curves, np.full(curves.shape, True)).tolist()
        [1.0, 0.0]
    """
    order = np.cumsum(chosen, axis=1)
    part = np.minimum((order - 1) * PARTS // np.maximum(order[:, -1:], 1), PARTS - 1) if order.size else order
    place = (part + PARTS * np.arange(len(part))[:, None])[chosen]
    count = np.bincount(place, minlength=PARTS * len(part)).reshape(-1, PARTS)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(place, log_loss[chosen], PARTS * len(part)).reshape(-1, PARTS) / count
    earlier, later = np.triu_indices(PARTS, 1)
    return np.where((count > 0).all(1), (means[:, later] < means[:, earlier]).mean(1), np.nan)


def _beyond(value: np.ndarray, threshold: Any, steepness: int) -> np.ndarray:
    """How sure a value is above its threshold: x^k / (1 + x^k) of their ratio x, 0.5 at the threshold; 0 for NaN."""
    ratio = np.clip(np.nan_to_num(value, nan=0, posinf=np.inf) / threshold, 0, 1e6)
    return ratio**steepness / (1 + ratio**steepness)


def _median(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Median of the chosen, finite values of each row, of at most about `MOST_IN_MEDIAN` evenly spaced ones."""
    every = max(values.shape[1] // MOST_IN_MEDIAN, 1)
    part = np.where(chosen & np.isfinite(values), values, np.nan)[:, ::every]
    empty = np.isnan(part).all(1)
    return np.where(
        empty, np.nan, np.nanmedian(np.where(np.expand_dims(empty, 1), 0, part), axis=1) if part.size else np.nan
    )
