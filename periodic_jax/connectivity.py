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

from periodic_jax.data import Dataset, DeviceData, normalise
from periodic_jax.models.labels import Labels
from periodic_jax.models.layers import BN_MOMENTUM
from periodic_jax.train import LOSSES, Task

Params = Any  # a tree of NumPy arrays of one network
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
        >>> from periodic_jax.train import create_train_state
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


def combined(outputs: Sequence[np.ndarray], loss: str) -> np.ndarray:
    """What an ensemble answers ``(images, classes)``: ln of the mean probabilities, or the mean of the outputs."""
    stacked = np.asarray(outputs, np.float64)
    if loss == "squared":
        return stacked.mean(0)
    logs = stacked - np.logaddexp.reduce(stacked, axis=-1, keepdims=True)
    return np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))


def disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the images that two networks tell differently, of their outputs; NaN where these are not finite.

    Example:
        >>> disagreement(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]))
        0.5
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    return float((a.argmax(1) != b.argmax(1)).mean())


def on_sphere(params: Params, labels: Labels, *, each: bool = False) -> Params:
    """The same network with its scale-invariant weights on the unit sphere: x/ρ.

    Args:
        params: of one network.
        labels: which leaves are scale-invariant.
        each: divide each leaf by its own norm instead. The same network only where each is scale-invariant by itself.
    """
    leaves, tree = jax.tree.flatten(jax.tree.map(np.asarray, params))
    norms = [
        float(np.linalg.norm(leaf.astype(np.float64))) if mark else 0.0
        for leaf, mark in zip(leaves, labels, strict=True)
    ]
    whole = np.sqrt(sum(norm**2 for norm in norms))
    return tree.unflatten([
        (leaf / (norm if each else whole)).astype(leaf.dtype) if mark else leaf
        for leaf, mark, norm in zip(leaves, labels, norms, strict=True)
    ])  # fmt: skip


def cosine(a: Params, b: Params, labels: Labels) -> float:
    """⟨x_a, x_b⟩ / (ρ_a ρ_b) over all scale-invariant weights together."""
    one, other = (
        np.concatenate([
            np.asarray(leaf, np.float64).ravel()
            for leaf, mark in zip(jax.tree.leaves(params), labels, strict=True) if mark
        ])
        for params in (a, b)
    )  # fmt: skip
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def straight(a: Params, b: Params, t: float, labels: Labels) -> Params:
    """A point of the straight path (1-t) a + t b.

    Between two points of the unit sphere it runs below the great circle through them, at another speed; the loss, which
    does not depend on ρ, is the same on both. So this is the geodesic of the sphere of all scale-invariant weights too.
    """
    return jax.tree.map(lambda x, y: ((1 - t) * x + t * y).astype(x.dtype), a, b)


def by_layers(a: Params, b: Params, t: float, labels: Labels) -> Params:
    """A point of the geodesic of the product of the layers' spheres: each scale-invariant leaf turns evenly.

    x_l(t) = r_l(t) [sin((1-t)φ) u_a + sin(tφ) u_b] / sin φ, with u = x_l/|x_l|, φ the angle between u_a and u_b, and
    r_l(t) = (1-t)|x_l,a| + t|x_l,b|, of which networks whose layers are scale-invariant one by one do not depend. All
    other weights go straight.
    """
    leaves, tree = jax.tree.flatten(a)
    return tree.unflatten([
        _turned(x, y, t) if mark else ((1 - t) * x + t * y).astype(x.dtype)
        for x, y, mark in zip(leaves, jax.tree.leaves(b), labels, strict=True)
    ])  # fmt: skip


def _turned(x: np.ndarray, y: np.ndarray, t: float) -> np.ndarray:
    wide = [np.asarray(leaf, np.float64) for leaf in (x, y)]
    norms = [np.linalg.norm(leaf) for leaf in wide]
    u, v = (leaf / norm for leaf, norm in zip(wide, norms, strict=True))
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))  # accurate for small angles too
    if np.sin(angle) < 1e-6:  # the same direction, or opposite ones, between which no geodesic is the one
        return ((1 - t) * wide[0] + t * wide[1]).astype(x.dtype)
    direction = (np.sin((1 - t) * angle) * u + np.sin(t * angle) * v) / np.sin(angle)
    return (((1 - t) * norms[0] + t * norms[1]) * direction).astype(x.dtype)


PATHS = {"straight": straight, "layers": by_layers}


def average(networks: Sequence[Params], labels: Labels) -> Params:
    """The mean of networks' directions, back on the unit sphere: Σ u_i / |Σ u_i|; of all other weights the mean.

    Args:
        networks: weights on the unit sphere.
        labels: which leaves are scale-invariant.
    """
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0, dtype=np.float64).astype(leaves[0].dtype), *networks)
    return on_sphere(mean, labels)


def barrier(losses: np.ndarray) -> float:
    """How far the loss on a path rises above the line between its ends: max_t [L(t) - (1-t) L(0) - t L(1)], from 0.

    Args:
        losses: at evenly spread points, ends included.

    Example:
        >>> barrier(np.array([1.0, 4.0, 3.0]))
        2.0
    """
    t = np.linspace(0, 1, len(losses))
    return float(np.max(losses - ((1 - t) * losses[0] + t * losses[-1])))
