"""Finds destabilisations in recorded trajectories and names the regime of each configuration. NumPy and SciPy only.

In a period the weight norm falls (phase A: decay alone, the effective learning rate rises) until training
destabilises, and then jumps up within a few steps (phase B). The norm has no mini-batch noise, so its local minima
mark the onsets; the loss confirms them.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import find_peaks

REGIMES = ("converging", "periodic", "equilibrium", "diverged")


class Periods(NamedTuple):
    """Destabilisations of each configuration, in order, padded with NaN at the end: ``(..., most)`` but ``found``
    ``(...)``.
    """

    found: np.ndarray  # how many
    onset: np.ndarray  # step at which the weight norm is lowest, just before it jumps
    end: np.ndarray  # step at which the norm is highest before it falls again
    onset_weight_norm: np.ndarray
    onset_effective_lr: np.ndarray
    peak_weight_norm: np.ndarray
    loss_before: np.ndarray  # median loss over the steps before the onset
    peak_loss: np.ndarray  # highest loss between onset and end


def detect_periods(
    telemetry: Mapping[Any, Any], *, min_growth: float = 1.1, min_loss_ratio: float = 3.0, window: int = 50
) -> Periods:
    """Find the destabilisations of every configuration.

    An onset is a local minimum of ln ρ of prominence at least ln ``min_growth`` around which the loss rises: its
    maximum while the norm grows is at least ``min_loss_ratio`` times its median over the ``window`` steps before. A
    slow descent has no such minimum.

    Args:
        telemetry: a Dataset or mapping with ``loss``, ``weight_norm`` and ``effective_lr``, each ``(..., steps)``; NaN
            after a divergence.
        min_growth: least ratio of the norm after the jump to the norm before it.
        min_loss_ratio: least ratio of the loss at its peak to the loss before.
        window: steps over which the loss before is taken.

    Returns:
        The destabilisations, with the leading dimensions of the telemetry.

    Example:
        >>> rho = np.concatenate([np.geomspace(4, 2, 100), np.geomspace(4, 2, 100)])
        >>> loss = np.where(np.arange(200) == 100, 1.0, 0.01)
        >>> detect_periods({"loss": loss, "weight_norm": rho, "effective_lr": 0.1 / rho**2}).onset.tolist()
        [99.0]
    """
    loss, norm, elr = (np.asarray(telemetry[name], np.float64) for name in ("loss", "weight_norm", "effective_lr"))
    lead, steps = norm.shape[:-1], norm.shape[-1]
    flat = (math.prod(lead), steps)
    curves = zip(loss.reshape(flat), norm.reshape(flat), elr.reshape(flat), strict=True)
    found = [_of_one(*curve, min_growth, min_loss_ratio, window) for curve in curves]
    most = max((len(rows) for rows in found), default=0)
    table = np.full((len(found), most, len(Periods._fields) - 1), np.nan)
    for row, entries in zip(table, found, strict=True):
        row[: len(entries)] = entries
    count = np.array([len(rows) for rows in found], np.int64).reshape(lead)
    return Periods(count, *np.moveaxis(table, -1, 0).reshape(len(Periods._fields) - 1, *lead, most))


def _of_one(
    loss: np.ndarray, norm: np.ndarray, elr: np.ndarray, min_growth: float, min_loss_ratio: float, window: int
) -> np.ndarray:
    """The rows of `Periods` of one configuration, ``(found, 7)``."""
    finite = np.isfinite(norm) & np.isfinite(loss) & (norm > 0)
    steps = len(norm) if finite.all() else int(np.argmin(finite))
    # A minimum may last for several equal steps; its last one is the onset.
    _, plateau = find_peaks(-np.log(norm[:steps]), prominence=np.log(min_growth), plateau_size=1)
    onsets = plateau["right_edges"]
    rows = []
    for onset, following in zip(onsets, np.append(onsets, steps)[1:], strict=True):
        end = onset + int(np.argmax(norm[onset:following]))
        before = float(np.median(loss[max(onset - window, 0) : onset + 1]))
        # The batch that throws the weights may be the one at the onset's own step or up to the end of the rise.
        peak = float(loss[onset : end + 1].max())
        if peak >= min_loss_ratio * before:
            rows.append((onset, end, norm[onset], elr[onset], norm[end], before, peak))
    return np.array(rows, np.float64).reshape(-1, len(Periods._fields) - 1)


def rotation_share(angular_step: np.ndarray, portion: float = 0.9) -> np.ndarray:
    """Share of the steps that holds most of the rotation: how concentrated in bursts the motion is.

    Args:
        angular_step: radians ``(..., steps)``; NaN is left out.
        portion: of the total of -ln cos θ.

    Returns:
        ``(...)``: near ``portion`` for even motion, near 0 for bursts, NaN without any step.

    Example:
        >>> float(rotation_share(np.r_[np.full(999, 1e-6), 1.0]))
        0.001
    """
    spent = _spent(angular_step)
    known = np.isfinite(spent).sum(-1)
    cumulated = np.cumsum(np.sort(np.nan_to_num(spent), axis=-1)[..., ::-1], axis=-1)
    needed = (cumulated < portion * cumulated[..., -1:]).sum(-1) + 1
    return np.where(known, needed / np.maximum(known, 1), np.nan)


def rotation_pace(angular_step: Any, lr: Any, weight_decay: Any, momentum: Any = 0.0) -> np.ndarray:
    """Mean rotation per step over what keeps the norm constant: mean(-ln cos θ) / -ln(1 - ηλ/(1+μ)).

    1 in an equilibrium and on average over whole periods; far below 1 while the weights only shrink. Infinite without
    decay; NaN without any step.

    Args:
        angular_step: radians ``(..., steps)``; NaN is left out.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``.
    """
    spent = _spent(angular_step)
    needed = -np.log1p(-np.asarray(lr) * np.asarray(weight_decay) / (1 + np.asarray(momentum)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nansum(spent, axis=-1) / np.isfinite(spent).sum(-1) / needed


def _spent(angular_step: np.ndarray) -> np.ndarray:
    """-ln cos θ; a step beyond a right angle counts as the right angle's neighbour, not as NaN."""
    tangent = np.tan(np.minimum(np.asarray(angular_step, np.float64), np.pi / 2 - 1e-3))
    return 0.5 * np.log1p(tangent**2)


def classify_regimes(
    telemetry: Mapping[Any, Any],
    lr: Any,
    weight_decay: Any,
    momentum: Any = 0.0,
    *,
    burn_in: float = 1 / 3,
    least_pace: float = 0.5,
    least_share: float = 0.1,
    least_level: float = 0.8,
) -> np.ndarray:
    """Name what each configuration did, by how it spends its rotation after the burn-in.

    diverged: the loss or the weights became infinite or NaN.
    equilibrium: rotation is spread over many steps (`rotation_share` at least ``least_share``) and keeps pace with
    the decay (`rotation_pace` at least ``least_pace``); or, where no decay sets a pace, the loss has stopped falling:
    between the two halves of the steps its geometric mean keeps at least ``least_level``. Converging on digits at
    fixed effective learning rates it kept 0.6, as a loss like 1/t does; in equilibria 1 or more.
    periodic: at least one destabilisation.
    converging: the rest.

    Args:
        telemetry: as `detect_periods`, with ``angular_step``; and with ``diverged_at`` ``(...)``, NaN for never, to
            tell a run that diverged to NaN from one that has not come so far.
        lr, weight_decay, momentum: η, λ, μ, ``(...)``; λ = 0 also where norm or effective learning rate are held.
        burn_in: share of the steps left out before rotation and loss are judged.
        least_pace, least_share, least_level: thresholds of an equilibrium.

    Returns:
        Words of `REGIMES`, ``(...)``.
    """
    angle = np.asarray(telemetry["angular_step"], np.float64)
    loss, norm = np.asarray(telemetry["loss"]), np.asarray(telemetry["weight_norm"])
    counts = detect_periods(telemetry).found
    # Steps past a divergence and steps not yet made are both NaN; only the first follow a recorded, non-finite loss.
    marked = (
        np.asarray(telemetry["diverged_at"], np.float64)
        if "diverged_at" in telemetry
        else np.full(counts.shape, np.nan)
    )
    infinite = np.isinf(loss).any(-1) | np.isinf(norm).any(-1) | np.isfinite(marked)
    reached = np.isfinite(angle).sum(-1)[..., None]
    late = np.where(np.arange(angle.shape[-1]) >= burn_in * reached, angle, np.nan)
    decays = np.asarray(lr) * np.asarray(weight_decay) > 0
    in_pace = rotation_pace(late, lr, weight_decay, momentum) >= least_pace
    settled = np.where(decays, in_pace, _level(loss, reached, burn_in) >= least_level)
    equilibrium = settled & (rotation_share(late) >= least_share)
    return np.select([infinite, equilibrium, counts > 0], ["diverged", "equilibrium", "periodic"], "converging")


def _level(loss: np.ndarray, reached: np.ndarray, burn_in: float) -> np.ndarray:
    """Geometric mean of the loss over the second half of the steps after the burn-in, relative to the first half."""
    share = np.arange(loss.shape[-1]) / np.maximum(reached, 1)
    middle = (1 + burn_in) / 2
    means = []
    for half in ((share >= burn_in) & (share < middle), (share >= middle) & (share < 1)):
        known = half & np.isfinite(loss)
        logarithms = np.log(np.where(known, np.maximum(loss, np.finfo(np.float64).tiny), 1))
        means.append(logarithms.sum(-1) / np.maximum(known.sum(-1), 1))
    return np.exp(means[1] - means[0])
