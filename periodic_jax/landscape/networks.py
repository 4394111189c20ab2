"""Trained networks compared: quality with re-estimated statistics, angles, paths between them, ensembles, averages.

Running statistics of batch normalisation follow the training with a delay, and mean nothing between two networks or at
their average. So all are re-estimated here, over the training set, before anything is measured.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from periodic_jax.data import Dataset
from periodic_jax.landscape.connectivity import Params, combined
from periodic_jax.models.layers import BN_MOMENTUM
from periodic_jax.training.input_pipeline import DeviceData, normalise
from periodic_jax.training.losses import LOSSES
from periodic_jax.training.state import Task

MOST_PIXELS = 2**19  # of the images that are normalised together: 8,192 of 8x8, 512 of 32x32


class Quality(NamedTuple):
    """Of one network with re-estimated statistics."""

    train_loss: float  # mean over the images that the statistics are of
    train_error: float
    test_loss: float
    test_error: float
    test_outputs: np.ndarray  # (images, classes) logits
    statistics: Any  # running mean and variance of each normalisation


class Networks:
    """Measures networks of one architecture on one data set.

    The statistics are those of the training images in parts as large as `MOST_PIXELS` allows, each normalised by
    itself, as in training: the mean is the mean m̄ of the parts' means m_p, the variance that of their variances, plus
    the mean of (m_p - m̄)². Of a single part they are exactly those of all its images.

    Args:
        task: network, labels and loss.
        dataset: training and test images.
        images: how many training images to take, from a random but fixed order; None: all.
        most_pixels: of the images that are normalised together.

    Example:
        >>> from periodic_jax import data, models
        >>> from periodic_jax.training.state import create_train_state
        >>> model, digits = models.build("ConvNetSI", width=2, depth=1), data.load("digits")
        >>> state = create_train_state(model, model.labels(), jax.random.key(0), jnp.zeros((2, 8, 8, 1)))
        >>> quality = Networks(state.task, digits).quality(state.params, state.batch_stats)
        >>> quality.test_outputs.shape
        (297, 10)
    """

    def __init__(
        self, task: Task, dataset: Dataset, *, images: int | None = None, most_pixels: int = MOST_PIXELS
    ) -> None:
        self.task, dtype = task, getattr(task.model, "param_dtype", jnp.float32)
        none, no_label = jnp.zeros((0, *dataset.image_shape), jnp.uint8), jnp.zeros(0, jnp.int32)
        constants = (jnp.asarray(values, dtype) for values in (dataset.mean, dataset.std))
        self._constants = DeviceData(none, no_label, none, no_label, *constants)
        most = max(most_pixels // int(np.prod(dataset.image_shape[:2])), 2)
        count = len(dataset.labels)
        chosen = np.arange(count)
        if images is not None and images < count:
            chosen = np.sort(np.random.default_rng(0).permutation(count)[:images])
        self.images = len(chosen)
        self._train = self._parts(dataset.images[chosen], dataset.labels[chosen], most)
        self._test = self._parts(dataset.test_images, dataset.test_labels, most)
        self.test_labels = np.asarray(dataset.test_labels)

        def train(params: Any, statistics: Any, images: Array, data: DeviceData) -> tuple[Array, Any]:
            variables = {"params": params, "batch_stats": jax.tree.map(jnp.zeros_like, statistics)}
            logits, updated = task.model.apply(variables, normalise(images, data), train=True, mutable=["batch_stats"])
            # From zero, one update of the running statistics gives a known share of those of this one part.
            return logits, jax.tree.map(lambda s: s / (1 - BN_MOMENTUM), updated["batch_stats"])

        def test(params: Any, statistics: Any, images: Array, data: DeviceData) -> Any:
            variables = {"params": params, "batch_stats": statistics}
            return task.model.apply(variables, normalise(images, data), train=False)

        self._in_training, self._at_test = jax.jit(train), jax.jit(test)

    def quality(self, params: Params, statistics: Any) -> Quality:
        """Measure one network.

        Args:
            params: its weights.
            statistics: a tree of the shapes of its running statistics; the values do not matter.

        Returns:
            NaN where the weights are not finite.
        """
        means, variances, outputs = [], [], []
        for images, _ in self._train:
            logits, own = self._in_training(params, statistics, images, self._constants)
            leaves = jax.tree_util.tree_leaves_with_path(own)
            means.append({path[:-1]: leaf for path, leaf in leaves if path[-1].key == "mean"})
            variances.append({path[:-1]: leaf for path, leaf in leaves if path[-1].key == "var"})
            outputs.append(logits)
        shares = np.array([len(labels) for _, labels in self._train]) / self.images
        settled = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _pooled(path, means, variances, shares).astype(leaf.dtype), statistics
        )
        if len(self._train) > 1:  # of a single part, these are the outputs already
            outputs = self._outputs(params, settled, self._train)
        told, labels = _joined(outputs), np.concatenate([labels for _, labels in self._train])
        tested = _joined(self._outputs(params, settled, self._test))
        return Quality(*self._scores(told, labels), *self._scores(tested, self.test_labels), tested, settled)

    def together(self, outputs: Sequence[np.ndarray]) -> tuple[float, float]:
        """Test loss and error of an ensemble.

        It answers with the mean of its members' probabilities, p = (1/k) Σ_i softmax(o_i), and its loss is -ln p of the
        right class. Trained with the squared loss, it answers with the mean of their outputs.

        Args:
            outputs: ``Quality.test_outputs`` of each member.
        """
        return self._scores(combined(outputs, self.task.loss), self.test_labels)

    def _scores(self, outputs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
        if not np.isfinite(outputs).all():
            return float("nan"), float("nan")
        loss = np.asarray(self._losses(outputs, labels), np.float64).mean()
        return float(loss), float((outputs.argmax(1) != labels).mean())

    def _losses(self, outputs: np.ndarray, labels: np.ndarray) -> Array:
        return LOSSES[self.task.loss](jnp.asarray(outputs), jnp.asarray(labels))

    def _outputs(self, params: Params, statistics: Any, parts: Sequence[tuple[Array, np.ndarray]]) -> list[Any]:
        return [self._at_test(params, statistics, images, self._constants) for images, _ in parts]

    @staticmethod
    def _parts(images: np.ndarray, labels: np.ndarray, most: int) -> list[tuple[Array, np.ndarray]]:
        """Parts of one or two sizes, so that at most two programs are compiled."""
        number = -(-len(labels) // most)
        split = zip(np.array_split(images, number), np.array_split(labels, number), strict=True)
        return [(jnp.asarray(one), np.asarray(two)) for one, two in split]


def _pooled(path: Any, means: list[Any], variances: list[Any], shares: np.ndarray) -> np.ndarray:
    """A leaf of the statistics of all parts together."""
    own = np.array([np.asarray(part[path[:-1]], np.float64) for part in means])
    mean = np.tensordot(shares, own, 1)
    if path[-1].key == "mean":
        return mean
    within = np.array([np.asarray(part[path[:-1]], np.float64) for part in variances])
    return np.tensordot(shares, within + (own - mean) ** 2, 1)


def _joined(outputs: Sequence[Any]) -> np.ndarray:
    return np.concatenate([np.asarray(part) for part in outputs])
