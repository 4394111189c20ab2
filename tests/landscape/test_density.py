"""Spectral densities against dense eigenvalues of a tiny network, in float64, and against known spectra."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.dense_curvature import matrices

from periodic_jax.landscape import Surface, broadened_density, stochastic_lanczos


def test_a_quadrature_has_the_moments_of_the_dense_matrix(states, dense):
    """To the degree for which it is exact, of each probe; a configuration that is not finite gives NaN."""
    surface, key, iterations = Surface(states, dense[0]), jax.random.key(5), 4
    size = surface.weights.shape[1]
    found = stochastic_lanczos(surface.product("hessian"), surface.weights, key, probes=2, iterations=iterations)
    for k, whole in enumerate(matrices(dense)["hessian"]):
        scale = np.abs(np.linalg.eigvalsh(whole[:size, :size])).max()
        matrix = whole[:size, :size] / scale
        for j in range(2):
            z = np.asarray(jax.random.rademacher(jax.random.fold_in(key, j), (size,), np.float64)) / size**0.5
            nodes, weights = found.nodes[k, j] / scale, found.weights[k, j]
            for degree in range(2 * iterations):
                exact = z @ np.linalg.matrix_power(matrix, degree) @ z
                np.testing.assert_allclose(weights @ nodes**degree, exact, rtol=0, atol=1e-10)
    assert np.isnan(found.nodes[2]).all()
    assert np.isnan(found.weights[2]).all()


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_a_density_is_that_of_the_dense_eigenvalues(states, dense, kind):
    """Of all iterations each probe gives its own weights of the eigenvectors, which are 1/n on average."""
    surface, key, probes = Surface(states, dense[0]), jax.random.key(6), 3
    size = surface.weights.shape[1]
    found = stochastic_lanczos(surface.product(kind), surface.weights, key, probes=probes, iterations=size)
    for k, whole in enumerate(matrices(dense)[kind]):
        values, vectors = np.linalg.eigh(whole[:size, :size])
        width, at = 0.05 * np.ptp(values), np.linspace(values[0], values[-1], 30)
        signs = [
            np.asarray(jax.random.rademacher(jax.random.fold_in(key, j), (size,), np.float64)) for j in range(probes)
        ]
        shares = np.mean([(vectors.T @ z) ** 2 / size for z in signs], 0)
        normal = np.exp(-((at[:, None] - values) ** 2) / (2 * width**2)) / (width * np.sqrt(2 * np.pi))
        got = broadened_density(found.nodes[k], found.weights[k], at, width)
        np.testing.assert_allclose(got, normal @ shares, rtol=1e-7, atol=1e-9 * normal.max())


def test_densities_of_diagonal_matrices_are_exact(float64):
    """Signs weigh all axes alike, so that one probe has the whole spectrum; in float32 and under jit too."""
    diagonals = jnp.array([[1.0, -2.0, 1.0, 1.0, 7.0, -2.0, 0.0, 7.0], [3.0] * 8])
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 1e-5)):
        product = jax.jit(partial(jnp.multiply, diagonals.astype(dtype)))
        found = stochastic_lanczos(product, jnp.zeros((2, 8), dtype), jax.random.key(1), probes=2, iterations=4)
        for j in range(2):
            np.testing.assert_allclose(found.nodes[0, j], [-2, 0, 1, 7], atol=10 * tolerance)
            np.testing.assert_allclose(found.weights[0, j], np.array([2, 1, 3, 2]) / 8, atol=tolerance)
            np.testing.assert_allclose(found.weights[1, j] @ found.nodes[1, j], 3, rtol=tolerance)
    at = np.linspace(-5, 10, 2001)
    density = broadened_density(found.nodes, found.weights, at, 0.2)
    assert density.shape == (2, 2001)
    np.testing.assert_allclose(np.trapezoid(density, at, axis=1), 1, rtol=1e-6)
