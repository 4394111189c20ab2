"""The Flax layers that networks are made of: parameters as PyTorch initialises them, and running statistics as it keeps
them.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.core.errors import UsageError
from periodic_jax.models import forms
from periodic_jax.models.forms import Form
from periodic_jax.ops.direct import precision
from periodic_jax.ops.primitives import Affine, BatchMoments

# running <- 0.9 running + 0.1 batch, with the unbiased batch variance, as torch.nn.BatchNorm2d(momentum=0.1)
BN_MOMENTUM = 0.9


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for convolutions and linear layers, weights and biases alike: U(-1/√fan_in, 1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> Array:
        # Drawn flat: the counters of a 4-d draw take XLA:CPU 8 times longer to compile (1.2 s against 0.15 s a
        # parameter).
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


@jax.custom_jvp
def _constant(images: Array) -> Array:
    return images


@_constant.defjvp
def _(primals: Any, tangents: Any) -> Any:
    raise UsageError("derivatives", "the first layer computes none with respect to images", "take those of weights")


class ImageNetwork(nn.Module):
    """A network that computes in the form of its platform.

    It has the fields ``platform``, one of `forms.PLATFORMS` or None for where JAX runs, decided on construction, and
    ``storage``, a key of `forms.STORAGE`.
    """

    def __post_init__(self) -> None:
        self.platform: Any = forms.check_platform(self.platform)
        super().__post_init__()

    @property
    def form(self) -> Form:
        """How the network computes."""
        network: Any = self
        return forms.form_of(network.platform, network.storage)

    def prepare(self, images: Any) -> Any:
        """What networks that see the same mini-batch share, of normalised images ``(batch, height, width, channels)``;
        or what was prepared before.

        Raises:
            ConfigError: derivatives with respect to the images are asked for.
        """
        form = self.form
        return images if form.is_prepared(images) else form.prepare(_constant(images))


class Normalising(nn.Module):
    """What layers that normalise share: scale and bias, and the running statistics.

    Attributes:
        form: how they compute.
        affine: whether the normalisation has a trainable scale and bias.
        eps: ε of the normalisation.
        param_dtype: of the parameters.
    """

    form: Form
    affine: bool
    eps: float
    param_dtype: Any

    def normalisation(self, features: int) -> tuple[Affine | None, BatchMoments]:
        """Scale and bias, which start at 1 and 0, and the statistics at test time, which start at 0 and 1."""
        affine = None
        if self.affine:
            scale = self.param("scale", nn.initializers.ones, (features,), self.param_dtype)
            affine = Affine(scale, self.param("bias", nn.initializers.zeros, (features,), self.param_dtype))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, (features,), self.param_dtype)
        return affine, BatchMoments(mean.value, var.value)

    def update_running_statistics(self, moments: BatchMoments, count: int) -> None:
        """Move them towards those of a batch of ``count`` numbers a channel; initialisation leaves them."""
        if self.is_initializing():
            return
        unbiased = BatchMoments(moments.mean, moments.var * (count / max(count - 1, 1)))
        for name, batch in lax.stop_gradient(unbiased)._asdict().items():
            old = self.get_variable("batch_stats", name)
            self.put_variable("batch_stats", name, BN_MOMENTUM * old + (1 - BN_MOMENTUM) * batch)


class ConvBlock(Normalising):
    """One 3x3 convolution, batch normalisation, ReLU, and optionally a 2x2 max-pool, fused.

    Attributes:
        features: output channels.
        pool: whether the max-pool follows.
        conv_bias: whether the convolution has a bias. The normalisation cancels it in training, exactly, so there it
            only moves the running mean.
    """

    features: int
    pool: bool
    conv_bias: bool

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """``x``: activations, or `Form.prepare`d images for a first layer, which has no max-pool."""
        channels, count = self.form.channels(x), self.form.count(x)
        default = uniform_fan_in(9 * channels)
        kernel = self.param("kernel", default, (3, 3, channels, self.features), self.param_dtype)
        offset = self.param("conv_bias", default, (self.features,), self.param_dtype) if self.conv_bias else 0
        affine, running = self.normalisation(self.features)
        if not train:
            running = running._replace(mean=running.mean - offset)
            return self.form.conv_bn_relu_inference(x, kernel, running, self.pool, self.eps, affine)
        out, moments = self.form.conv_bn_relu(x, kernel, self.pool, self.eps, affine)
        self.update_running_statistics(moments._replace(mean=moments.mean + offset), count)
        return out


class Conv(nn.Module):
    """A convolution without bias, 3x3 with padding 1 or 1x1."""

    form: Form
    features: int
    size: int
    stride: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """``x``: activations, or `Form.prepare`d images for a first layer of 3x3."""
        channels = self.form.channels(x)
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", uniform_fan_in(self.size**2 * channels), shape, self.param_dtype)
        return self.form.conv(x, kernel, self.stride)


class BatchNorm(Normalising):
    """Batch normalisation, with trainable scale and bias if ``affine``, and a ReLU behind it if ``relu``."""

    relu: bool = False

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Normalise by the batch's statistics, or by the running ones."""
        affine, running = self.normalisation(self.form.channels(x))
        if not train:
            return self.form.normalise(x, running, self.eps, affine, self.relu)
        out, moments = self.form.batch_norm(x, affine, self.eps, self.relu, running.mean)
        self.update_running_statistics(moments, self.form.count(x))
        return out


class Head(nn.Module):
    """A linear layer whose weight starts at the Frobenius norm ``init_scale``, if that is positive."""

    num_classes: int
    bias: bool
    init_scale: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "channels batch"]) -> Float[Array, "batch classes"]:
        """Logits of features given channels first."""
        channels = x.shape[0]
        default = uniform_fan_in(channels)

        def scaled(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            weight = default(key, shape, dtype)
            return weight * (self.init_scale / jnp.linalg.norm(weight)) if self.init_scale > 0 else weight

        kernel = self.param("kernel", scaled, (channels, self.num_classes), self.param_dtype)
        logits = jnp.matmul(kernel.T, x, precision=precision())
        if self.bias:
            logits = logits + self.param("bias", default, (self.num_classes,), self.param_dtype)[:, None]
        return logits.T
