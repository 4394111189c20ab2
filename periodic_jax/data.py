"""Data sets as uint8 arrays in memory, and the on-device input path: order, gather, normalise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from periodic_jax.errors import ConfigError

# Purposes of randomness: every key is derived from (seed, purpose, epoch or step), never from a position in the grid.
INITIALISATION, ORDER = 0, 1


@dataclass(frozen=True)
class Dataset:
    """Labelled images, split for training and testing.

    Attributes:
        name: as on the command line.
        images, test_images: uint8 ``(count, height, width, channels)``.
        labels, test_labels: int32 ``(count,)``, classes from 0.
        num_classes: number of classes.
        mean, std: per channel, of images scaled to [0, 1]; what normalisation subtracts and divides by.
    """

    name: str
    images: UInt8[np.ndarray, "count height width channels"]
    labels: Int[np.ndarray, "count"]
    test_images: UInt8[np.ndarray, "test_count height width channels"]
    test_labels: Int[np.ndarray, "test_count"]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.images.shape[1:]


class DeviceData(NamedTuple):
    """A data set's arrays as arguments of a compiled program: they are never constants captured in it."""

    images: UInt8[Array, "count height width channels"]
    labels: Int[Array, "count"]
    test_images: UInt8[Array, "test_count height width channels"]
    test_labels: Int[Array, "test_count"]
    mean: Float[Array, "channels"]
    std: Float[Array, "channels"]


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
    return Dataset(
        "digits",
        images[train],
        labels[train],
        images[test],
        labels[test],
        10,
        (float(scaled.mean()),),
        (float(scaled.std()),),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": load_digits}


def load(name: str) -> Dataset:
    """The data set of that name.

    Raises:
        ConfigError: an unknown name.

    Example:
        >>> load("digits").images.shape
        (1500, 8, 8, 1)
    """
    if name not in DATASETS:
        raise ConfigError("--dataset", name, "one of " + ", ".join(DATASETS))
    return DATASETS[name]()


def to_device(dataset: Dataset, dtype: Any = jnp.float32) -> DeviceData:
    """The arrays of a data set on the default device, with normalisation constants in the compute dtype."""
    return DeviceData(
        images=jnp.asarray(dataset.images),
        labels=jnp.asarray(dataset.labels),
        test_images=jnp.asarray(dataset.test_images),
        test_labels=jnp.asarray(dataset.test_labels),
        mean=jnp.asarray(dataset.mean, dtype),
        std=jnp.asarray(dataset.std, dtype),
    )


def normalise(images: UInt8[Array, "*batch channels"], data: DeviceData) -> Float[Array, "*batch channels"]:
    """(image / 255 - mean) / std, per channel, in the dtype of the constants."""
    return (images.astype(data.mean.dtype) / 255 - data.mean) / data.std


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Mini-batches of one epoch: whole ones only. The images left over differ from epoch to epoch with the
    permutation.
    """
    return count // batch_size


def batch_indices(
    seed: Int[Array, ""],
    first_step: Int[Array, ""],
    steps: Int[Array, ""] | int,
    *,
    capacity: int,
    count: int,
    batch_size: int,
) -> Int[Array, "capacity batch"]:
    """Which images the mini-batches of consecutive steps hold: an epoch is one permutation, from (seed, epoch) alone.

    Args:
        seed: of the configuration.
        first_step: number of the first step; the answer for a step does not depend on it.
        steps: how many steps are wanted; only the epochs that they touch are permuted.
        capacity: most steps that may be wanted.
        count: images in the training set.
        batch_size: images in a mini-batch.

    Returns:
        Indices into the training set; rows from ``steps`` on are unspecified.

    Example:
        >>> rows = batch_indices(jnp.uint32(0), jnp.int32(0), 4, capacity=4, count=8, batch_size=2)
        >>> sorted(rows.ravel().tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    per_epoch = steps_per_epoch(count, batch_size)
    first_epoch = first_step // per_epoch
    start = first_step - first_epoch * per_epoch
    most = (capacity - 1) // per_epoch + 2
    key = purpose_key(seed, ORDER)

    def permute(i: Array, orders: Array) -> Array:
        order = jax.random.permutation(jax.random.fold_in(key, first_epoch + i), jnp.arange(count, dtype=jnp.int32))
        return jax.lax.dynamic_update_index_in_dim(orders, order[: per_epoch * batch_size], i, 0)

    touched = (start + steps - 1) // per_epoch + 1
    orders = jax.lax.fori_loop(0, touched, permute, jnp.zeros((most, per_epoch * batch_size), jnp.int32))
    return jax.lax.dynamic_slice_in_dim(orders.reshape(-1, batch_size), start, capacity)


def purpose_key(seed: Int[Array, ""], purpose: int) -> Key[Array, ""]:
    """The PRNG key of one purpose (`INITIALISATION`, `ORDER`) under a seed."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
