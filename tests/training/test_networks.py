"""Networks of each kind that is accepted: what they compute, draw and keep."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze
from helpers.three_kinds import KINDS, LABELS, Linen, Nnx, function_apply, function_init

from periodic_jax import Batch, HParams, SweepGrid, create_train_state, eval_step, train_step
from periodic_jax.training.step import full_batch_step


def mini_batches(count=4):
    keys = jax.random.split(jax.random.key(1), count)
    return [Batch(jax.random.normal(k, (6, 5, 5, 1), jnp.float64), jnp.arange(6) % 3) for k in keys]


def plain(params, statistics, rates, batch):
    """One step of `function_apply` by plain SGD, with the parameters and statistics after it."""

    def loss_of(params):
        variables = {"params": params, "batch_stats": {"norm": statistics}}
        logits, mutated = function_apply(variables, batch.images, True, None)
        loss = -jax.nn.log_softmax(logits)[jnp.arange(6), batch.labels].mean()
        return loss, mutated["batch_stats"]["norm"]

    grads, statistics = jax.grad(loss_of, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - rates * (g + 0.01 * p), params, grads), statistics


@pytest.mark.parametrize("kind", KINDS)
def test_three_kinds_of_one_network_walk_one_path(float64, kind):
    """Against plain SGD by hand, which is the same path for all three: 20 steps of five learning rates at once."""
    batches, lrs = mini_batches(), jnp.array([0.01, 0.03, 0.1, 0.3, 0.5])
    start = function_init(jax.random.key(0), batches[0].images)
    state = create_train_state(KINDS[kind], LABELS, jax.random.key(3), batches[0].images)
    assert jax.tree.structure(state.params) == jax.tree.structure(start["params"])
    state = state.replace(params=start["params"], batch_stats=start["batch_stats"])  # Flax's are of float32
    states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 5), state)
    hparams = SweepGrid.product(lr=np.asarray(lrs), weight_decay=0.01, noninvariant_lr=-1.0).hparams()
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves * 5), *batches)

    @jax.jit
    def run(states):
        step = jax.vmap(train_step, in_axes=(0, 0, None))
        return jax.lax.scan(lambda states, batch: step(states, hparams, batch), states, stacked)

    @jax.jit
    @jax.vmap
    def by_hand(lr):
        first = start["params"], start["batch_stats"]["norm"]
        return jax.lax.scan(lambda carry, batch: (plain(*carry, lr, batch), None), first, stacked)[0]

    states, metrics = run(states)
    params, statistics = by_hand(lrs)
    assert metrics["loss"].shape == (20, 5)
    for got, expected in ((states.params, params), (states.batch_stats["norm"], statistics)):
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    one = jax.tree.map(lambda leaf: leaf[0], states)
    values, wrong = eval_step(one, batches[0])
    variables = {"params": one.params, "batch_stats": one.batch_stats}
    scores, _ = function_apply(variables, batches[0].images, False, None)
    np.testing.assert_allclose(values, -jax.nn.log_softmax(scores)[jnp.arange(6), batches[0].labels], rtol=1e-10)
    assert np.array_equal(wrong, scores.argmax(1) != batches[0].labels)


def test_frozen_dictionaries_are_as_good_as_plain_ones(float64):
    """Flax returns them where it is set so, as older code has it; labels may be one too."""
    images = jnp.ones((4, 6, 6, 1))
    batch = Batch(images, jnp.arange(4) % 3)
    expected, before = None, flax.config.flax_return_frozendict
    for returns_frozen in (False, True):
        flax.config.update("flax_return_frozendict", returns_frozen)
        try:
            state = create_train_state(Linen(), freeze(LABELS), jax.random.key(0), images)
            state, metrics = jax.jit(train_step)(state, HParams(lr=0.1, weight_decay=0.01), batch)
        finally:
            flax.config.update("flax_return_frozendict", before)
        expected = expected or (jax.tree.structure(state.params), float(metrics["loss"]))
        assert (jax.tree.structure(state.params), float(metrics["loss"])) == expected


def test_an_instance_of_nnx_keeps_its_weights_and_a_class_takes_them_from_the_key(float64):
    batch, module = mini_batches(1)[0], Nnx(nnx.Rngs(7))
    of_instance = create_train_state(module, LABELS, jax.random.key(0), batch.images)
    assert np.array_equal(of_instance.params["conv"]["kernel"], module.conv.kernel[...])
    seeds = jnp.arange(3, dtype=jnp.uint32)
    states = jax.vmap(lambda s: create_train_state(Nnx, LABELS, jax.random.key(s), batch.images))(seeds)
    kernels = states.params["conv"]["kernel"]
    assert len({float(k.sum()) for k in kernels}) == 3
    alone = create_train_state(lambda rngs: Nnx(rngs), LABELS, jax.random.key(1), batch.images)
    np.testing.assert_allclose(kernels[1], alone.params["conv"]["kernel"], rtol=1e-12)
    assert alone.task == of_instance.task  # one compiled program serves both
    assert hash(alone.task) == hash(of_instance.task)


class Drawing(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1)) @ self.param(
            "kernel", nn.initializers.ones, (x[0].size, 3)
        )


class NnxDrawing(nnx.Module):
    def __init__(self, rngs):
        self.kernel, self.drop = nnx.Param(jnp.ones((25, 3))), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(x.reshape(len(x), -1)) @ self.kernel[...]


def drawing_apply(variables, x, train, rngs):
    x = x.reshape(len(x), -1)
    if train:
        x = jnp.where(jax.random.bernoulli(rngs["dropout"], 0.5, x.shape), 2 * x, 0)
    return x @ variables["params"]["kernel"], {}


DRAWS = {
    "linen": Drawing(),
    "nnx": NnxDrawing,
    "functions": (lambda key, x: {"params": {"kernel": jnp.ones((x[0].size, 3))}}, drawing_apply),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_dropout_draws_from_the_key_and_the_step_alone(kind):
    batch = Batch(jnp.ones((40, 5, 5, 1)), jnp.arange(40) % 3)
    state, other = (create_train_state(DRAWS[kind], "auto", jax.random.key(seed), batch.images) for seed in (0, 1))
    assert [(key.shape, key.dtype) for key in (state.key,) if key is not None] == [((2,), jnp.uint32)]
    step = jax.jit(lambda state: train_step(state, HParams(noninvariant_lr=0.0), batch))
    after, first = step(state)
    _, again = step(state)
    _, second = step(after)
    _, elsewhere = step(other)
    norms = [float(m["noninvariant_grad_norm"]) for m in (first, second, elsewhere)]
    assert float(again["noninvariant_grad_norm"]) == norms[0]
    assert len(set(norms)) == 3
    values, _ = jax.jit(eval_step)(after, batch)
    np.testing.assert_allclose(values, np.log(3), rtol=1e-5)  # three equal logits: nothing is dropped
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), batch)
    _, full = jax.jit(full_batch_step)(state, HParams(noninvariant_lr=0.0), stacked)
    assert float(full["noninvariant_grad_norm"]) not in norms  # each mini-batch has its own


def test_a_network_that_draws_nothing_carries_no_key(float64):
    for kind in ("linen", "nnx"):
        state = create_train_state(KINDS[kind], LABELS, jax.random.key(0), mini_batches(1)[0].images)
        assert state.key is None
        assert state.other == {}


class Counting(nnx.Module):
    """A variable that is neither a parameter nor a statistic."""

    def __init__(self, rngs):
        self.head, self.calls = nnx.Linear(25, 3, rngs=rngs), nnx.Variable(jnp.zeros(()))

    def __call__(self, x, train):
        self.calls[...] = self.calls[...] + train
        return self.head(x.reshape(len(x), -1))


def test_other_variables_of_a_network_are_kept():
    batch = Batch(jnp.ones((4, 5, 5, 1)), jnp.arange(4) % 3)
    state = create_train_state(Counting, "auto", jax.random.key(0), batch.images)
    for _ in range(3):
        state, _ = jax.jit(train_step)(state, HParams(), batch)
    assert float(state.other["other"]["calls"]) == 3


def test_a_stream_of_random_numbers_of_any_name_is_served():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = x.reshape(len(x), -1)
            if train:
                x = x + jax.random.normal(self.make_rng("noise"), x.shape)
            return nn.Dense(3)(x)

    batch = Batch(jnp.ones((4, 5, 5, 1)), jnp.arange(4) % 3)
    state = create_train_state(Noisy(), "other", jax.random.key(0), batch.images)
    state, first = train_step(state, HParams(noninvariant_lr=0.0), batch)
    _, second = train_step(state, HParams(noninvariant_lr=0.0), batch)
    assert first["loss"] != second["loss"]
