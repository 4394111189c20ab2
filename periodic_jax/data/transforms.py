"""Variations of a data set, those of the reference: subsets, a validation split, corrupted labels, smaller images."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.data.dataset import Dataset

SPLIT_CLASSES = ((0, 1, 2, 8, 9), (3, 4, 5, 6, 7))  # of CIFAR-10, as the reference splits them
CORRUPTION_SEED = 228  # the reference's: the same images get the same labels


@dataclass(frozen=True)
class Variations:
    """What to change about a data set, in this order; all off as they stand.

    Attributes:
        validation: the last that many training images take the test set's place, and are not trained on.
        split_classes: 0 or 1: only that half of CIFAR-10's classes, renumbered from 0.
        use_data_size: train on the first that many images of what is left.
        corrupt_train: fraction of training images whose label is drawn anew, uniformly over the classes: it may come
            out the true one.
        resize: height of the images, made smaller by averaging over square blocks.
    """

    validation: int | None = None
    split_classes: int | None = None
    use_data_size: int | None = None
    corrupt_train: float = 0.0
    resize: int | None = None


def check_variations(variations: Variations) -> None:
    """Refuse settings that no data set could have.

    Raises:
        ConfigError: counts below 1, another split than 0 or 1, or a fraction outside [0, 1].
    """
    for name in ("validation", "use_data_size", "resize"):
        count = getattr(variations, name)
        if count is not None and count < 1:
            raise ConfigError(flag_of(name), count, "a whole number from 1")
    if variations.split_classes not in (None, 0, 1):
        raise ConfigError("--split-classes", variations.split_classes, "0 or 1")
    if not 0 <= variations.corrupt_train <= 1:
        raise ConfigError("--corrupt-train", variations.corrupt_train, "a fraction from 0 to 1")


def vary(dataset: Dataset, variations: Variations) -> Dataset:
    """Apply variations to a data set.

    Args:
        dataset: as read.
        variations: what to change.

    Returns:
        The data set to train on.

    Raises:
        ConfigError: a variation that this data set cannot have.

    Example:
        >>> from periodic_jax.data import load
        >>> vary(load("digits"), Variations(validation=300, resize=4)).images.shape
        (1200, 4, 4, 1)
    """
    check_variations(variations)
    changes = (hold_out, split, first, corrupt, resize)  # in the order of the fields
    for change, value in zip(changes, dataclasses.astuple(variations), strict=True):
        if value is not None:
            dataset = change(dataset, value)
    return dataset


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The last ``count`` training images instead of the test set."""
    left = len(dataset.images) - count
    if left < 2:
        raise ConfigError("--validation", count, f"less than the {len(dataset.images)} training images")
    images, labels = dataset.images, dataset.labels
    return dataclasses.replace(
        dataset, images=images[:left], labels=labels[:left], test_images=images[left:], test_labels=labels[left:]
    )


def split(dataset: Dataset, half: int) -> Dataset:
    """Half of CIFAR-10's classes, in training and test set, renumbered in their order."""
    if dataset.name != "cifar10":
        raise UsageError("--split-classes", f"{dataset.name} has no such halves", "give it with --dataset cifar10")
    classes = np.array(SPLIT_CLASSES[half])
    train, test = np.isin(dataset.labels, classes), np.isin(dataset.test_labels, classes)
    if train.sum() < 2 or not test.any():
        raise ConfigError("--split-classes", half, f"images of the classes {', '.join(map(str, classes))}")

    def renumbered(labels: np.ndarray) -> np.ndarray:
        return np.searchsorted(classes, labels).astype(np.int32)

    return dataclasses.replace(
        dataset, images=dataset.images[train], labels=renumbered(dataset.labels[train]), num_classes=len(classes),
        test_images=dataset.test_images[test], test_labels=renumbered(dataset.test_labels[test]),
    )  # fmt: skip


def first(dataset: Dataset, count: int) -> Dataset:
    """The first ``count`` training images."""
    if not 2 <= count <= len(dataset.images):
        raise ConfigError("--use-data-size", count, f"from 2 to the {len(dataset.images)} training images")
    return dataclasses.replace(dataset, images=dataset.images[:count], labels=dataset.labels[:count])


def corrupt(dataset: Dataset, fraction: float) -> Dataset:
    """New labels, uniform over the classes, for each training image with probability ``fraction``.

    Drawn once, from a fixed seed: all configurations and seeds see the same labels.
    """
    if not fraction:
        return dataset
    rng = np.random.RandomState(CORRUPTION_SEED)  # its stream is frozen, and it is the reference's
    drawn = rng.rand(len(dataset.labels)) <= fraction
    labels = dataset.labels.copy()
    labels[drawn] = rng.choice(dataset.num_classes, drawn.sum())
    return dataclasses.replace(dataset, labels=labels, corrupted=drawn)


def resize(dataset: Dataset, height: int) -> Dataset:
    """Smaller images: each pixel is the mean of a square block, rounded half up. Normalisation stays as it is."""
    rows, columns, _ = dataset.image_shape
    block = rows // height
    if height > rows or rows % height or columns % block:
        sizes = [rows // k for k in range(1, rows + 1) if rows % k == 0 and columns % k == 0]
        raise ConfigError("--resize", height, f"one of {', '.join(map(str, sizes))} for images of {rows}x{columns}")
    return dataclasses.replace(
        dataset, images=area_mean(dataset.images, block), test_images=area_mean(dataset.test_images, block)
    )


def area_mean(images: np.ndarray, block: int) -> np.ndarray:
    """Mean over blocks of pixels, rounded half up.

    Args:
        images: uint8 ``(count, height, width, channels)``, whose sides ``block`` divides.
        block: side of a block, in pixels.

    Returns:
        uint8 ``(count, height / block, width / block, channels)``.

    Example:
        >>> area_mean(np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1), 2).ravel()
        array([1], dtype=uint8)
    """
    # Strided sums are several times faster than a mean over two axes.
    count, height, width, channels = images.shape
    total = np.zeros((count, height // block, width // block, channels), np.uint32)
    for i in range(block):
        for j in range(block):
            total += images[:, i::block, j::block]
    return ((total + block * block // 2) // (block * block)).astype(np.uint8)
