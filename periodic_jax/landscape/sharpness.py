"""Sharpness of mini-batches on the unit sphere, measured while training goes on.

What a step multiplies is the curvature of its own mini-batch, along the step. So that is measured, by one product with
the Hessian: the Rayleigh quotient in the direction of the gradient, which is one Lanczos iteration. It starts warm, as
the gradient near a minimum is an image under the Hessian already.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.hvp import hessian_vector, loss_and_gradient, on_sphere, tangential
from periodic_jax.landscape.objective import to_vector
from periodic_jax.training.state import Batch, TrainState


def sphere_sharpness(state: TrainState, batches: Batch) -> Float[Array, ""]:
    """Curvature of the loss along great circles of the unit sphere in the direction of its gradient.

    S = ρ² ⟨g, H g⟩ / |g|², g the gradient. A step of plain SGD lowers the loss of its own mini-batch, to second order,
    where η̃S < 2.

    Args:
        state: of one configuration, with scale-invariant weights.
        batches: mini-batches, stacked; the loss is their mean.

    Returns:
        S, never more than the largest eigenvalue of ρ² P H P; NaN where the gradient is zero or not finite.
    """
    chosen = state.task.labels
    x = to_vector(state.params, chosen)
    g = tangential(x, _total(batches, x, lambda batch: loss_and_gradient(state, batch, chosen)[1]))
    size = jnp.linalg.norm(g)
    v = g / jnp.where(size > 0, size, 1)
    image = on_sphere(lambda v: _total(batches, x, lambda batch: hessian_vector(state, v, batch, chosen)), x)(v)
    return jnp.where(size > 0, jnp.vdot(v, image), jnp.nan)


def _total(batches: Batch, like: Array, function: Callable[[Any], Array]) -> Array:
    """The sum of a function of each mini-batch, whose images have their shares of the mean loss."""
    count = len(jax.tree.leaves(batches)[0])

    def of_batch(batch: Batch) -> Array:
        shares = jnp.full(batch.labels.shape, 1 / (count * batch.labels.size), like.dtype)
        return function((batch.images, batch.labels, shares))

    if count == 1:
        return of_batch(jax.tree.map(lambda leaf: leaf[0], batches))

    def add(total: Array, batch: Any) -> tuple[Array, None]:
        return total + of_batch(batch), None

    return jax.lax.scan(add, jnp.zeros_like(like), batches)[0]
