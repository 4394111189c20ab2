"""Leading eigenvalues of many symmetric matrices at once, known by their products with vectors: Lanczos with full
reorthogonalisation.

The matrices are one for each configuration; the products with them are made together. An iteration is driven by the
host, so that any product will do, however long it takes, and it ends when all wanted eigenvalues have converged.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.linalg import eigh_tridiagonal

CHECK_EVERY = 4  # iterations between looks at the residuals


class Eigenvalues(NamedTuple):
    """Of each matrix; NaN where the product was not finite."""

    values: np.ndarray  # (matrices, count), largest first; NaN beyond the size of the matrix
    residuals: np.ndarray  # |A y - θ y| of each, for the unit vector y that belongs to it
    lowest: np.ndarray  # (matrices,) the smallest eigenvalue that was found, the most negative one if that converged
    lowest_residual: np.ndarray
    iterations: int


def lanczos(
    product: Callable[[Float[Array, "matrices size"]], Float[Array, "matrices size"]],
    start: Float[Array, "matrices size"],
    key: Key[Array, ""],
    *,
    count: int = 10,
    most: int = 100,
    tolerance: float = 1e-3,
) -> Eigenvalues:
    """The largest eigenvalues of symmetric matrices.

    A Q = Q T + β q eᵀ with Q orthonormal and T tridiagonal; eigenvalues θ of T are those of A to |β s|, s the last
    entry of T's unit eigenvector. Each new vector is made orthogonal to all before it, twice.

    Args:
        product: the matrices times one vector each.
        start: a vector for each, of any length but 0; or NaN for a matrix that is not to be looked at.
        key: of the random vectors that go on where an invariant subspace is found.
        count: eigenvalues wanted.
        most: iterations, and vectors kept, at most.
        tolerance: of the residuals, relative to the largest eigenvalue in size.

    Returns:
        Eigenvalues and residuals; the residuals give how far the wanted ones have converged.

    Example:
        >>> matrix = jnp.diag(jnp.array([3.0, -5.0, 2.0, 1.0]))
        >>> result = lanczos(lambda v: v @ matrix, jnp.ones((1, 4)), jax.random.key(0), count=2)
        >>> result.values.round(4).tolist(), result.lowest.round(4).tolist()
        ([[3.0, 2.0]], [-5.0])
    """
    size, nothing = start.shape[1], np.full((len(start), 0), np.nan)
    eigenvalues = _ritz(nothing, nothing, count, complete=False)
    for diagonal, beside in tridiagonals(product, start, key, most):
        done = diagonal.shape[1]
        if done == min(most, size) or done % CHECK_EVERY == 0:
            eigenvalues = _ritz(diagonal, beside, count, complete=done == size)
            scale = np.maximum(np.abs(eigenvalues.values[:, 0]), np.abs(eigenvalues.lowest))
            if done >= count and np.all(~(eigenvalues.residuals > tolerance * scale[:, None])):
                break
    return eigenvalues


def tridiagonals(
    product: Callable[[Float[Array, "matrices size"]], Float[Array, "matrices size"]],
    start: Float[Array, "matrices size"],
    key: Key[Array, ""],
    most: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tridiagonal matrices T of Lanczos, after each iteration a row and a column larger.

    Args:
        product, start, key, most: as for `lanczos`.

    Yields:
        The diagonal, and what is beside it, of which the last number belongs to the next row; each ``(matrices,
        iterations)``.
    """
    matrices, size = start.shape
    most = min(most, size)
    basis = jnp.zeros((matrices, most, size), start.dtype)
    vector = start / jnp.linalg.norm(start, axis=1, keepdims=True)
    diagonal, beside = np.full((2, matrices, most), np.nan)
    for i in range(most):
        fresh = jax.random.normal(jax.random.fold_in(key, i), (size,), start.dtype)
        basis, vector, alpha, beta = _advance(basis, vector, product(vector), fresh, i)
        diagonal[:, i], beside[:, i] = np.asarray(alpha), np.asarray(beta)
        yield diagonal[:, : i + 1], beside[:, : i + 1]


@partial(jax.jit, donate_argnums=0)
def _advance(basis: Array, vector: Array, image: Array, fresh: Array, i: Any) -> Any:
    """Put a vector into the basis, and make the next one from its image under the matrix."""

    def advance(basis: Array, vector: Array, image: Array) -> tuple[Array, ...]:
        basis = jax.lax.dynamic_update_index_in_dim(basis, vector, i, 0)
        alpha = jnp.vdot(vector, image)
        rest = _orthogonal(basis, image)
        norm, whole = jnp.linalg.norm(rest), jnp.linalg.norm(image)
        # Nothing is left but rounding: the subspace is invariant, and a random vector leads out of it.
        closed = norm <= 100 * jnp.finfo(rest.dtype).eps * whole
        beta = jnp.where(closed, 0, norm)
        rest = jnp.where(closed, _orthogonal(basis, fresh), rest)
        return basis, rest / jnp.linalg.norm(rest), alpha, beta

    return jax.vmap(advance)(basis, vector, image)


def _orthogonal(basis: Array, vector: Array) -> Array:
    """The part of a vector that is orthogonal to all rows; rows that are not there yet are zero. Twice is enough."""
    for _ in range(2):
        coefficients = jnp.matmul(basis, vector, precision="highest")
        vector = vector - jnp.matmul(coefficients, basis, precision="highest")
    return vector


def _ritz(diagonal: np.ndarray, beside: np.ndarray, count: int, *, complete: bool) -> Eigenvalues:
    """Eigenvalues of the tridiagonal matrices, with residuals."""
    matrices, size = diagonal.shape
    values, residuals = np.full((2, matrices, count), np.nan)
    lowest, lowest_residual = np.full((2, matrices), np.nan)
    for k in np.flatnonzero(np.isfinite(diagonal).all(1) & np.isfinite(beside).all(1) & (size > 0)):
        theta, s = eigh_tridiagonal(diagonal[k], beside[k, :-1])
        error = np.zeros(size) if complete else np.abs(beside[k, -1] * s[-1])
        wanted = min(count, size)
        values[k, :wanted], residuals[k, :wanted] = theta[::-1][:wanted], error[::-1][:wanted]
        lowest[k], lowest_residual[k] = theta[0], error[0]
    return Eigenvalues(values, residuals, lowest, lowest_residual, size)
