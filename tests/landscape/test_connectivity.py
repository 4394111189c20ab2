"""Angles, paths, averages and barriers against plain vectors."""

import numpy as np
import pytest

from periodic_jax.landscape import connectivity
from periodic_jax.landscape.connectivity import average, barrier, by_layers, cosine, on_sphere, straight


def test_angles_paths_and_averages_are_those_of_plain_vectors():
    rng = np.random.default_rng(0)
    a, b = ({"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5), "c": rng.normal(size=2)} for _ in range(2))
    labels = (True, False, True)
    flat_a, flat_b = (np.concatenate([x["a"].ravel(), x["c"]]) for x in (a, b))
    norms = np.linalg.norm(flat_a), np.linalg.norm(flat_b)
    assert cosine(a, b, labels) == pytest.approx(flat_a @ flat_b / norms[0] / norms[1])
    on_a, on_b = on_sphere(a, labels), on_sphere(b, labels)
    np.testing.assert_allclose(on_a["c"], a["c"] / norms[0])
    np.testing.assert_array_equal(on_a["b"], a["b"])
    np.testing.assert_allclose(on_sphere(a, labels, each=True)["c"], a["c"] / np.linalg.norm(a["c"]))
    mean = average([on_a, on_b], labels)
    wanted = flat_a / norms[0] + flat_b / norms[1]
    np.testing.assert_allclose(mean["a"].ravel(), (wanted / np.linalg.norm(wanted))[:12])
    np.testing.assert_allclose(mean["b"], (a["b"] + b["b"]) / 2)
    np.testing.assert_allclose(straight(a, b, 0.25, labels)["a"], 0.75 * a["a"] + 0.25 * b["a"])
    for t in (0.0, 0.3, 1.0):
        point = by_layers(a, b, t, labels)
        np.testing.assert_allclose(point["b"], (1 - t) * a["b"] + t * b["b"])
        for name in "ac":
            u, v, x = (leaf[name] / np.linalg.norm(leaf[name]) for leaf in (a, b, point))
            whole, part = (np.arccos(np.clip(np.sum(u * w), -1, 1)) for w in (v, x))
            assert part == pytest.approx(t * whole, abs=1e-6)
    np.testing.assert_allclose(by_layers(a, a, 0.3, labels)["a"], a["a"])
    assert barrier(np.array([1.0, 0.5, 3.0])) == 0
    assert connectivity.disagreement(np.full((2, 2), np.nan), np.zeros((2, 2))) != 0
