"""Data sets as uint8 arrays in memory, where they are found, their variations, and the input path on the device.

A new data set is one function and one line in `DATASETS`.
"""

from periodic_jax.data.dataset import CIFAR_MEAN, CIFAR_STD, Dataset
from periodic_jax.data.datasets import DATASETS, Where, load
from periodic_jax.data.device import (
    AUGMENTATION,
    INITIALISATION,
    ORDER,
    DeviceData,
    augment,
    augmentation_key,
    batch_indices,
    corruption_parts,
    crop_and_flip,
    mini_batch,
    normalise,
    purpose_key,
    steps_per_epoch,
    to_device,
)
from periodic_jax.data.embedded import load_digits, load_synthetic
from periodic_jax.data.variations import Variations, check_variations, vary

__all__ = [
    "AUGMENTATION", "CIFAR_MEAN", "CIFAR_STD", "DATASETS", "INITIALISATION", "ORDER", "Dataset", "DeviceData",
    "Variations", "Where", "augment", "augmentation_key", "batch_indices", "check_variations", "corruption_parts",
    "crop_and_flip", "load", "load_digits", "load_synthetic", "mini_batch", "normalise", "purpose_key",
    "steps_per_epoch", "to_device", "vary",
]  # fmt: skip
