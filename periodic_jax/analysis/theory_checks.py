"""Holds the theory against every recorded step: exact relations, the rotation budget, bounds, equilibrium. NumPy only.

Each check counts the steps that violate it, where its assumptions hold, with ℓ and L the lowest and highest effective
gradient norm recorded. Numbers in float32 are taken to agree within `ROUNDING`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax import dynamics
from periodic_jax.analysis.periods import MOST_AT_ONCE, delta_jumps, rotation
from periodic_jax.analysis.regimes import BURN_IN

ROUNDING = 1e-4  # relative; the median step agrees to 1e-7
CHECKS = (
    "norm_recursion", "angular_step", "highest_effective_lr", "attracting_interval", "largest_tangent",
    "smallest_tangent", "t_min", "t_max",
)  # fmt: skip
ASSUMED = {
    "norm_recursion": "plain SGD: no momentum, a free norm",
    "angular_step": "as norm_recursion",
    "highest_effective_lr": "plain SGD, constant learning rate and decay, a² ≥ ½, ℓ > 0; after any step",
    "attracting_interval": "as highest_effective_lr; after the first step inside",
    "largest_tangent": "as attracting_interval",
    "smallest_tangent": "as attracting_interval",
    "t_min": "as highest_effective_lr; δ = ηλ/2, from each step below the threshold that follows a δ-jump",
    "t_max": "as t_min",
}


class Theory(NamedTuple):
    """What the theory says of each configuration, ``(configs,)``, and ``violations`` ``(configs, checks)``."""

    lowest_gradient: np.ndarray  # ℓ: lowest effective gradient norm above 0
    highest_gradient: np.ndarray  # L
    equilibrium_weight_norm: np.ndarray  # predicted from the root mean square of g̃ after the burn-in
    measured_weight_norm: np.ndarray  # fourth root of the mean ρ⁴ after the burn-in
    equilibrium_effective_lr: np.ndarray  # predicted from the same
    measured_effective_lr: np.ndarray  # η over the square of the measured norm
    rotation_spent: np.ndarray  # Σ -ln cos θ
    rotation_budget: np.ndarray  # -Σ ln a + ln(ρ_T/ρ_0); NaN with momentum or a held norm, where there is none
    budget_residual: np.ndarray  # (spent - budget) / (spent - Σ ln a)
    radial_leak: np.ndarray  # root mean square of the cosine between gradient and weights
    violations: np.ndarray  # steps (of t_min, t_max: waits) that violate each of `CHECKS`; NaN where not applicable


def check(telemetry: Mapping[Any, Any], weight_decay: np.ndarray, momentum: np.ndarray, free: np.ndarray) -> Theory:
    """Hold the theory against the steps of each configuration.

    Args:
        telemetry: ``weight_norm``, ``effective_lr``, ``effective_grad_norm``, ``angular_step`` and maybe
            ``radial_leak``, each ``(configs, steps)``; NaN for what is missing, which is left out. The learning rate of
            each step is η̃ρ².
        weight_decay: λ ``(configs,)``.
        momentum: μ ``(configs,)``.
        free: whether the norm is, ``(configs,)``; where it is projected the norm has no recursion.

    Returns:
        Predictions, measurements and violations.
    """
    arrays = {name: np.asarray(values) for name, values in telemetry.items()}
    configs, steps = arrays["weight_norm"].shape
    rows = max(MOST_AT_ONCE // max(steps, 1), 1)
    blocks = [
        _of_block(
            {n: a[i : i + rows] for n, a in arrays.items()}, *(a[i : i + rows] for a in (weight_decay, momentum, free))
        )
        for i in range(0, configs, rows)
    ]
    return Theory(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _of_block(
    block: Mapping[str, np.ndarray], weight_decay: np.ndarray, momentum: np.ndarray, free: np.ndarray
) -> Theory:
    """Of some configurations."""
    norm, elr, gradient, angle = (
        block[name] for name in ("weight_norm", "effective_lr", "effective_grad_norm", "angular_step")
    )
    with np.errstate(all="ignore"):  # NaN and 0 are what is missing, and stay so
        lr = elr * norm**2
        known = np.isfinite(lr) & np.isfinite(gradient) & np.isfinite(angle)
        pair = known[:, :-1] & known[:, 1:]
        place = np.arange(norm.shape[1])
        late = known & (place >= BURN_IN * np.max(np.where(known, place + 1, 0), axis=1, initial=0)[:, None])
        lost = np.where(known, lr, 0) * weight_decay[:, None]  # ηλ of each step
        spent, budget, decayed = _budget(rotation(angle), np.log(norm), lost, pair)
        plain = free & (momentum == 0)
        typical = _mean(lr, known)
        strength = np.sqrt(_mean(gradient**2, late))
        measured = _mean(norm**4, late) ** 0.25
        leak = block.get("radial_leak", np.zeros((1, 1), norm.dtype))
        lowest = np.min(np.where(known & (gradient > 0), gradient, np.inf), axis=1, initial=np.inf)
        highest = np.max(np.where(known, gradient, 0), axis=1, initial=0)
        applies = (free & (weight_decay > 0), typical, weight_decay, momentum)
        equilibrium = [
            np.where(applies[0], predicted(strength, *applies[1:]), np.nan)
            for predicted in (dynamics.equilibrium_weight_norm, dynamics.equilibrium_effective_lr)
        ]
        violations = _violations(
            norm, elr, gradient, angle, lr, lost, leak, known, pair, lowest, highest, momentum, free
        )
        return Theory(
            np.where(np.isfinite(lowest), lowest, np.nan), np.where(highest > 0, highest, np.nan),
            equilibrium[0], measured, equilibrium[1], typical / measured**2,
            spent, np.where(plain, budget, np.nan), np.where(plain, (spent - budget) / (spent + decayed), np.nan),
            np.sqrt(_mean(leak**2 + 0 * norm, known)) if "radial_leak" in block else np.full(len(norm), np.nan),
            violations,
        )  # fmt: skip


def _budget(
    spent: np.ndarray, log_norm: np.ndarray, lost: np.ndarray, pair: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotation spent, rotation budget, and decay -Σ ln a, over the steps whose end is recorded too."""

    def total(values: np.ndarray) -> np.ndarray:
        return np.where(pair, values, 0).sum(1, dtype=np.float64)

    decayed = total(-np.log1p(-lost[:, :-1].astype(np.float64)))
    return total(spent[:, :-1]), decayed + total(np.diff(log_norm)), decayed


def _violations(
    norm: np.ndarray, elr: np.ndarray, gradient: np.ndarray, angle: np.ndarray, lr: np.ndarray, lost: np.ndarray,
    leak: np.ndarray, known: np.ndarray, pair: np.ndarray, lowest: np.ndarray, highest: np.ndarray,
    momentum: np.ndarray, free: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Violations of each of `CHECKS`, ``(configs, checks)``, NaN where its assumptions do not hold."""
    plain = free & (momentum == 0)
    tangent = elr * gradient / (1 - lost)
    wrong = np.zeros((len(CHECKS), len(norm)))
    ratio = (norm[:, 1:] / norm[:, :-1]) ** 2 / ((1 - lost) ** 2 * (1 + tangent**2))[:, :-1]
    slack = ROUNDING + 4 * (tangent * leak)  # a leak adds 2aη⟨∇f, x⟩ to the squared norm
    wrong[0] = (pair & (np.abs(ratio - 1) > slack[:, :-1])).sum(1)
    wrong[1] = (known & (np.abs(angle - np.arctan(tangent)) > slack * np.maximum(angle, 1e-4))).sum(1)
    first_lr, first_lost = (np.nanmin(np.where(known, a, np.inf), axis=1, initial=np.inf) for a in (lr, lost))
    constant = np.max(np.where(known, lr, 0), axis=1, initial=0) < first_lr * (1 + 1e-3)
    applies = plain & constant & (first_lost > 0) & ((1 - first_lost) ** 2 >= 0.5) & np.isfinite(lowest)
    # As rates and decays for the bounds, which only take their product and η̃.
    bound = _column(np.where(applies, lowest, 1)), _column(np.where(applies, highest, 1))
    rate = np.ones((len(norm), 1)), _column(np.where(applies, first_lost, 0.1))
    low, high = dynamics.attracting_interval(*bound, *rate)
    after_step = np.zeros_like(known)
    after_step[:, 1:] = pair
    wrong[2] = (after_step & (elr > dynamics.highest_effective_lr(bound[0], *rate) * (1 + ROUNDING))).sum(1)
    inside = known & (elr >= low) & (elr <= high)
    entered = np.logical_or.accumulate(inside, axis=1) & known
    wrong[3] = (entered & ((elr < low * (1 - ROUNDING)) | (elr > high * (1 + ROUNDING)))).sum(1)
    turned, wide = np.tan(np.minimum(angle, np.pi / 2 - 1e-6)), 1 + 10 * ROUNDING
    wrong[4] = (entered & (turned > dynamics.largest_tangent(*bound, *rate) * wide)).sum(1)
    wrong[5] = (entered & (turned < dynamics.smallest_tangent(*bound, *rate) / wide)).sum(1)
    wrong[6:] = _waits(elr, angle, known, bound, rate)
    holds = [plain, plain, *[applies] * 6]
    return np.where(holds, wrong, np.nan).T


def _waits(
    elr: np.ndarray, angle: np.ndarray, known: np.ndarray, bound: tuple[np.ndarray, np.ndarray],
    rate: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Waits for a δ-jump, δ = ηλ/2, that are shorter than t_min or longer than t_max: ``(2, configs)``."""
    delta = rate[1] / 2
    jumps = delta_jumps(angle, delta) & known
    # A wait begins at each step below the threshold that follows a jump or nothing known, and ends at the next jump.
    below = known & ~jumps
    begins = below.copy()
    begins[:, 1:] &= ~below[:, :-1]
    row, begin = np.nonzero(begins)
    flat = np.flatnonzero(~below.ravel())
    following = np.append(flat, below.size)[np.searchsorted(flat, row * below.shape[1] + begin)]
    end = np.minimum(following - row * below.shape[1], below.shape[1])
    ended = (end < below.shape[1]) & jumps[row, np.minimum(end, below.shape[1] - 1)]
    arguments = delta[row, 0], rate[0][row, 0], rate[1][row, 0]
    start = elr[row, begin].astype(np.float64)
    early = ended & (end - begin < dynamics.t_min(start * (1 + ROUNDING), bound[1][row, 0], *arguments))
    # A wait that what is missing cut short may only be too long.
    overdue = end - begin > dynamics.t_max(start * (1 - ROUNDING), bound[0][row, 0] * (1 - ROUNDING), *arguments) + 1
    return np.stack([np.bincount(row, weights=bad, minlength=len(elr)) for bad in (early, overdue)])


def _column(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, np.float64)[:, None]


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.where(chosen, values, 0).sum(1, dtype=np.float64) / chosen.sum(1)
