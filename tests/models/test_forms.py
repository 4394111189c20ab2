"""The form of convolutions for accelerators against that for CPUs, through whole networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from periodic_jax import ConfigError, models
from periodic_jax.models import forms
from periodic_jax.models.layers import ImageNetwork
from periodic_jax.ops import direct
from periodic_jax.training.losses import LOSSES

NAMES = [
    pytest.param(n, marks=[] if n == "ConvNetSI" else pytest.mark.slow)
    for n in models.MODELS
    if issubclass(models.MODELS[n][0], ImageNetwork)
]


def outcome(name, platform, variables, images, labels):
    """Of stacked configurations: loss, gradients, logits and running statistics; of test time, logits and gradients."""
    model = models.build(name, width=2, param_dtype=jnp.float64, platform=platform)

    def loss_of(params, batch_stats, train):
        variables = {"params": params, "batch_stats": batch_stats}
        mutable = ["batch_stats"] if train else []
        logits, mutated = model.apply(variables, images, train=train, mutable=mutable)
        return LOSSES["cross_entropy"](logits, labels).mean(), (logits, mutated)

    def of_one(variables):
        compute = jax.value_and_grad(loss_of, has_aux=True)
        return [compute(variables["params"], variables["batch_stats"], train) for train in (True, False)]

    return jax.jit(jax.vmap(of_one))(variables)


@pytest.mark.parametrize("name", NAMES)
def test_forms_agree_to_rounding(float64, name):
    keys = jax.random.split(jax.random.key(0), 4)
    images, labels = jax.random.normal(keys[0], (4, 8, 8, 3), jnp.float64), jnp.arange(4)
    model = models.build(name, width=2, param_dtype=jnp.float64)
    initial = jax.jit(model.init, static_argnames="train")(keys[1], images, train=True)

    def moved(leaf):  # so that scales and biases take part, and variances stay positive
        return jnp.stack([leaf * scale + 0.1 * jnp.cos(jnp.arange(leaf.size).reshape(leaf.shape)) for scale in (1, 2)])

    variables = jax.tree.map(moved, initial)
    plain = outcome(name, "cpu", variables, images, labels)
    for platform in ("cuda", "tpu"):
        for got, wanted in zip(outcome(name, platform, variables, images, labels), plain, strict=True):
            for part in range(2):  # the loss with logits and statistics; gradients
                a, b = reference.flat(got[part]), reference.flat(wanted[part])
                assert np.linalg.norm(a - b) <= 1e-12 * np.linalg.norm(b)


def test_a_platform_is_one_that_is_known():
    with pytest.raises(ConfigError, match="one of cpu, cuda, rocm, tpu"):
        models.build("ConvNetSI", width=2, platform="gpu")
    with pytest.raises(ConfigError, match="--storage: f8"):
        models.build("ConvNetSI", width=2, storage="f8")
    assert models.build("ConvNetSI", width=2).form == forms.Lanes()
    assert models.build("ConvNetSI", width=2, platform="tpu", storage="bf16").form == forms.Direct("bf16", direct.TPU)
    assert models.build("ConvNetSI", width=2, platform="cuda").form == forms.Direct("float32")


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_gradients_of_images_are_refused(platform):
    model, images = models.build("ConvNetSI", width=2, depth=1, platform=platform), jnp.ones((2, 4, 4, 1))
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), images, train=True)
    with pytest.raises(
        ConfigError, match="derivatives: the first layer computes none with respect to images; take those of weights"
    ):
        jax.grad(lambda images: model.apply(variables, images, train=False).sum())(images)
