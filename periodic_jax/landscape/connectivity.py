"""Paths, averages and ensembles of networks whose weights lie on a sphere."""

from collections.abc import Sequence
from itertools import compress
from typing import Any

import jax
import numpy as np

from periodic_jax.models.labels import Labels

Params = Any  # a tree of NumPy arrays of one network


def combined(outputs: Sequence[np.ndarray], loss: Any) -> np.ndarray:
    """The outputs of an ensemble ``(images, classes)``: ln of the mean probabilities, or the mean of the outputs."""
    stacked = np.asarray(outputs, np.float64)
    if loss == "squared":
        return stacked.mean(0)
    logs = stacked - np.logaddexp.reduce(stacked, axis=-1, keepdims=True)
    return np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))


def disagreement(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the images that two networks classify differently, by their outputs; NaN where these are not finite.

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
    norms = [float(np.linalg.norm(leaf.astype(np.float64))) for leaf in leaves]
    whole = np.sqrt(sum(norm**2 for norm in compress(norms, labels)))
    return tree.unflatten([
        (leaf / (norm if each else whole)).astype(leaf.dtype) if mark else leaf
        for leaf, mark, norm in zip(leaves, labels, norms, strict=True)
    ])  # fmt: skip


def cosine(a: Params, b: Params, labels: Labels) -> float:
    """⟨x_a, x_b⟩ / (ρ_a ρ_b) over all scale-invariant weights together."""
    leaves = (compress(jax.tree.leaves(params), labels) for params in (a, b))
    x, y = (np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in chosen]) for chosen in leaves)
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


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
