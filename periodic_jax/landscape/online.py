"""Sharpness of mini-batches on the unit sphere, measured while training goes on.

What a step multiplies is the curvature of its own mini-batch, so that is measured: the largest eigenvalue of the
projected Hessian, by two Lanczos iterations that start from the mini-batch's gradient. They start warm, since the
gradient near a minimum is an image under the Hessian already. Products with the Hessian are differences of gradients, a
third as dear as exact ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.objective import to_vector, with_vector
from periodic_jax.landscape.products import loss_and_gradient, tangential
from periodic_jax.train import Batch, TrainState

SHARPNESS = ("sphere_sharpness", "elr_times_sharpness")
ITERATIONS = 2


def sphere_sharpness(state: TrainState, batches: Batch) -> Float[Array, ""]:
    """The largest eigenvalue of ρ² P H P that two Lanczos iterations from the gradient find; never above the true one
    but for the error of the differences.

    A v ≈ ρ P (∇F(x + ερv) - ∇F(x)) / ε with the angle ε = (machine precision)^⅓, which balances the errors of rounding
    and of the difference.

    Args:
        state: of one configuration, with scale-invariant weights.
        batches: mini-batches, stacked; the loss F is their mean.

    Returns:
        S; NaN where the gradient is zero or not finite.
    """
    chosen = state.task.labels
    x = to_vector(state.params, chosen)
    rho, angle = jnp.linalg.norm(x), float(jnp.finfo(x.dtype).eps) ** (1 / 3)

    def evaluate(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        first, before, vector, diagonal, beside = carry
        gradient = _gradient(state, batches, x + angle * rho * vector)  # first of all at x itself
        first = jnp.where(i == 0, gradient, first)
        image = tangential(x, gradient - first) * (rho / angle)
        alpha = jnp.vdot(vector, image)
        rest = jnp.where(i == 0, tangential(x, gradient), image - alpha * vector - beside[i - 1] * before)
        beta = jnp.linalg.norm(rest)
        following = jnp.where(beta > 0, rest / jnp.where(beta > 0, beta, 1), 0)
        started = i > 0
        diagonal = diagonal.at[i - 1].set(jnp.where(started, alpha, diagonal[i - 1]))
        beside = beside.at[i].set(jnp.where(started, beta, 0))
        return first, jnp.where(started, vector, 0), following, diagonal, beside

    nothing = jnp.zeros_like(x)
    numbers = jnp.zeros(ITERATIONS + 1, x.dtype)
    first, _, _, diagonal, beside = jax.lax.fori_loop(
        0, ITERATIONS + 1, evaluate, (nothing, nothing, nothing, numbers, numbers)
    )
    a, b, c = diagonal[0], diagonal[1], beside[1]
    largest = (a + b) / 2 + jnp.sqrt(((a - b) / 2) ** 2 + c**2)
    return jnp.where(jnp.linalg.norm(first) > 0, largest, jnp.nan)


def _gradient(state: TrainState, batches: Batch, x: Array) -> Array:
    """∇F at x of the mean loss over the mini-batches."""
    count = len(jax.tree.leaves(batches)[0])
    moved = state.replace(params=with_vector(state.params, state.task.labels, x))

    def of_batch(batch: Batch) -> Array:
        shares = jnp.full(batch.labels.shape, 1 / (count * batch.labels.size), x.dtype)
        return loss_and_gradient(moved, (batch.images, batch.labels, shares), state.task.labels)[1]

    if count == 1:
        return of_batch(jax.tree.map(lambda leaf: leaf[0], batches))

    def add(total: Array, batch: Any) -> tuple[Array, None]:
        return total + of_batch(batch), None

    return jax.lax.scan(add, jnp.zeros_like(x), batches)[0]
