"""Small programs as a visitor would write them, each with a network of its own."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import periodic_jax as pj


def digits(count=32):
    data = pj.data.load("digits")
    images = jnp.asarray((data.images[:count] / 255 - data.mean) / data.std, jnp.float32)
    return pj.Batch(images, jnp.asarray(data.labels[:count]))


def trained(state, batch, *, lr=0.1, steps=15, **more):
    """The state and the metrics of each step on one batch."""
    hparams = pj.HParams(lr=lr, weight_decay=1e-3, **{"noninvariant_lr": -1.0, **more})

    @jax.jit
    def run(state, batch):
        return jax.lax.scan(lambda state, _: pj.train_step(state, hparams, batch), state, length=steps)

    return run(state, batch)


def has_learnt(state, metrics):
    assert int(state.diverged_at) == -1
    loss = np.asarray(metrics["loss"])
    assert np.isfinite(loss).all()
    assert loss[-1] < loss[0]


def test_nnx_conv_net_with_batch_norm():
    class Net(nnx.Module):
        def __init__(self, width, rngs):
            self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.head = nnx.Linear(width, 10, rngs=rngs)

        def __call__(self, x):
            return self.head(nnx.relu(self.norm(self.conv(x))).max((1, 2)))

    batch = digits()
    labels = {"conv": {"kernel": "scale_invariant", "bias": "other"}, "norm": "other", "head": "other"}
    state = pj.create_train_state(Net(8, nnx.Rngs(0)), labels, jax.random.key(0), batch.images)
    before = jax.tree.map(np.asarray, state.batch_stats)
    state, metrics = trained(state, batch)
    has_learnt(state, metrics)
    assert set(state.batch_stats["norm"]) == {"mean", "var"}
    assert not np.array_equal(before["norm"]["mean"], state.batch_stats["norm"]["mean"])
    loss, wrong = jax.jit(pj.eval_step)(state, batch)  # in eval mode, by running statistics
    assert loss.shape == wrong.shape == (32,)


def test_nnx_with_dropout_over_a_grid_and_seeds():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.body, self.norm = nnx.Linear(64, 16, use_bias=False, rngs=rngs), nnx.LayerNorm(16, rngs=rngs)
            self.dropout, self.head = nnx.Dropout(0.3, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.body(x.reshape(len(x), -1))))
            return self.head(self.dropout(x))

    batch = digits()
    labels = {"body": "scale_invariant", "norm": "other", "head": "other"}
    states = jax.vmap(lambda key: pj.create_train_state(Net, labels, key, batch.images))(
        jax.random.split(jax.random.key(0), 2)
    )
    hparams = pj.SweepGrid.product(lr=[0.1, 0.3], noninvariant_lr=-1.0).hparams()
    step = jax.jit(jax.vmap(pj.train_step, in_axes=(0, 0, None)))
    losses, metrics = [], {}
    for _ in range(20):
        states, metrics = step(states, hparams, batch)
        losses.append(metrics["loss"])
    assert np.isfinite(losses).all()
    assert (losses[-1] < losses[0]).all()
    assert (metrics["radial_leak"] < 1e-3).all()


def test_linen_with_group_norm_and_no_statistics():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):  # it does not ask whether it is trained
            x = nn.GroupNorm(num_groups=2, name="norm")(nn.Conv(8, (3, 3), use_bias=False, name="conv")(x))
            return nn.Dense(10, name="head")(nn.relu(x).mean((1, 2)))

    batch = digits()
    state = pj.create_train_state(Net(), "auto", jax.random.key(0), batch.images)
    assert state.batch_stats == {}
    assert state.task.labels == (True, False, False, False, False)
    has_learnt(*trained(state, batch))


def test_transformer_with_layer_norm_on_tokens():
    """The network takes a dictionary, the targets are the next tokens, and the loss leaves the padding out."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, inputs, train):
            tokens, mask = inputs["tokens"], inputs["mask"]
            x = nn.Embed(11, 8, name="embed")(tokens)
            x = x + nn.Embed(6, 8, name="positions")(jnp.arange(6))
            allowed = nn.combine_masks(nn.make_causal_mask(tokens), mask[:, None, None])
            h = nn.MultiHeadAttention(num_heads=2, dropout_rate=0.1, deterministic=not train)(
                nn.LayerNorm()(x), mask=allowed
            )
            x = x + h
            x = x + nn.Dense(8)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))
            return nn.Dense(11, name="head")(nn.LayerNorm()(x))

    def loss(logits, targets):
        each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(targets, 0))
        counted = targets >= 0
        return (each * counted).sum(-1) / counted.sum(-1)

    text = jax.random.randint(jax.random.key(0), (8, 7), 0, 11)
    inputs = {"tokens": text[:, :-1], "mask": jnp.ones((8, 6), bool).at[:, -1].set(False)}
    targets = text[:, 1:].at[:, -1].set(-1)
    state = pj.create_train_state(Net(), "other", jax.random.key(1), inputs, loss=loss)
    assert state.key is not None
    state, metrics = trained(state, (inputs, targets), lr=0.3)
    has_learnt(state, metrics)
    assert ((metrics["accuracy"] >= 0) & (metrics["accuracy"] <= 1)).all()  # of all tokens, padding included
    losses, wrong = jax.jit(pj.eval_step)(state, (inputs, targets))
    assert losses.shape == wrong.shape == (8,)


def test_a_loss_of_ones_own_on_token_data_with_functions():
    """A bag of words as pure functions, a regression on its counts."""

    def init(key, tokens):
        return {"params": {"embed": 0.1 * jax.random.normal(key, (11, 4)), "out": jnp.ones(4)}}

    def apply(variables, tokens, train, rngs):
        params = variables["params"]
        return params["embed"][tokens].sum(1) @ params["out"], {}

    tokens = jax.random.randint(jax.random.key(0), (16, 5), 0, 11)
    targets = (tokens == 3).sum(1).astype(jnp.float32)
    state = pj.create_train_state(
        (init, apply),
        "other",
        jax.random.key(1),
        tokens,
        loss=lambda outputs, targets: optax.huber_loss(outputs, targets),
    )
    state, metrics = trained(state, (tokens, targets), lr=0.02, steps=40)
    has_learnt(state, metrics)
    assert np.isnan(metrics["accuracy"]).all()


def test_own_optimiser_with_a_decay_mask_and_clipping_around_the_measurements():
    """AdamW with decay on the kernels alone and clipped gradients, measured by `track_dynamics`."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(8, use_bias=False, name="body")(x.reshape(len(x), -1))
            x = nn.LayerNorm(use_bias=False, use_scale=False, name="norm")(x)
            return nn.Dense(10, name="head")(nn.relu(x))

    batch, model = digits(), Net()
    params = model.init(jax.random.key(0), batch.images, train=True)["params"]
    labels = {"body": "scale_invariant", "head": "other"}

    def is_kernel(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    adamw = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.01, weight_decay=0.1, mask=is_kernel))
    tx = pj.track_dynamics(adamw, pj.HParams(lr=0.01), labels)

    @jax.jit
    def step(params, state):
        def loss_of(params):
            logits: Any = model.apply({"params": params}, batch.images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(15):
        norm = float(jnp.linalg.norm(params["body"]["kernel"]))
        params, state, loss = step(params, state)
        losses.append(float(loss))
        assert float(state.dynamics.weight_norm) == pytest.approx(norm, rel=1e-5)
        assert float(state.dynamics.radial_leak) < 1e-3
    assert losses[-1] < losses[0]
