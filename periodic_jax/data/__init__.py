"""Data sets as uint8 arrays in memory, where they are found, and their variations. NumPy only.

A new data set is one function and one line in `DATASETS`.
"""

from periodic_jax.data.dataset import CIFAR_MEAN, CIFAR_STD, Dataset, steps_per_epoch
from periodic_jax.data.readers.builtin import load_digits, load_synthetic
from periodic_jax.data.registry import DATASETS, Where, load
from periodic_jax.data.transforms import Variations, check_variations, vary

__all__ = [
    "CIFAR_MEAN", "CIFAR_STD", "DATASETS", "Dataset", "Variations", "Where", "check_variations", "load", "load_digits",
    "load_synthetic", "steps_per_epoch", "vary",
]  # fmt: skip
