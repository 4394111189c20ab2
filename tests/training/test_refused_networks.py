"""What is no network, or is not called as one, is refused in one line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from helpers.three_kinds import Linen, function_apply, function_init

from periodic_jax import Batch, ConfigError, HParams, create_train_state, train_step


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
