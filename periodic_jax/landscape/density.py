"""Spectral densities of many symmetric matrices at once, known by their products with vectors: stochastic Lanczos."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from scipy.linalg import eigh_tridiagonal

from periodic_jax.landscape.lanczos import tridiagonals
from periodic_jax.landscape.trace import probe


class Spectrum(NamedTuple):
    """A quadrature of the spectral density of each matrix for each probe; NaN where the product was not finite."""

    nodes: np.ndarray  # (matrices, probes, nodes) ascending
    weights: np.ndarray  # of each; they sum to 1


def stochastic_lanczos(
    product: Callable[[Float[Array, "matrices size"]], Float[Array, "matrices size"]],
    like: Float[Array, "matrices size"],
    key: Key[Array, ""],
    *,
    probes: int = 10,
    iterations: int = 50,
) -> Spectrum:
    r"""Nodes and weights of the spectral density, by Lanczos from random vectors.

    Of a random unit vector z the weights of A's eigenvectors in it are, on average, those of the density. For each z,

    $$ \sum_k w_k f(\theta_k) \approx z^\top f(A) z, \qquad \mathbb{E}\, z^\top f(A) z = \frac1n \sum_i f(\lambda_i), $$

    with $\theta_k$ the eigenvalues of the tridiagonal T and $w_k$ the squares of the first entries of its unit
    eigenvectors. It is exact for polynomials of degree below twice the number of iterations.

    Args:
        product: the matrices times one vector each.
        like: an array of the shape and dtype of the vectors.
        key: of the probes, vectors of signs that are the same for all matrices.
        probes: how many.
        iterations: of Lanczos for each, and nodes; at most the size of the matrices.

    Returns:
        Nodes and weights.

    Example:
        >>> diagonal, key = jnp.array([1.0, 1.0, 1.0, 5.0]), jax.random.key(0)
        >>> found = stochastic_lanczos(lambda v: v * diagonal, jnp.zeros((1, 4)), key, probes=1, iterations=2)
        >>> found.nodes.round(4).tolist(), found.weights.round(4).tolist()
        ([[[1.0, 5.0]]], [[[0.75, 0.25]]])

    Source: Golub and Welsch, Calculation of Gauss quadrature rules, 1969; Ghorbani et al., An investigation into neural
    net optimization via Hessian eigenvalue density, 2019.
    """
    found = []
    for i in range(probes):
        start = jnp.broadcast_to(probe(key, i, like), like.shape)
        *_, (diagonal, beside) = tridiagonals(product, start, jax.random.fold_in(key, i), iterations)
        found.append([_quadrature(diagonal[k], beside[k, :-1]) for k in range(len(like))])
    nodes, weights = np.moveaxis(np.array(found, np.float64), 2, 0)  # (probes, matrices, nodes) each
    return Spectrum(nodes.swapaxes(0, 1), weights.swapaxes(0, 1))


def _quadrature(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a tridiagonal matrix, and the squares of the first entries of its eigenvectors."""
    if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
        return np.full_like(diagonal, np.nan), np.full_like(diagonal, np.nan)
    values, vectors = eigh_tridiagonal(diagonal, beside)
    return values, vectors[0] ** 2
