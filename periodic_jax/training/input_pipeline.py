"""The input path on the device: order, gather, augment, normalise."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from periodic_jax.data.dataset import Dataset, steps_per_epoch

# Purposes of randomness: every key is derived from (seed, purpose, epoch or step), never from a position in the grid.
INITIALISATION, ORDER, AUGMENTATION, DRAWN = 0, 1, 2, 3
SAMPLINGS = ("epochs", "iid")
PADDING = 4  # pixels of black around an image, in which the random crop moves


class DeviceData(NamedTuple):
    """A data set's arrays as arguments of a compiled program: they are never constants captured in it."""

    images: UInt8[Array, "count height width channels"]
    labels: Int[Array, "count"]
    test_images: UInt8[Array, "test_count height width channels"]
    test_labels: Int[Array, "test_count"]
    mean: Float[Array, "channels"]
    std: Float[Array, "channels"]
    corrupted: Bool[Array, "count"] | None = None  # which training labels were drawn at random


def to_device(dataset: Dataset, dtype: Any = jnp.float32) -> DeviceData:
    """The arrays of a data set on the default device, with normalisation constants in the compute dtype."""
    constants = [np.asarray(values, dtype) for values in (dataset.mean, dataset.std)]
    arrays = dataset.images, dataset.labels, dataset.test_images, dataset.test_labels, *constants, dataset.corrupted
    return DeviceData(*jax.tree.map(jnp.asarray, arrays))


def normalise(images: Array, mean: Float[Array, "channels"], std: Float[Array, "channels"]) -> Array:
    """(image / 255 - mean) / std of uint8 images ``(..., channels)``, per channel, in the dtype of the constants."""
    return (images.astype(mean.dtype) / 255 - mean) / std


@jax.named_scope("input_pipeline")
def mini_batch(
    data: DeviceData, index: Int[Array, "batch"], key: Key[Array, ""] | None = None
) -> Float[Array, "batch height width channels"]:
    """Gather a mini-batch of training images, augment it if a key is given, and normalise it.

    Args:
        data: the data set.
        index: of the images.
        key: of `augment`; None for the images as they are.

    Returns:
        The normalised images, in the dtype of the constants.
    """
    images = data.images[index]
    return normalise(images if key is None else augment(images, key), data.mean, data.std)


def augment(
    images: UInt8[Array, "batch height width channels"], key: Key[Array, ""]
) -> UInt8[Array, "batch height width channels"]:
    """Random crop of the image in a black frame of 4 pixels, then a horizontal flip with probability 1/2.

    Args:
        images: before normalisation, where black is 0.
        key: of one seed and step, see `augmentation_key`.

    Returns:
        Images of the same size.

    Example:
        >>> images = jnp.full((2, 8, 8, 1), 7, jnp.uint8)
        >>> augment(images, augmentation_key(jnp.uint32(0), jnp.int32(5))).shape
        (2, 8, 8, 1)
    """
    # One flat draw, which compiles fastest; the remainder's bias is below 1e-8.
    bits = jax.random.bits(key, (3 * len(images),), jnp.uint32).reshape(3, -1)
    offsets = (bits[:2] % (2 * PADDING + 1)).astype(jnp.int32)
    return crop_and_flip(images, offsets.T, bits[2] % 2 == 1)


def crop_and_flip(
    images: UInt8[Array, "batch height width channels"],
    offsets: Int[Array, "batch 2"],
    flips: Bool[Array, "batch"],
) -> UInt8[Array, "batch height width channels"]:
    """Crop each image out of its black frame of 4 pixels, and mirror some of them.

    Args:
        images: of any size.
        offsets: row and column, from 0 to 8, at which the crop begins in the framed image; 4 leaves it in place.
        flips: which crops are mirrored left to right.

    Returns:
        Images of the same size.
    """
    frame = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))

    def crop_one(framed: Array, offset: Array, flip: Array) -> Array:
        crop = jax.lax.dynamic_slice(framed, (offset[0], offset[1], jnp.int32(0)), images.shape[1:])
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(crop_one)(jnp.pad(images, frame), offsets, flips)


def augmentation_key(seed: Int[Array, ""], step: Int[Array, ""]) -> Key[Array, ""]:
    """The key of `augment` in one step of one seed, whatever the layout, the devices and the chunk."""
    return jax.random.fold_in(purpose_key(seed, AUGMENTATION), step)


def batch_indices(
    seed: Int[Array, ""],
    first_step: Int[Array, ""],
    steps: Int[Array, ""] | int,
    *,
    capacity: int,
    count: int,
    batch_size: int,
    sampling: str = "epochs",
) -> Int[Array, "capacity batch"]:
    """Which images the mini-batches of consecutive steps hold: an epoch is one permutation, from (seed, epoch) alone;
    or each image is drawn from all with replacement, from (seed, step) alone.

    Args:
        seed: of the configuration.
        first_step: number of the first step; the answer for a step does not depend on it.
        steps: how many steps are wanted; only the epochs that they touch are permuted.
        capacity: most steps that may be wanted.
        count: images in the training set.
        batch_size: images in a mini-batch.
        sampling: of `SAMPLINGS`; ``iid`` is with replacement.

    Returns:
        Indices into the training set; rows from ``steps`` on are unspecified.

    Example:
        >>> rows = batch_indices(jnp.uint32(0), jnp.int32(0), 4, capacity=4, count=8, batch_size=2)
        >>> sorted(rows.ravel().tolist())
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if sampling == "iid":
        draws = purpose_key(seed, DRAWN)

        def drawn(step: Array) -> Array:
            return jax.random.randint(jax.random.fold_in(draws, step), (batch_size,), 0, count, jnp.int32)

        return jax.vmap(drawn)(first_step + jnp.arange(capacity, dtype=jnp.int32))
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
    """The PRNG key of one purpose (`INITIALISATION`, `ORDER`, `AUGMENTATION`, `DRAWN`) under a seed."""
    return jax.random.fold_in(jax.random.key(seed), purpose)
