"""Data sets of one's own, as npz files of plain arrays."""

import warnings
from pathlib import Path

import numpy as np

from periodic_jax.core.errors import ConfigError, DataFileError
from periodic_jax.data.dataset import Arrays, Dataset, channel_statistics, checked

NAMES = ("images", "labels", "test_images", "test_labels")
KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")


def load_npz(path: Path) -> Dataset:
    """Read an npz file, without pickles.

    Args:
        path: of a file with ``images`` uint8 ``(count, height, width, channels)`` or ``(count, height, width)``,
            ``labels`` whole numbers ``(count,)``, ``test_images`` and ``test_labels``; or Keras's names ``x_train``,
            ``y_train``, ``x_test`` and ``y_test``.

    Returns:
        The data set, normalised by the mean and deviation of each channel of its training images. Its classes are the
        labels from 0 to the largest one for training, each of which must occur.

    Raises:
        ConfigError: no such file.
        DataFileError: a corrupted file, or arrays that are no data set.
    """
    if not path.is_file():
        raise ConfigError("--dataset", path, "an existing npz file")
    try:
        with path.open("rb") as stream, warnings.catch_warnings(), np.load(stream, allow_pickle=False) as file:
            warnings.simplefilter("error")
            names = next((names for names in (NAMES, KERAS_NAMES) if set(names) <= set(file.files)), ())
            present, arrays = file.files, [np.asarray(file[name]) for name in names]
    except Exception as error:  # whatever a corrupted or foreign file makes NumPy raise
        raise DataFileError(path, f"corrupted ({type(error).__name__})", "an npz file of plain arrays") from None
    if not arrays:
        expected = f"arrays {', '.join(NAMES)} (or {', '.join(KERAS_NAMES)})"
        raise DataFileError(path, ", ".join(present) or "no arrays", expected)
    images, labels, test_images, test_labels = arrays
    if images.ndim == test_images.ndim == 3:
        images, test_images = images[..., None], test_images[..., None]
    if labels.ndim == test_labels.ndim == 2 and labels.shape[1] == test_labels.shape[1] == 1:
        labels, test_labels = labels[:, 0], test_labels[:, 0]
    classes = np.unique(labels) if labels.dtype.kind in "iu" and labels.size else np.arange(2)  # refused below
    if not np.array_equal(classes, np.arange(max(len(classes), 2))):
        reason = f"training labels from {classes.min()} to {classes.max()}, {len(classes)} different ones,"
        raise DataFileError(path, reason, "classes 0, 1, 2 ..., two or more and each of them present")
    arrays = checked(Arrays(images, labels, test_images, test_labels), path, len(classes))
    return Dataset(str(path), *arrays, len(classes), *channel_statistics(arrays.images), source=str(path))
