"""Data sets that need no file: scikit-learn's digits and synthetic images."""

from typing import Any

import numpy as np

from periodic_jax.data.dataset import Dataset, channel_statistics


def load_digits() -> Dataset:
    """scikit-learn's digits: 1,797 real scans of 8x8 pixels with 16 grey levels, embedded in the library.

    1,500 for training and 297 for testing, drawn once with a fixed seed.
    """
    from sklearn.datasets import load_digits as embedded

    bunch: Any = embedded()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    train, test = order[:1500], order[1500:]
    labels = bunch.target.astype(np.int32)
    scaled = images[train] / 255.0
    mean, std = (float(scaled.mean()),), (float(scaled.std()),)
    return Dataset("digits", images[train], labels[train], images[test], labels[test], 10, mean, std)


def load_synthetic() -> Dataset:
    """Images of CIFAR's shape that are the same everywhere: 5,000 for training, 1,000 for testing, 32x32x3, 10 classes.

    Each class is a pattern of 8x8 coloured tiles. An image is its class's pattern, shifted around by up to 3 pixels
    each way, plus uniform noise of up to 60 grey levels; whole numbers throughout, from a fixed seed.
    """
    rng = np.random.RandomState(0)  # the stream of this generator is frozen, so the images never change
    patterns = rng.randint(70, 186, (10, 8, 8, 3)).repeat(4, 1).repeat(4, 2)
    labels = np.arange(6000) % 10
    shifts = rng.randint(-3, 4, (6000, 2))
    along = np.arange(32)
    rows, columns = ((along + shifts[:, [k]]) % 32 for k in (0, 1))
    images = patterns[labels[:, None, None], rows[:, :, None], columns[:, None, :]]
    images = (images + rng.randint(-60, 61, images.shape)).astype(np.uint8)
    labels = labels.astype(np.int32)
    mean, std = channel_statistics(images[:5000])
    return Dataset("synthetic", images[:5000], labels[:5000], images[5000:], labels[5000:], 10, mean, std)
