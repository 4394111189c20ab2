"""The loss landscape around a state: products with curvature matrices, traces, leading eigenvalues, gradient noise."""

from periodic_jax.landscape.lanczos import Eigenvalues, lanczos
from periodic_jax.landscape.noise import GradientNoise
from periodic_jax.landscape.objective import PARTS, WEIGHTS, Batches, fixed_batches
from periodic_jax.landscape.products import PRODUCTS
from periodic_jax.landscape.surface import Surface
from periodic_jax.landscape.traces import Trace, hutchinson

__all__ = [
    "PARTS", "PRODUCTS", "WEIGHTS", "Batches", "Eigenvalues", "GradientNoise", "Surface", "Trace", "fixed_batches",
    "hutchinson", "lanczos",
]  # fmt: skip
