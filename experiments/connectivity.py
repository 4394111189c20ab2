"""Networks of a run's checkpoints compared: errors, ensembles, angles, and the loss along straight paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from periodic_jax import models
from periodic_jax.checkpoints import load
from periodic_jax.config import RunConfig
from periodic_jax.data import DeviceData, normalise, to_device
from periodic_jax.outline import states_of

Weights = Mapping[str, np.ndarray]
PER_UPDATE = 0.1  # share of a batch's statistics in an update of the running ones


class Networks:
    """The networks of one run's checkpoints, with statistics re-estimated over the whole training set.

    Args:
        config: of the run.
        path: its folder.
    """

    def __init__(self, config: RunConfig, path: Path) -> None:
        self._path, self._data = path, to_device(config.data, jnp.float32)
        self._like = states_of(config, config.data.image_shape, config.data.num_classes)
        self._labels, self._test_labels = config.data.labels, config.data.test_labels
        model = models.build(
            config.model, width=config.width, depth=config.depth, num_classes=config.data.num_classes,
            init_scale=config.init_scale,
        )  # fmt: skip

        def train(weights: Any, statistics: Any, data: DeviceData) -> tuple[Any, Any]:
            variables = {"params": weights, "batch_stats": jax.tree.map(jnp.zeros_like, statistics)}
            images = normalise(data.images, data)
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
            # From zero, one update of the running statistics gives a known share of those of this one batch.
            whole = jax.tree.map(lambda s: s / PER_UPDATE, updated["batch_stats"])
            return jax.nn.log_softmax(logits), whole

        def test(weights: Any, statistics: Any, data: DeviceData) -> Any:
            variables = {"params": weights, "batch_stats": statistics}
            return jax.nn.log_softmax(
                jnp.asarray(model.apply(variables, normalise(data.test_images, data), train=False))
            )

        self._train, self._test = jax.jit(train), jax.jit(test)

    def weights(self, step: int, config: int) -> dict[str, np.ndarray]:
        """Parameters and statistics of one configuration by name, the scale-invariant ones of norm 1 each."""
        arrays = {name: array[config] for name, array in load(self._path, step, self._like).items()}
        kernels = [name for name in arrays if name.startswith("params.conv")]
        arrays |= {name: arrays[name] / np.linalg.norm(arrays[name]) for name in kernels}
        return {name: a for name, a in arrays.items() if name.startswith(("params.", "batch_stats."))}

    def train_loss(self, weights: Weights) -> float:
        """Mean cross-entropy on the training set, normalised by its own statistics."""
        tree = _nested(weights)
        told = np.asarray(self._train(tree["params"], tree["batch_stats"], self._data)[0])
        return float(-told[np.arange(len(self._labels)), self._labels].mean())

    def test_log_probabilities(self, weights: Weights) -> np.ndarray:
        """Of each class for the test images, ``(images, classes)``, with the statistics of the whole training set."""
        tree = _nested(weights)
        statistics = self._train(tree["params"], tree["batch_stats"], self._data)[1]
        return np.asarray(self._test(tree["params"], statistics, self._data))

    def test_error(self, log_probabilities: np.ndarray) -> float:
        """Share of test images that are told wrongly."""
        return float((log_probabilities.argmax(1) != self._test_labels).mean())


def cosine(a: Weights, b: Weights) -> float:
    """Cosine between the scale-invariant weights of two networks, each layer of norm 1, over all layers together."""
    names = [name for name in a if name.startswith("params.conv")]
    return float(np.mean([np.sum(a[name] * b[name]) for name in names]))


def barrier(networks: Networks, a: Weights, b: Weights, points: int = 11) -> float:
    """How far the training loss on the straight path between two networks rises above the line between its ends."""
    places = np.linspace(0, 1, points)
    mixed = [{name: (1 - t) * a[name] + t * b[name] for name in a} for t in places]
    losses = np.array([networks.train_loss(weights) for weights in mixed])
    return float(np.max(losses - ((1 - places) * losses[0] + places * losses[-1])))


def ensemble(log_probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithm of the mean probabilities of several networks."""
    return np.log(np.mean(np.exp(np.asarray(log_probabilities, np.float64)), axis=0) + 1e-300)


def _nested(arrays: Weights) -> dict[str, Any]:
    """Names with dots as a tree."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = jnp.asarray(array)
    return tree
