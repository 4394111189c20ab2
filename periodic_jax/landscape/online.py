"""Sharpness on the unit sphere, followed while training goes on: one product with the Hessian at a time.

Power iteration spread over the training: each measurement starts from the direction that the one before it left, so
the direction follows the sharpest one of a slowly changing landscape. The Rayleigh quotient is taken before the
direction sees the mini-batch, so it is that of the whole loss on average, and never above its largest eigenvalue.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from periodic_jax.errors import ConfigError
from periodic_jax.landscape.objective import to_vector
from periodic_jax.landscape.products import hessian_vector, on_sphere, tangential
from periodic_jax.train import Batch, TrainState

SHARPNESS = ("sphere_sharpness", "elr_times_sharpness")


def with_direction(state: TrainState, key: Key[Array, ""]) -> TrainState:
    """A state that carries a direction in which sharpness is followed, random at first.

    Args:
        state: of one configuration.
        key: of the random direction.

    Raises:
        ConfigError: a network without scale-invariant weights.
    """
    if not any(state.task.labels):
        raise ConfigError("--track-sharpness", "given", "a network with scale-invariant weights")
    x = to_vector(state.params, state.task.labels)
    return state.replace(sharpest=jax.random.normal(key, x.shape, x.dtype))


def follow_sharpness(
    state: TrainState, batches: Batch, due: Bool[Array, ""]
) -> tuple[TrainState, Float[Array, ""]]:
    """Measure sharpness in the state's direction, and turn the direction towards the sharpest one.

    With A = ρ² P H P of the loss: S = ⟨v, A v⟩ for the unit vector v, which becomes A v / |A v|, or where S is negative
    (A v + |A v| v) / |...|, which leaves directions of negative curvature.

    Args:
        state: with a direction; of one configuration.
        batches: mini-batches, stacked; the loss is their mean.
        due: whether to measure at all.

    Returns:
        The state with its new direction, and S; NaN where it was not due, or the configuration has diverged.
    """
    chosen = state.task.labels
    count = len(jax.tree.leaves(batches)[0])
    x = to_vector(state.params, chosen)

    def product(vector: Array) -> Array:
        def of_batch(batch: Batch) -> Array:
            shares = jnp.full(batch.labels.shape, 1 / (count * batch.labels.size), vector.dtype)
            return hessian_vector(state, vector, (batch.images, batch.labels, shares), chosen)

        if count == 1:
            return of_batch(jax.tree.map(lambda leaf: leaf[0], batches))
        add = lambda total, batch: (total + of_batch(batch), None)  # noqa: E731
        return jax.lax.scan(add, jnp.zeros_like(vector), batches)[0]

    def measure(direction: Array) -> tuple[Array, Array]:
        v = tangential(x, direction)
        v = v / jnp.linalg.norm(v)
        image = on_sphere(product, x)(v)
        size, sharpness = jnp.linalg.norm(image), jnp.vdot(v, image)
        turned = jnp.where(sharpness < 0, image + size * v, image)
        length = jnp.linalg.norm(turned)
        sound = jnp.isfinite(length) & (length > 0)
        return sharpness, jnp.where(sound, turned / jnp.where(sound, length, 1), direction)

    def skip(direction: Array) -> tuple[Array, Array]:
        return jnp.full((), jnp.nan, direction.dtype), direction

    sharpness, direction = jax.lax.cond(due, measure, skip, state.sharpest)
    alive = state.diverged_at < 0
    return state.replace(sharpest=jnp.where(alive, direction, state.sharpest)), jnp.where(alive, sharpness, jnp.nan)
