"""The loss landscape around a state: products with curvature matrices, traces, leading eigenvalues, gradient noise."""

from periodic_jax.core.density import broadened_density
from periodic_jax.landscape.density import Spectrum, stochastic_lanczos
from periodic_jax.landscape.gradient_noise import GradientNoise
from periodic_jax.landscape.hvp import PRODUCTS
from periodic_jax.landscape.lanczos import Eigenvalues, lanczos
from periodic_jax.landscape.objective import PARTS, WEIGHTS, Batches, fixed_batches
from periodic_jax.landscape.surface import Surface
from periodic_jax.landscape.trace import Trace, hutchinson

__all__ = [
    "PARTS", "PRODUCTS", "WEIGHTS", "Batches", "Eigenvalues", "GradientNoise", "Spectrum", "Surface", "Trace",
    "broadened_density", "fixed_batches", "hutchinson", "lanczos", "stochastic_lanczos",
]  # fmt: skip
