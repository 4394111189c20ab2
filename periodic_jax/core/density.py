"""Spectral densities as curves, from the nodes and weights of their quadrature."""

import math

import numpy as np
from jaxtyping import Float


def broadened_density(
    nodes: Float[np.ndarray, "... probes nodes"],
    weights: Float[np.ndarray, "... probes nodes"],
    at: Float[np.ndarray, "points"],
    width: float,
) -> Float[np.ndarray, "... points"]:
    r"""The spectral density with each eigenvalue broadened to a normal distribution.

    $$ \phi(t) = \frac1m \sum_{j=1}^m \sum_k w_{jk}\, \mathcal N(t;\, \theta_{jk}, \sigma^2) $$

    Args:
        nodes, weights: of a `landscape.Spectrum`, or of a landscape, with probes and nodes last.
        at: eigenvalues t.
        width: σ, in units of the eigenvalues.

    Returns:
        The density at each; its integral is 1.

    Example:
        >>> broadened_density(np.array([[0.0, 2.0]]), np.array([[0.5, 0.5]]), np.array([0.0, 1.0]), 0.1).round(2)
        array([1.99, 0.  ])
    """
    distance = (np.asarray(at)[:, None, None] - np.asarray(nodes)[..., None, :, :]) / width
    each = np.exp(-(distance**2) / 2) / (width * math.sqrt(2 * math.pi))
    return (each * np.asarray(weights)[..., None, :, :]).sum(-1).mean(-1)
