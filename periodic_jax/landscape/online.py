"""Sharpness of mini-batches on the unit sphere, measured while training goes on.

What a step multiplies is the curvature of its own mini-batch, along the step. So that is measured, by one product with
the Hessian: the Rayleigh quotient in the direction of the optimiser's velocity, which without momentum is the
gradient's. That start is warm, since the gradient near a minimum is an image under the Hessian already.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.objective import to_vector
from periodic_jax.landscape.products import hessian_vector, on_sphere, tangential
from periodic_jax.train import Batch, TrainState

SHARPNESS = ("sphere_sharpness", "elr_times_sharpness")


def sphere_sharpness(state: TrainState, batches: Batch, velocity: Any) -> Float[Array, ""]:
    """Curvature of the loss along great circles of the unit sphere in the direction of the step.

    S = ρ² ⟨v, H v⟩ / |v|², v the part of the velocity that is tangential to the sphere. A step of plain SGD lowers the
    loss of its own mini-batch, to second order, where η̃S < 2.

    Args:
        state: of one configuration, before the step, with scale-invariant weights.
        batches: mini-batches, stacked; the loss is their mean.
        velocity: what the optimiser steps along, as the parameters.

    Returns:
        S, never more than the largest eigenvalue of ρ² P H P; NaN where the velocity is zero or not finite.
    """
    chosen = state.task.labels
    x = to_vector(state.params, chosen)
    v = tangential(x, to_vector(velocity, chosen))
    size = jnp.linalg.norm(v)
    v = v / jnp.where(size > 0, size, 1)
    image = on_sphere(lambda vector: _total(state, batches, vector), x)(v)
    return jnp.where(size > 0, jnp.vdot(v, image), jnp.nan)


def _total(state: TrainState, batches: Batch, vector: Array) -> Array:
    """H v of the mean loss over all images."""
    count = len(jax.tree.leaves(batches)[0])

    def of_batch(batch: Batch) -> Array:
        shares = jnp.full(batch.labels.shape, 1 / (count * batch.labels.size), vector.dtype)
        return hessian_vector(state, vector, (batch.images, batch.labels, shares), state.task.labels)

    if count == 1:
        return of_batch(jax.tree.map(lambda leaf: leaf[0], batches))

    def add(total: Array, batch: Any) -> tuple[Array, None]:
        return total + of_batch(batch), None

    return jax.lax.scan(add, jnp.zeros_like(vector), batches)[0]
