"""Mini-batches, labels and losses of a step: which are accepted, and which are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import Batch, ConfigError, HParams, create_train_state, eval_step, sphere_sgd, train_step


def linear_state(loss: Any = "cross_entropy"):
    images = jnp.ones((4, 5, 5, 1))

    def init(key, x):
        return {"params": {"kernel": 0.1 * jax.random.normal(key, (25, 3))}}

    def apply(variables, x, train, rngs):
        return x.reshape(len(x), -1) @ variables["params"]["kernel"], {}

    return create_train_state((init, apply), "auto", jax.random.key(0), images, loss=loss), images


def test_stacked_numbers_outside_of_vmap_are_refused():
    state, images = linear_state()
    batch, four = Batch(images, jnp.arange(4) % 3), HParams(lr=jnp.full(4, 0.1))
    with pytest.raises(ConfigError, match=r"lr: an array of shape \(4,\) is not accepted; expected one number"):
        sphere_sgd(four, (False,))
    with pytest.raises(ConfigError, match=r"lr: an array of shape \(4,\)"):
        train_step(state, four, batch)
    with pytest.raises(ConfigError, match="state: one of 2 configurations"):
        train_step(state.replace(step=jnp.zeros(2, jnp.int32)), HParams(), batch)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (jnp.arange(5) % 3, r"labels: \(5,\) of int32 is not accepted; expected 4 whole numbers"),
        (jnp.zeros((4, 3)), r"labels: \(4, 3\) of float32"),
        ([0, 1, 2, 0], r"labels: .* of list"),
        (jnp.array([0, 1, 2, 3]), "labels: 3 is not accepted; expected whole numbers from 0 to 2, for 3 outputs"),
        (np.array([0, -1, 2, 1]), "labels: -1 is not accepted"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, words):
    state, images = linear_state()
    with pytest.raises(ConfigError, match=words):
        train_step(state, HParams(), Batch(images, labels))


def test_labels_that_are_no_classes_are_nan_within_a_program():
    state, images = linear_state()
    _, metrics = jax.jit(train_step)(state, HParams(), Batch(images, jnp.array([0, -1, 2, 1])))
    assert np.isnan(metrics["loss"])


def test_a_pair_is_a_batch_and_nothing_else_is():
    state, images = linear_state()
    labels = jnp.arange(4) % 3
    _, expected = train_step(state, HParams(), Batch(images, labels))
    _, metrics = train_step(state, HParams(), (images, labels))
    assert float(metrics["loss"]) == float(expected["loss"])
    of_dictionary: Any = {"images": images, "labels": labels}
    with pytest.raises(ConfigError, match="batch: a dict is not accepted; expected a Batch, or a pair"):
        train_step(state, HParams(), of_dictionary)


@pytest.mark.parametrize("reduced", [False, True])
def test_a_loss_of_ones_own_gives_each_example_or_one_number(reduced):
    def loss(outputs, targets):
        each = ((outputs - targets) ** 2).sum(-1)
        return each.mean() if reduced else each

    state, images = linear_state(loss)
    targets = jax.random.normal(jax.random.key(2), (4, 3))
    after, metrics = jax.jit(train_step)(state, HParams(noninvariant_lr=0.01), (images, targets))
    outputs = images.reshape(4, -1) @ state.params["kernel"]
    assert float(metrics["loss"]) == pytest.approx(float(((outputs - targets) ** 2).sum(-1).mean()), rel=1e-5)
    assert np.isnan(metrics["accuracy"])
    gradient = images.reshape(4, -1).T @ (outputs - targets) / 2
    np.testing.assert_allclose(after.params["kernel"], state.params["kernel"] - 0.01 * gradient, rtol=1e-4, atol=1e-6)
    values, wrong = eval_step(state, (images, targets))
    assert values.shape == wrong.shape == (() if reduced else (4,))
    assert np.isnan(wrong).all()


@pytest.mark.parametrize("loss", ["hinge", ["squared"], 3, None])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(ConfigError, match=r"--loss: .* is not accepted; expected one of cross_entropy, squared"):
        linear_state(loss)


def test_a_loss_that_returns_no_numbers_is_refused():
    state, images = linear_state(lambda outputs, targets: None)
    with pytest.raises(ConfigError, match="loss: a result of type NoneType is not accepted"):
        train_step(state, HParams(), (images, jnp.zeros(4)))


def test_one_output_has_no_answers():
    def apply(variables, x, train, rngs):
        return x.reshape(len(x), -1) @ variables["params"]["kernel"], {}

    def loss(outputs, targets):
        return (outputs[:, 0] - targets) ** 2

    images = jnp.ones((4, 5, 5, 1))
    network = (lambda key, x: {"params": {"kernel": jnp.ones((25, 1))}}), apply
    state = create_train_state(network, "other", jax.random.key(0), images, loss=loss)
    _, metrics = train_step(state, HParams(lr=0.1), Batch(images, jnp.array([0, 0, 0, 1])))
    assert jnp.isnan(metrics["accuracy"])
