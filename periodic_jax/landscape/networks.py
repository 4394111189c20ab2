"""Trained networks compared: quality with re-estimated statistics, angles, paths between them, ensembles, averages.

Running statistics of batch normalisation follow the training with a delay, and mean nothing between two networks or at
their average. So all are re-estimated here, over the training set, before anything is measured.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array

from periodic_jax.data import Dataset
from periodic_jax.landscape.connectivity import Params, combined
from periodic_jax.models.adapters import input_dtype, is_built_in
from periodic_jax.models.layers import BN_MOMENTUM
from periodic_jax.training.input_pipeline import normalise
from periodic_jax.training.losses import losses
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
        self.task, dtype = task, input_dtype(task.network)
        self._constants = [jnp.asarray(values, dtype) for values in (dataset.mean, dataset.std)]
        most = max(most_pixels // int(np.prod(dataset.image_shape[:2])), 2)
        chosen = np.sort(np.random.default_rng(0).permutation(len(dataset.labels))[:images])
        self.images = len(chosen)
        self._train = self._parts(dataset.images[chosen], dataset.labels[chosen], most)
        self._test = self._parts(dataset.test_images, dataset.test_labels, most)
        self.test_labels = np.asarray(dataset.test_labels)

        def train(params: Any, statistics: Any, images: Array, constants: list[Array]) -> tuple[Array, Any]:
            images = normalise(images, *constants)

            def updated(start: Callable[[Any], Array]) -> tuple[Array, Any]:
                variables = {"params": params, "batch_stats": jax.tree.map(start, statistics)}
                logits, collections = task.network.apply(variables, images, train=True)
                return logits, collections.get("batch_stats", {})

            # From zero, one update of the running statistics gives a share of those of this one part: 1 - momentum.
            logits, shares = updated(jnp.zeros_like)
            if is_built_in(task.network):
                return logits, jax.tree.map(lambda s: s / (1 - BN_MOMENTUM), shares)
            _, from_one = updated(jnp.ones_like)  # the momentum more
            return logits, jax.tree.map(lambda s, one: s / (1 - (one - s)), shares, from_one)

        def test(params: Any, statistics: Any, images: Array, constants: list[Array]) -> Any:
            variables = {"params": params, "batch_stats": statistics}
            return task.network.apply(variables, normalise(images, *constants), train=False)[0]

        self._in_training, self._at_test = jax.jit(train), jax.jit(test)

    def quality(self, params: Params, statistics: Any) -> Quality:
        """Measure one network.

        Args:
            params: its weights.
            statistics: a tree of the shapes of its running statistics; the values do not matter.

        Returns:
            NaN where the weights are not finite.
        """
        train_loss, train_error, pooled = self.trained(params, statistics)
        test_outputs = self._outputs(params, pooled, self._test)
        test_scores = self._scores(test_outputs, self.test_labels)
        return Quality(train_loss, train_error, *test_scores, test_outputs, pooled)

    def trained(self, params: Params, statistics: Any) -> tuple[float, float, Any]:
        """Training loss, training error and statistics of one network: `quality` without the test images."""
        results = [self._in_training(params, statistics, images, self._constants) for images, _ in self._train]
        labels = [labels for _, labels in self._train]
        pooled = _pool([measured for _, measured in results], np.array(list(map(len, labels))) / self.images)
        # Of a single part, these are the outputs already.
        outputs = self._outputs(params, pooled, self._train) if len(results) > 1 else np.asarray(results[0][0])
        return *self._scores(outputs, np.concatenate(labels)), pooled

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
        each = losses(self.task.loss, jnp.asarray(outputs), jnp.asarray(labels))
        return float(np.asarray(each, np.float64).mean()), float((outputs.argmax(1) != labels).mean())

    def _outputs(self, params: Params, statistics: Any, parts: Sequence[tuple[Array, np.ndarray]]) -> np.ndarray:
        outputs = [self._at_test(params, statistics, images, self._constants) for images, _ in parts]
        return np.concatenate([np.asarray(part) for part in outputs])

    @staticmethod
    def _parts(images: np.ndarray, labels: np.ndarray, most: int) -> list[tuple[Array, np.ndarray]]:
        """Parts of one or two sizes, so that at most two programs are compiled."""
        number = -(-len(labels) // most)
        images_of_parts = map(jnp.asarray, np.array_split(images, number))
        return list(zip(images_of_parts, np.array_split(labels, number), strict=True))


def _pool(statistics: Sequence[Any], shares: np.ndarray) -> Any:
    """The statistics of all parts together, of those of each."""
    flat: list[Any] = [traverse_util.flatten_dict(part) for part in statistics]
    parts = {path: np.array([part[path] for part in flat], np.float64) for path in flat[0]}
    pooled = {}
    for path, values in parts.items():
        if path[-1] == "var":
            means = parts[*path[:-1], "mean"]
            values = values + (means - np.tensordot(shares, means, 1)) ** 2
        pooled[path] = np.tensordot(shares, values, 1).astype(flat[0][path].dtype)
    return traverse_util.unflatten_dict(pooled)
