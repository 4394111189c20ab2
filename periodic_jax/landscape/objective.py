"""The loss whose landscape is measured: a weighted sum over fixed mini-batches, each with its own batch statistics, as
a function of some of the weights as one vector.
"""

from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from periodic_jax.core.errors import ConfigError
from periodic_jax.data import Dataset
from periodic_jax.models.labels import Labels
from periodic_jax.training.losses import losses
from periodic_jax.training.state import TrainState

PARTS = ("all", "corrupted", "clean")
WEIGHTS = ("invariant", "all")


class Batches(NamedTuple):
    """Mini-batches of one size, stacked, with the share of each image in the loss.

    The loss is Σ_b Σ_i shares[b, i] · loss_i: batch statistics are those of the whole mini-batch, also where the loss
    counts a part of its images.
    """

    images: UInt8[np.ndarray, "batches batch height width channels"]
    labels: Int[np.ndarray, "batches batch"]
    shares: Float[np.ndarray, "batches batch"]  # sum to 1, or to 0 where the part holds no image
    mean: Float[np.ndarray, "channels"]  # of the normalisation
    std: Float[np.ndarray, "channels"]


def fixed_batches(
    dataset: Dataset, batch_size: int, *, images: int | None = 1024, part: str = "all", dtype: Any = np.float32
) -> Batches:
    """The mini-batches on which a landscape is measured: always the same, for all configurations.

    Args:
        dataset: its training images, in an order that is random but always the same.
        batch_size: images in a mini-batch.
        images: about how many images: the whole mini-batches that hold at most so many, and at least one; None: all
            whole mini-batches.
        part: ``all``, or of a data set with corrupted labels the loss of the ``corrupted`` or of the ``clean`` images.
        dtype: of the shares and the normalisation.

    Returns:
        NumPy arrays.

    Raises:
        ConfigError: no such part, or a mini-batch that the data cannot fill.
    """
    count = len(dataset.images)
    if part not in PARTS or (part != "all" and dataset.corrupted is None):
        raise ConfigError("part", part, "all" if dataset.corrupted is None else "one of " + ", ".join(PARTS))
    if not 2 <= batch_size <= count:
        raise ConfigError("batch size", batch_size, f"from 2 to the {count} training images")
    most = count if images is None else min(images, count)
    number = max(most // batch_size, 1)
    order = np.random.default_rng(0).permutation(count)[: number * batch_size].reshape(number, batch_size)
    counted = np.ones(order.shape, bool)
    if dataset.corrupted is not None and part != "all":
        counted = dataset.corrupted[order] == (part == "corrupted")
    shares = counted / max(counted.sum(), 1)
    constants = (np.asarray(values, dtype) for values in (dataset.mean, dataset.std))
    return Batches(dataset.images[order], dataset.labels[order], shares.astype(dtype), *constants)


def chosen_leaves(labels: Labels, weights: str) -> Labels:
    """Which leaves of the parameters make the vector: the scale-invariant ones, or all.

    Raises:
        ConfigError: another word, or scale-invariant weights of a network without.
    """
    if weights not in WEIGHTS:
        raise ConfigError("--weights", weights, "invariant or all")
    chosen = labels if weights == "invariant" else (True,) * len(labels)
    if not any(chosen):
        raise ConfigError("--weights", weights, "all, as this network has no scale-invariant weights")
    return chosen


def to_vector(params: Any, chosen: Labels) -> Float[Array, "size"]:
    """The chosen leaves as one vector, in the order of `jax.tree.leaves`.

    Example:
        >>> to_vector({"a": jnp.ones((2, 2)), "b": jnp.zeros(3)}, (True, False)).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    return jnp.concatenate([leaf.ravel() for leaf in compress(jax.tree.leaves(params), chosen)])


def with_vector(params: Any, chosen: Labels, vector: Float[Array, "size"]) -> Any:
    """The parameters with the chosen leaves taken from a vector."""
    leaves, at = [], 0
    for leaf, is_chosen in zip(jax.tree.leaves(params), chosen, strict=True):
        leaves.append(vector[at : at + leaf.size].reshape(leaf.shape) if is_chosen else leaf)
        at += leaf.size * is_chosen
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def scores(
    state: TrainState, chosen: Labels, vector: Float[Array, "size"], images: Any
) -> Float[Array, "batch classes"]:
    """Logits of one mini-batch in train mode at other weights than the state's.

    Args:
        state: of one configuration.
        chosen: the leaves that the vector replaces.
        vector: their values.
        images: normalised, or prepared by the network.
    """
    variables = {"params": with_vector(state.params, chosen, vector), **state.collections}
    return state.task.network.apply(variables, images, train=True, key=state.step_key)[0]


def weighted_loss(
    task: Any, logits: Float[Array, "batch classes"], labels: Int[Array, "batch"], shares: Float[Array, "batch"]
) -> Float[Array, ""]:
    """Σ_i shares_i · loss_i of one mini-batch, with the loss that the network is trained on."""
    return jnp.vdot(shares, losses(task.loss, logits, labels))
