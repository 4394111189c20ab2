"""Sharpness of mini-batches on the unit sphere, measured while training goes on.

What a step multiplies is the curvature of its own mini-batch, so that is measured: the largest eigenvalue of the
projected Hessian, by Lanczos iterations that start from the mini-batch's gradient. They start warm, since the gradient
near a minimum is an image under the Hessian already: two come within 5 % of the true eigenvalue.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.objective import to_vector
from periodic_jax.landscape.products import hessian_vector, loss_and_gradient, on_sphere, tangential
from periodic_jax.train import Batch, TrainState

SHARPNESS = ("sphere_sharpness", "elr_times_sharpness")


def sphere_sharpness(state: TrainState, batches: Batch) -> Float[Array, ""]:
    """The largest eigenvalue of ρ² P H P within the span of the gradient and its image: two Lanczos iterations, which
    never find more than the true largest eigenvalue.

    Args:
        state: of one configuration, with scale-invariant weights.
        batches: mini-batches, stacked; the loss is their mean.

    Returns:
        S; NaN where the gradient is zero or not finite.
    """
    chosen = state.task.labels
    x = to_vector(state.params, chosen)
    product = on_sphere(lambda vector: _total(state, batches, vector, _image), x)
    gradient = tangential(x, _total(state, batches, x, _gradient))
    size = jnp.linalg.norm(gradient)

    def iterate(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        vector, diagonal, beside = carry
        image = product(vector)
        alpha = jnp.vdot(vector, image)
        rest = image - alpha * vector
        beta = jnp.linalg.norm(rest)
        following = jnp.where(beta > 0, rest / jnp.where(beta > 0, beta, 1), 0)
        return following, diagonal.at[i].set(alpha), beside.at[i].set(beta)

    # A loop, so that the product is compiled once.
    start = (gradient / jnp.where(size > 0, size, 1), jnp.zeros(2, x.dtype), jnp.zeros(2, x.dtype))
    _, (a, b), (c, _) = jax.lax.fori_loop(0, 2, iterate, start)
    largest = (a + b) / 2 + jnp.sqrt(((a - b) / 2) ** 2 + c**2)
    return jnp.where(size > 0, largest, jnp.nan)


def _image(state: TrainState, vector: Array, batch: Any) -> Array:
    return hessian_vector(state, vector, batch, state.task.labels)


def _gradient(state: TrainState, _: Array, batch: Any) -> Array:
    return loss_and_gradient(state, batch, state.task.labels)[1]


def _total(state: TrainState, batches: Batch, vector: Array, function: Any) -> Array:
    """A function of each mini-batch and a vector, summed; each image has its share of the mean loss."""
    count = len(jax.tree.leaves(batches)[0])

    def of_batch(batch: Batch) -> Array:
        shares = jnp.full(batch.labels.shape, 1 / (count * batch.labels.size), vector.dtype)
        return function(state, vector, (batch.images, batch.labels, shares))

    if count == 1:
        return of_batch(jax.tree.map(lambda leaf: leaf[0], batches))

    def add(total: Array, batch: Any) -> tuple[Array, None]:
        return total + of_batch(batch), None

    return jax.lax.scan(add, jnp.zeros_like(vector), batches)[0]
