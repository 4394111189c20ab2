"""Compares every recorded step with the theory: exact relations, rotation budget, bounds, equilibrium. NumPy only.

Each of `CHECKS` counts the steps that violate it, where its assumptions hold. ℓ and L are the lowest and highest
recorded effective gradient norm. Numbers in float32 agree within `ROUNDING`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from periodic_jax import dynamics
from periodic_jax.analysis.hyperparameters import Hyperparameters
from periodic_jax.analysis.periods import delta_jumps, rotation
from periodic_jax.analysis.regimes import after_burn_in
from periodic_jax.core import segments
from periodic_jax.core.blocks import configs_in_cache, map_blocks

ROUNDING = 1e-4  # relative; the median step agrees to 1e-7
LEAST_BUDGET = 10  # rotation and decay that can be compared, over the half ulp of the norm that each step may round


class Bounds(NamedTuple):
    """Arguments of `dynamics.bounds`, ``(configs, 1)``, which take only η̃ and ηλ: η is set to 1."""

    lowest: np.ndarray  # ℓ
    highest: np.ndarray  # L
    lr: np.ndarray  # 1
    weight_decay: np.ndarray  # ηλ


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Recorded curves ``(configs, steps)``, NaN where missing, and hyperparameters ``(configs,)``."""

    weight_norm: np.ndarray  # ρ
    effective_lr: np.ndarray  # η̃
    effective_grad_norm: np.ndarray  # g̃
    angular_step: np.ndarray  # θ, radians
    hyper: Hyperparameters
    radial_leak: np.ndarray | None = None  # cosine between gradient and weights (configs, steps)
    radial_update: np.ndarray | None = None  # ⟨u, x⟩/ρ of the update u (configs, steps); of SGD it is not needed
    tangential_update: np.ndarray | None = None  # norm of the rest of it

    def select(self, block: slice) -> "Trajectory":
        """Some of the configurations."""
        curves = {f.name: a[block] for f in fields(self) if isinstance(a := getattr(self, f.name), np.ndarray)}
        return replace(self, **curves, hyper=self.hyper.select(block))

    @cached_property
    def lr(self) -> np.ndarray:
        """η = η̃ρ² of each step."""
        return self.effective_lr * self.weight_norm**2

    @cached_property
    def known(self) -> np.ndarray:
        """Whether each step is recorded."""
        return np.isfinite(self.lr) & np.isfinite(self.effective_grad_norm) & np.isfinite(self.angular_step)

    @cached_property
    def pair(self) -> np.ndarray:
        """Whether each step but the last is recorded, and the next one too."""
        return self.known[:, :-1] & self.known[:, 1:]

    @cached_property
    def decay(self) -> np.ndarray:
        """ηλ of each step, 0 where it is missing."""
        return np.where(self.known, self.lr, 0) * self.hyper.weight_decay[:, None]

    @cached_property
    def tangent(self) -> np.ndarray:
        """η̃g̃/a of each step: what tan θ is in theory."""
        return self.effective_lr * self.effective_grad_norm / (1 - self.decay)

    @cached_property
    def slack(self) -> np.ndarray:
        """Relative error to accept: a radial leak adds 2aη⟨∇f, x⟩ to the squared norm."""
        leak = np.zeros((1, 1), self.weight_norm.dtype) if self.radial_leak is None else self.radial_leak
        return ROUNDING + 4 * (self.tangent * leak)

    @cached_property
    def is_plain(self) -> np.ndarray:
        """Whether it is plain SGD and its norm free, ``(configs,)``."""
        return self.hyper.is_free & self.hyper.is_plain

    @cached_property
    def squared_direction(self) -> np.ndarray:
        """η²|d|² of each step x₊ = ax + ηd, from the parts of the update; NaN where they are not recorded."""
        if self.radial_update is None or self.tangential_update is None:
            return np.full_like(self.weight_norm, np.nan)
        return self.tangential_update**2 + (self.radial_update + self.decay * self.weight_norm) ** 2

    @cached_property
    def lowest_gradient(self) -> np.ndarray:
        """ℓ above 0, ``(configs,)``; infinite where no gradient is."""
        return self._lowest(self.effective_grad_norm, self.effective_grad_norm > 0)

    @cached_property
    def highest_gradient(self) -> np.ndarray:
        """L, ``(configs,)``; 0 where no step is recorded."""
        return np.max(np.where(self.known, self.effective_grad_norm, 0), axis=1, initial=0)

    @cached_property
    def has_bounds(self) -> np.ndarray:
        """Whether the assumptions of `dynamics.bounds` hold, ``(configs,)``."""
        decay = self._lowest(self.decay)
        is_constant = np.max(np.where(self.known, self.lr, 0), axis=1, initial=0) < self._lowest(self.lr) * (1 + 1e-3)
        return self.is_plain & is_constant & (decay > 0) & ((1 - decay) ** 2 >= 0.5) & np.isfinite(self.lowest_gradient)

    @cached_property
    def bounds(self) -> Bounds:
        """ℓ, L and ηλ; some numbers where the bounds do not apply."""
        given = ((self.lowest_gradient, 1), (self.highest_gradient, 1), (1, 1), (self._lowest(self.decay), 0.1))
        return Bounds(*(np.where(self.has_bounds, *pair).astype(np.float64)[:, None] for pair in given))

    @cached_property
    def entered(self) -> np.ndarray:
        """Whether each step is the first in the attracting interval, or comes after it."""
        low, high = dynamics.attracting_interval(*self.bounds)
        inside = self.known & (self.effective_lr >= low) & (self.effective_lr <= high)
        return np.logical_or.accumulate(inside, axis=1) & self.known

    @cached_property
    def recorded_tangent(self) -> np.ndarray:
        """Recorded tan θ of each step."""
        return np.tan(np.minimum(self.angular_step, np.pi / 2 - 1e-6))

    @cached_property
    def violating_waits(self) -> tuple[np.ndarray, np.ndarray]:
        """First steps of waits for a δ-jump, δ = ηλ/2, that are shorter than t_min; that are longer than t_max.

        A wait begins at each step below the threshold that follows a jump or nothing known, and ends at the next jump.
        One that a missing step cuts short may only be too long.
        """
        steps = self.known.shape[1]
        jumps = delta_jumps(self.angular_step, self.bounds.weight_decay / 2) & self.known
        below = self.known & ~jumps
        begins = below.copy()
        begins[:, 1:] &= ~below[:, :-1]
        row, begin = np.nonzero(begins)
        above = np.flatnonzero(~below.ravel())
        following = np.append(above, below.size)[np.searchsorted(above, row * steps + begin)]
        end = np.minimum(following - row * steps, steps)
        has_ended = (end < steps) & jumps[row, np.minimum(end, steps - 1)]
        lowest, highest, lr, decay = (bound[row, 0] for bound in self.bounds)
        start = self.effective_lr[row, begin].astype(np.float64)
        least = dynamics.t_min(start * (1 + ROUNDING), highest, decay / 2, lr, decay)
        most = dynamics.t_max(start * (1 - ROUNDING), lowest * (1 - ROUNDING), decay / 2, lr, decay)
        early, overdue = np.zeros((2, *begins.shape), bool)
        early[row, begin], overdue[row, begin] = has_ended & (end - begin < least), end - begin > most + 1
        return early, overdue

    def _lowest(self, values: np.ndarray, chosen: np.ndarray | bool = True) -> np.ndarray:
        return np.min(np.where(self.known & chosen, values, np.inf), axis=1, initial=np.inf)


Violates = Callable[[Trajectory], np.ndarray]


class Check(NamedTuple):
    """A relation that the theory states."""

    violates: Violates  # which steps violate it; waits: at their first step
    applies: Callable[[Trajectory], np.ndarray]  # where its assumptions hold, ``(configs,)``
    assumes: str  # the assumptions, for the reader of an analysis


CHECKS: dict[str, Check] = {}


def _check(applies: str, assumes: str) -> Callable[[Violates], Violates]:
    """Register a function in `CHECKS`; it applies where that property of `Trajectory` holds."""

    def register(violates: Violates) -> Violates:
        CHECKS[violates.__name__] = Check(violates, attrgetter(applies), assumes)
        return violates

    return register


@_check("is_plain", "plain SGD: no momentum, a free norm")
def norm_recursion(t: Trajectory) -> np.ndarray:
    """ρ₊² = a²ρ²(1 + tan²θ)."""
    predicted = ((1 - t.decay) ** 2 * (1 + t.tangent**2))[:, :-1]
    return t.pair & (np.abs((t.weight_norm[:, 1:] / t.weight_norm[:, :-1]) ** 2 / predicted - 1) > t.slack[:, :-1])


@_check("is_plain", "as norm_recursion")
def angular_step(t: Trajectory) -> np.ndarray:
    """θ = atan(η̃g̃/a)."""
    error = np.abs(t.angular_step - np.arctan(t.tangent))
    return t.known & (error > t.slack * np.maximum(t.angular_step, 1e-4))


@_check("has_bounds", "plain SGD, constant learning rate and decay, a² ≥ ½, ℓ > 0; after any step")
def highest_effective_lr(t: Trajectory) -> np.ndarray:
    """η̃ ≤ 1/(2aℓ) after any step."""
    highest = dynamics.highest_effective_lr(t.bounds.lowest, t.bounds.lr, t.bounds.weight_decay)
    return t.pair & (t.effective_lr[:, 1:] > highest * (1 + ROUNDING))


@_check("has_bounds", "as highest_effective_lr; after the first step inside")
def attracting_interval(t: Trajectory) -> np.ndarray:
    """η̃ stays in the interval."""
    low, high = dynamics.attracting_interval(*t.bounds)
    return t.entered & ((t.effective_lr < low * (1 - ROUNDING)) | (t.effective_lr > high * (1 + ROUNDING)))


@_check("has_bounds", "as attracting_interval")
def largest_tangent(t: Trajectory) -> np.ndarray:
    """The largest tan θ is sL/(aℓ)."""
    return t.entered & (t.recorded_tangent > dynamics.largest_tangent(*t.bounds) * (1 + 10 * ROUNDING))


@_check("has_bounds", "as attracting_interval")
def smallest_tangent(t: Trajectory) -> np.ndarray:
    """The smallest tan θ is η̃ℓ/a, η̃ the lower end of the interval."""
    return t.entered & (t.recorded_tangent < dynamics.smallest_tangent(*t.bounds) / (1 + 10 * ROUNDING))


@_check("has_bounds", "as highest_effective_lr; δ = ηλ/2, from each step below the threshold that follows a δ-jump")
def t_min(t: Trajectory) -> np.ndarray:
    """No δ-jump comes sooner."""
    return t.violating_waits[0]


@_check("has_bounds", "as t_min")
def t_max(t: Trajectory) -> np.ndarray:
    """A δ-jump comes by then."""
    return t.violating_waits[1]


class Theory(NamedTuple):
    """What the theory predicts for each configuration, ``(configs,)``, and ``violations`` ``(configs, checks)``."""

    lowest_gradient: np.ndarray  # ℓ: lowest effective gradient norm above 0
    highest_gradient: np.ndarray  # L
    equilibrium_weight_norm: np.ndarray  # predicted from the root mean square, after the burn-in, of g̃ or the direction
    measured_weight_norm: np.ndarray  # fourth root of the mean ρ⁴ after the burn-in
    equilibrium_effective_lr: np.ndarray  # predicted from the same
    measured_effective_lr: np.ndarray  # η over the square of the measured norm
    equilibrium_angular_step: np.ndarray  # θ*, radians, predicted from the hyperparameters alone
    measured_angular_step: np.ndarray  # θ of the mean 1 - cos θ after the burn-in
    rotation_spent: np.ndarray  # Σ -ln cos θ
    rotation_budget: np.ndarray  # -Σ ln a + ln(ρ_T/ρ_0); NaN for all but plain SGD with a free norm
    budget_residual: np.ndarray  # (spent - budget) / (spent - Σ ln a); NaN too where rounding is a tenth of these
    radial_leak: np.ndarray  # root mean square of the cosine between gradient and weights
    violations: np.ndarray  # steps (of t_min, t_max: waits) that violate each of `CHECKS`; NaN where not applicable


def check_theory(trajectory: Trajectory) -> Theory:
    """Compare the steps of each configuration with the theory, leaving out those with a missing value.

    Args:
        trajectory: curves ``(configs, steps)`` and hyperparameters ``(configs,)``.

    Returns:
        Predictions, measurements and violations.

    Example:
        >>> import xarray as xr
        >>> from periodic_jax.analysis.hyperparameters import hyperparameters_of
        >>> from periodic_jax.core.grid import SweepGrid
        >>> coords = SweepGrid.product(lr=1.0, weight_decay=1e-3).coords
        >>> hyper = hyperparameters_of(xr.Dataset({name: ("config", values) for name, values in coords.items()}))
        >>> norm = 0.999 ** np.arange(100)[None]
        >>> decaying = Trajectory(norm, norm**-2, 0 * norm, 0 * norm, hyper)
        >>> check_theory(decaying).violations[0, :2].tolist()
        [0.0, 0.0]
    """
    configs, steps = trajectory.weight_norm.shape
    return map_blocks(lambda block: _check_block(trajectory.select(block)), configs, configs_in_cache(steps))


@np.errstate(all="ignore")  # NaN and 0 stand for what is missing, and stay
def _check_block(t: Trajectory) -> Theory:
    late = after_burn_in(t.known)
    lr, measured_norm = segments.mean(t.lr, t.known), segments.mean(t.weight_norm**4, late) ** 0.25
    # ρ*² = gain η²|d|²: of SGD's gradients |d| = g̃/ρ*, and the directions of other optimisers are recorded.
    of_gradients = (t.hyper.equilibrium_gain * lr**2 * segments.mean(t.effective_grad_norm**2, late)) ** 0.25
    of_directions = (t.hyper.equilibrium_gain * segments.mean(t.squared_direction, late)) ** 0.5
    equilibrium_norm = np.where(t.hyper.is_sgd, of_gradients, of_directions)
    equilibrium_norm = np.where(t.hyper.is_free & (t.hyper.weight_decay > 0), equilibrium_norm, np.nan)
    turned = segments.mean(np.sin(t.angular_step / 2) ** 2, late)

    def total(values: np.ndarray) -> np.ndarray:
        return np.where(t.pair, values, 0).sum(1, dtype=np.float64)

    spent = total(rotation(t.angular_step)[:, :-1])
    decayed = total(-np.log1p(-t.decay[:, :-1].astype(np.float64)))
    budget = decayed + total(np.diff(np.log(t.weight_norm)))
    # At a tiny learning rate the norm does not move in its own precision, whatever the theory says.
    rounding = t.pair.sum(1) * np.finfo(t.weight_norm.dtype).eps / 2
    has_budget = t.is_plain & (spent + decayed >= LEAST_BUDGET * rounding)
    leak = np.full(len(lr), np.nan) if t.radial_leak is None else np.sqrt(segments.mean(t.radial_leak**2, t.known))
    return Theory(
        lowest_gradient=np.where(np.isfinite(t.lowest_gradient), t.lowest_gradient, np.nan),
        highest_gradient=np.where(t.highest_gradient > 0, t.highest_gradient, np.nan),
        equilibrium_weight_norm=equilibrium_norm,
        measured_weight_norm=measured_norm,
        equilibrium_effective_lr=lr / equilibrium_norm**2,
        measured_effective_lr=lr / measured_norm**2,
        equilibrium_angular_step=np.where(np.isfinite(equilibrium_norm), t.hyper.equilibrium_angle, np.nan),
        measured_angular_step=2 * np.arcsin(np.sqrt(turned)),
        rotation_spent=spent,
        rotation_budget=np.where(t.is_plain & np.isfinite(t.angular_step).any(1), budget, np.nan),
        budget_residual=np.where(has_budget, (spent - budget) / (spent + decayed), np.nan),
        radial_leak=leak,
        violations=np.stack([np.where(c.applies(t), c.violates(t).sum(1), np.nan) for c in CHECKS.values()], axis=1),
    )
