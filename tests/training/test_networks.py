"""The same small network as a Linen module, an NNX module and a pair of functions; what is refused."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

from periodic_jax import Batch, ConfigError, HParams, SweepGrid, create_train_state, eval_step, sphere_sgd, train_step
from periodic_jax.training.step import full_batch_step

LABELS = {"conv": "scale_invariant", "head": "other", "norm": "other"}
MOMENTUM, EPS = 0.9, 1e-5


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False, param_dtype=jnp.float64, name="conv")(x)
        x = nn.BatchNorm(
            use_running_average=not train, momentum=MOMENTUM, epsilon=EPS, param_dtype=jnp.float64, name="norm"
        )(x)
        return nn.Dense(3, param_dtype=jnp.float64, name="head")(nn.relu(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), use_bias=False, param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=MOMENTUM, epsilon=EPS, param_dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(4, 3, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def function_init(key, x):
    kernels = jax.random.split(key)
    params = {
        "conv": {"kernel": jax.random.normal(kernels[0], (3, 3, x.shape[-1], 4), x.dtype)},
        "head": {"bias": jnp.zeros(3, x.dtype), "kernel": jax.random.normal(kernels[1], (4, 3), x.dtype)},
        "norm": {"bias": jnp.zeros(4, x.dtype), "scale": jnp.ones(4, x.dtype)},
    }
    return {"params": params, "batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}}


def function_apply(variables, x, train, rngs):
    params, old = variables["params"], variables["batch_stats"]["norm"]
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (old["mean"], old["var"])
    new = {"mean": MOMENTUM * old["mean"] + (1 - MOMENTUM) * mean, "var": MOMENTUM * old["var"] + (1 - MOMENTUM) * var}
    x = (x - mean) / jnp.sqrt(var + EPS) * params["norm"]["scale"] + params["norm"]["bias"]
    out = jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    return out, {"batch_stats": {"norm": new}}


KINDS = {"linen": Linen(), "nnx": Nnx, "functions": (function_init, function_apply)}


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
            state, metrics = train_step(state, HParams(lr=0.1, weight_decay=0.01), batch)
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


class Wanting(nn.Module):
    @nn.compact
    def __call__(self, x, mask, training):
        return x


class Growing(nnx.Module):
    def __init__(self, rngs):
        self.head = nnx.Linear(25, 3, rngs=rngs)

    def __call__(self, x):
        self.new = nnx.Variable(x.sum())
        return self.head(x.reshape(len(x), -1))


def as_functions(apply):
    return lambda key, x: {"params": {"w": jnp.ones(3)}}, apply


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (object(), "model: an object of type object is not accepted; expected a Linen module, an NNX module"),
        (Linen, r"model: the class Linen \(its instance Linen\(...\) would be\)"),
        (Wanting(), r"model: Wanting.__call__\(self, x, mask, training\) .* takes \(inputs\) or \(inputs, train\)"),
        ((function_init, lambda variables, x: x), r"model: apply\(variables, x\) is not accepted"),
        ((lambda key, x: jnp.ones(3), function_apply), "init: a result of type .* expected a dictionary with params"),
        (as_functions(lambda v, x, train, rngs: x), "apply: a result of type .* expected a pair"),
        (as_functions(lambda v, x, train, rngs: (x, {"ema": 0})), "apply: new collections: ema is not accepted"),
        (Growing, "model: an NNX module that makes variables when it is called"),
        (lambda rngs: 3, "model: an object of type function"),
    ],
)
def test_what_is_no_network_is_refused_in_a_line(model, words):
    images = jnp.ones((4, 5, 5, 1))

    def try_it():
        state = create_train_state(model, "other", jax.random.key(0), images)
        train_step(state, HParams(), Batch(images, jnp.zeros(4, jnp.int32)))

    with pytest.raises(ConfigError, match=words) as refused:
        try_it()
    assert "\n" not in str(refused.value)


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


@pytest.mark.parametrize("name", ["training", "deterministic"])
def test_a_network_whose_mode_has_another_name_is_refused(name):
    class Net(nn.Module):
        if name == "training":

            @nn.compact
            def __call__(self, x, training=False):
                return nn.Dense(3)(x.reshape(len(x), -1))
        else:

            @nn.compact
            def __call__(self, x, deterministic=True):
                return nn.Dense(3)(x.reshape(len(x), -1))

    with pytest.raises(ConfigError, match=rf"Net.__call__\(.*{name}.* is not accepted; expected a __call__ that takes"):
        create_train_state(Net(), "other", jax.random.key(0), jnp.ones((2, 5, 5, 1)))


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


def test_a_collection_that_grows_is_one_line():
    class Growing(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            self.sow("aux", "mean", x.mean())
            return nn.Dense(3)(x.reshape(len(x), -1))

    batch = Batch(jnp.ones((4, 5, 5, 1)), jnp.arange(4) % 3)
    state = create_train_state(Growing(), "other", jax.random.key(0), batch.images)
    with pytest.raises(ConfigError, match="model: a collection aux that grows in a step is not accepted"):
        train_step(state, HParams(noninvariant_lr=0.0), batch)
