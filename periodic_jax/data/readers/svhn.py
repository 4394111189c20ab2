"""SVHN's official MATLAB files, train_32x32.mat and test_32x32.mat."""

from pathlib import Path

import numpy as np

from periodic_jax.core.errors import DataFileError
from periodic_jax.data.dataset import Arrays, checked
from periodic_jax.data.locations import Place
from periodic_jax.data.readers._matlab import read_matlab

FILES = ("train_32x32.mat", "test_32x32.mat")
SHAPE = (32, 32, 3)


def places(root: Path) -> list[Place]:
    """Where in a folder the two files may be."""
    files = [root / name for name in FILES]
    return [Place(files[0], lambda: files, lambda: read(root))]


def read(folder: Path) -> Arrays:
    """Read both files.

    Args:
        folder: with the files in it.

    Returns:
        The images and labels; the digit 0, labelled 10 in the files, is class 0.

    Raises:
        DataFileError: a missing, corrupted or foreign file.
    """
    train, test = (_read(folder / name) for name in FILES)
    return checked(Arrays(*train, *test), folder, 10, SHAPE)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    arrays = read_matlab(path, ("X", "y"))
    if missing := [name for name in ("X", "y") if name not in arrays]:
        raise DataFileError(path, f"no {missing[0]}", "images X and labels y")
    images, labels = arrays["X"], arrays["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != SHAPE:
        raise DataFileError(path, f"X {images.dtype} {images.shape}", "uint8 X (32, 32, 3, count)")
    if labels.size != images.shape[3] or max(labels.shape, default=0) != labels.size:
        raise DataFileError(path, f"y {labels.shape}", f"y ({images.shape[3]}, 1)")
    labels = labels.ravel()
    if len(wrong := labels[~np.isin(labels, np.arange(1, 11))]):
        raise DataFileError(path, f"label {wrong[0]}", "labels from 1 to 10")
    return images.transpose(3, 0, 1, 2), labels.astype(np.int32) % 10
