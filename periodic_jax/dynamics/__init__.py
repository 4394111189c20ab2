"""Closed forms of SGD with weight decay on scale-invariant weights: pure functions on arrays of any array library.

Notation: x the scale-invariant weights as one vector, ρ = |x|, g̃ = ρ|∇f(x)| the effective gradient norm, η and λ
learning rate and coupled weight decay, μ the momentum of the heavy ball, a = 1 - ηλ, η̃ = η/ρ² the effective learning
rate, θ the angle between consecutive iterates, s = √(1-a²). All arguments broadcast; all quantities are dimensionless
but angles, which are in radians, and times, which are in steps. f may change from step to step (mini-batches).

Derived from ⟨∇f(x), x⟩ = 0 and ∇f(cx) = ∇f(x)/c; the phenomenon is that of Lobacheva et al., NeurIPS 2021, arXiv
2106.15739, training on the sphere that of Kodryan et al., NeurIPS 2022, arXiv 2209.03695.

`steps` has what holds exactly in each step, `equilibrium` what follows if the gradient norm stays, `bounds` what
follows if it stays between ℓ and L, `equivalences` which other trainings walk the same path, and
`rotational_equilibrium` what momentum, Nesterov's momentum, AdamW and Lion come to.
"""

from periodic_jax.dynamics.bounds import (
    attracting_interval,
    highest_effective_lr,
    largest_tangent,
    smallest_tangent,
    t_max,
    t_min,
)
from periodic_jax.dynamics.equilibrium import (
    approach_weight_norm,
    equilibrium_angular_step,
    equilibrium_contraction,
    equilibrium_effective_lr,
    equilibrium_weight_norm,
    falling_edge_steps,
    sharpness_limit,
)
from periodic_jax.dynamics.equivalences import rescaled, sphere_effective_lr, sphere_lr, undecayed_lr
from periodic_jax.dynamics.rotational_equilibrium import (
    RotationalEquilibrium,
    adamw_equilibrium,
    equivalent_momentum,
    lion_equilibrium,
    nesterov_equilibrium,
    rotational_equilibrium,
    sgd_equilibrium,
    sgdw_equilibrium,
)
from periodic_jax.dynamics.steps import (
    angular_step,
    coasting_factor,
    delta_jump,
    effective_lr,
    growth_tangent,
    jump_distance,
    jump_tangent,
    next_effective_lr,
    next_weight_norm,
    rotation_budget,
    rotation_spent,
    shrink,
)

__all__ = [  # noqa: RUF022 (in the order of the theory)
    "shrink", "coasting_factor", "effective_lr", "next_weight_norm", "next_effective_lr", "angular_step",
    "jump_tangent", "jump_distance", "delta_jump", "growth_tangent", "rotation_spent", "rotation_budget",
    "equilibrium_weight_norm", "equilibrium_effective_lr", "equilibrium_angular_step", "equilibrium_contraction",
    "approach_weight_norm", "falling_edge_steps", "sharpness_limit",
    "RotationalEquilibrium", "rotational_equilibrium", "sgd_equilibrium", "sgdw_equilibrium", "nesterov_equilibrium",
    "adamw_equilibrium", "lion_equilibrium", "equivalent_momentum",
    "attracting_interval", "highest_effective_lr", "largest_tangent", "smallest_tangent", "t_min", "t_max",
    "sphere_lr", "sphere_effective_lr", "undecayed_lr", "rescaled",
]  # fmt: skip
