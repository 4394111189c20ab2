"""Curvature on the unit sphere, measured while training goes on: sharpness of mini-batches, and the largest eigenvalue.

What a step multiplies is the curvature of its own mini-batch, along the step. So that is measured, by one product with
the Hessian: the Rayleigh quotient in the direction of the gradient, which is one Lanczos iteration. It starts warm, as
the gradient near a minimum is an image under the Hessian already.

The largest eigenvalue is of the mean loss of mini-batches that are the same for all steps and configurations. Lanczos
starts from the same random vector each time, so the value depends on the weights alone: no vector is kept, and the
value does not lag after a destabilisation.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.hvp import hessian_vector, loss_and_gradient, on_sphere, tangential
from periodic_jax.landscape.objective import to_vector
from periodic_jax.training.state import Batch, TrainState

ITERATIONS = 12  # of Lanczos: right to 2e-5, docs/development/decisions/eigenvalue-while-training.md


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


def largest_eigenvalue(state: TrainState, batches: Batch, iterations: int = ITERATIONS) -> Float[Array, ""]:
    """The largest eigenvalue λ of ρ² P H P, the Hessian at x/ρ projected on the tangents of the unit sphere.

    The largest one, and not the largest in size: a negative one makes no step unstable.

    Args:
        state: of one configuration, with scale-invariant weights.
        batches: mini-batches, stacked; the loss is their mean.
        iterations: products with the Hessian.

    Returns:
        λ, or from too few iterations less; NaN where the Hessian is not finite.
    """
    chosen = state.task.labels
    x = to_vector(state.params, chosen)
    start = jax.random.normal(jax.random.key(0, impl="threefry2x32"), x.shape, x.dtype)
    product = on_sphere(lambda v: _total(batches, x, lambda batch: hessian_vector(state, v, batch, chosen)), x)
    return largest_ritz_value(product, tangential(x, start), iterations)


def largest_ritz_value(
    product: Callable[[Float[Array, "size"]], Float[Array, "size"]], start: Float[Array, "size"], iterations: int
) -> Float[Array, ""]:
    """The largest eigenvalue of a symmetric matrix A on the Krylov space of a vector: Lanczos in one compiled program.

    A v_i = β_{i-1} v_{i-1} + α_i v_i + β_i v_{i+1}, and α, β make a tridiagonal matrix T. Without reorthogonalisation T
    repeats eigenvalues that have converged, which leaves the largest one as it is, and no basis is kept.

    Args:
        product: v ↦ A v.
        start: any vector but 0.
        iterations: products.

    Returns:
        The largest eigenvalue of T; NaN where a product is not finite. Where the Krylov space is smaller than T, an
        eigenvalue of 0 is added.

    Example:
        >>> matrix = jnp.diag(jnp.array([3.0, -5.0, 2.0, 1.0]))
        >>> round(float(largest_ritz_value(lambda v: matrix @ v, jnp.ones(4), 4)), 4)
        3.0
    """

    def advance(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        before, vector, beside = carry
        image = product(vector)
        diagonal = jnp.vdot(vector, image)
        rest = image - diagonal * vector - beside * before
        size = jnp.linalg.norm(rest)
        # Nothing but rounding may be left: the space is invariant.
        beside = jnp.where(size > 100 * jnp.finfo(rest.dtype).eps * jnp.linalg.norm(image), size, 0)
        following = jnp.where(beside > 0, rest / jnp.where(beside > 0, beside, 1), 0)
        return (vector, following, beside), (diagonal, beside)

    first = jnp.zeros_like(start), start / jnp.linalg.norm(start), jnp.zeros((), start.dtype)
    diagonal, beside = jax.lax.scan(advance, first, None, iterations)[1]
    matrix = jnp.diag(diagonal) + jnp.diag(beside[:-1], 1) + jnp.diag(beside[:-1], -1)
    is_known = jnp.isfinite(matrix).all()
    return jnp.where(is_known, jnp.linalg.eigvalsh(jnp.where(is_known, matrix, 0))[-1], jnp.nan)


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
