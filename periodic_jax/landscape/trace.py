"""Traces of matrices known by their products with vectors."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key


class Trace(NamedTuple):
    """Of each matrix."""

    value: np.ndarray  # (matrices,)
    error: np.ndarray  # its standard error; NaN of one probe


def hutchinson(
    product: Callable[[Float[Array, "matrices size"]], Float[Array, "matrices size"]],
    like: Float[Array, "matrices size"],
    key: Key[Array, ""],
    *,
    probes: int = 10,
) -> Trace:
    """The trace of symmetric matrices from random probes: the mean of ⟨z, A z⟩ over signs z, which is tr A on average.

    Args:
        product: the matrices times one vector each.
        like: an array of the shape and dtype of the vectors.
        key: of the probes, which are the same for all matrices.
        probes: how many.

    Returns:
        Means, and their standard errors from the spread of the probes.

    Example:
        >>> import jax.numpy as jnp
        >>> trace = hutchinson(lambda v: 2 * v, jnp.zeros((1, 5)), jax.random.key(0), probes=3)
        >>> trace.value.tolist(), trace.error.tolist()
        ([10.0], [0.0])

    Source: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989.
    """
    samples = []
    for i in range(probes):
        vectors = np.broadcast_to(probe(key, i, like), like.shape)
        samples.append(np.einsum("ms,ms->m", vectors, np.asarray(product(jax.numpy.asarray(vectors)), np.float64)))
    values = np.stack(samples)
    error = values.std(0, ddof=1) / np.sqrt(probes) if probes > 1 else np.full(values.shape[1], np.nan)
    return Trace(values.mean(0), error)


def probe(key: Key[Array, ""], i: int, like: Float[Array, "matrices size"]) -> Float[Array, "size"]:
    """The i-th random probe, a vector of signs."""
    return jax.random.rademacher(jax.random.fold_in(key, i), like.shape[1:], like.dtype)
