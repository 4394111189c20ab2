"""Two tiny networks in float64, and their curvature matrices, written out in full."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference
from helpers.dense_curvature import network
from jax.flatten_util import ravel_pytree

from periodic_jax import create_train_state
from periodic_jax.landscape import fixed_batches


@pytest.fixture(scope="module")
def float64():
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def states(float64):
    """Two configurations and one whose weights are not finite."""
    model = network()
    images = jnp.zeros((8, 8, 8, 2))
    both = [create_train_state(model, model.labels(), jax.random.key(k), images) for k in (0, 1)]
    broken = both[0].replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, both[0].params))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *both, broken)


@pytest.fixture(scope="module")
def corrupted(tiny):
    return dataclasses.replace(tiny, corrupted=np.arange(40) % 3 == 1)


@pytest.fixture(scope="module")
def dense(float64, states, corrupted):
    """Of each configuration: losses of the mini-batches' images, gradients, Hessian and Gauss-Newton matrices over all
    weights, by plain convolutions, automatic differentiation forwards, and loops."""
    batches = fixed_batches(corrupted, 12, dtype=np.float64)
    model = network()

    @jax.jit
    def of_batch(params, images, labels):
        flat, unravel = ravel_pytree(params)

        def scores(flat):
            return reference.logits(unravel(flat), images, model.stages(), model.eps)

        hessian = jax.hessian(lambda flat: reference.cross_entropy(scores(flat), labels))(flat)
        return scores(flat), jax.jacfwd(scores)(flat), hessian

    found = []
    for k in range(2):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], states.params)
        found.append(
            [
                [np.asarray(part) for part in of_batch(params, (images / 255 - batches.mean) / batches.std, labels)]
                for images, labels in zip(batches.images, batches.labels, strict=True)
            ]
        )
    return batches, found
