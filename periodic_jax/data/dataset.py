"""What a data set is: labelled uint8 images in memory, split for training and testing."""

import zlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from periodic_jax.core.errors import DataFileError

# Of CIFAR-10; the reference normalises CIFAR-100 and SVHN by them too.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGES = "uint8 images (count, height, width, channels), at least one"


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split for training and testing.

    Attributes:
        name: as on the command line.
        images, test_images: uint8 ``(count, height, width, channels)``.
        labels, test_labels: int32 ``(count,)``, classes from 0.
        num_classes: number of classes.
        mean, std: per channel, of images scaled to [0, 1]; what normalisation subtracts and divides by.
        source: where it was read from.
        corrupted: which training images were drawn for a random label; None where no corruption was asked for.
    """

    name: str
    images: UInt8[np.ndarray, "count height width channels"]
    labels: Int[np.ndarray, "count"]
    test_images: UInt8[np.ndarray, "test_count height width channels"]
    test_labels: Int[np.ndarray, "test_count"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str = "embedded"
    corrupted: Bool[np.ndarray, "count"] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]

    def described(self) -> dict[str, Any]:
        """Which images these are, as JSON can hold it, for the record of a run."""
        crc = 0
        for array in (self.images, self.labels, self.test_images, self.test_labels):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return {
            "source": self.source,
            "classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "train_images": len(self.images),
            "test_images": len(self.test_images),
            "corrupted": None if self.corrupted is None else int(self.corrupted.sum()),
            "crc32": crc,
        }


class Arrays(NamedTuple):
    """What a file holds."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def checked(arrays: Arrays, source: object, num_classes: int, shape: tuple[int, ...] | None = None) -> Arrays:
    """Refuse arrays that are no data set; labels become int32.

    Args:
        arrays: images and labels for training and testing.
        source: the file or folder they are from, for the error.
        num_classes: number of classes.
        shape: what each image must be, ``(height, width, channels)``; any, if None.

    Returns:
        The same, with int32 labels and contiguous images.

    Raises:
        DataFileError: wrong shapes or dtypes, no images, or labels outside the classes.
    """
    shape = shape or arrays.images.shape[1:]
    for images, labels in ((arrays.images, arrays.labels), (arrays.test_images, arrays.test_labels)):
        if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
            raise DataFileError(source, f"{_described(images)} images", IMAGES)
        if images.shape[1:] != shape:
            raise DataFileError(source, f"images {_by(images.shape[1:])}", f"images {_by(shape)}")
        if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
            expected = f"one whole number for each of {len(images)} images"
            raise DataFileError(source, f"{_described(labels)} labels", expected)
        if not 0 <= labels.min() <= labels.max() < num_classes:
            outside = labels.min() if labels.min() < 0 else labels.max()
            raise DataFileError(source, f"label {outside}", f"labels from 0 to {num_classes - 1}")
    return Arrays(*map(np.ascontiguousarray, arrays, (np.uint8, np.int32) * 2))


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images scaled to [0, 1].

    Args:
        images: uint8 ``(count, height, width, channels)``.

    Returns:
        Two tuples of one number for each channel; a deviation of 0 (a constant channel) is given as 1.

    Example:
        >>> channel_statistics(np.array([[[[0, 255], [255, 255]]]], np.uint8))
        ((0.5, 1.0), (0.5, 1.0))
    """
    # Counts of the 256 values: exact, and without a copy of all images in floating point.
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[-1])])
    values, weights = np.arange(256) / 255, counts / counts.sum(1, keepdims=True)
    mean = weights @ values
    deviation = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist())


def _described(array: np.ndarray) -> str:
    nan = ", some NaN," if array.dtype.kind in "fc" and np.isnan(array).any() else ""
    return f"{array.dtype} {_by(array.shape) or 'single'}{nan}"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Mini-batches of one epoch: whole ones only. The images left over differ from epoch to epoch with the
    permutation.
    """
    return count // batch_size
