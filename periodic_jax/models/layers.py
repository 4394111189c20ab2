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

from periodic_jax.ops import fused, primitives
from periodic_jax.ops.im2col import as_matrix
from periodic_jax.ops.layout import Activations, per_channel, to_activations
from periodic_jax.ops.patches import InputPatches, input_patches
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


class ImageNetwork(nn.Module):
    """A network whose first layer reads patches of the images, which networks that see the same mini-batch share."""

    def prepare(self, images: Any) -> InputPatches:
        """Patches, with their moments, of normalised images ``(batch, height, width, channels)``; or those given."""
        return images if isinstance(images, InputPatches) else input_patches(to_activations(images))


class Normalising(nn.Module):
    """What layers that normalise share: scale and bias, and the running statistics.

    Attributes:
        affine: whether the normalisation has a trainable scale and bias.
        eps: ε of the normalisation.
        param_dtype: of the parameters.
    """

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
    def __call__(self, x: Any, train: bool) -> Activations:
        """``x``: activations, or the `InputPatches` of images for a first layer, which has no max-pool."""
        first = isinstance(x, InputPatches)
        array = x.columns if first else x
        channels = array.shape[1] // 9 if first else array.shape[1]
        shape = (3, 3, channels, self.features)
        default = uniform_fan_in(9 * channels)
        kernel = self.param("kernel", default, shape, self.param_dtype)
        offset = self.param("conv_bias", default, (self.features,), self.param_dtype) if self.conv_bias else 0
        affine, running = self.normalisation(self.features)
        if not train:
            running = running._replace(mean=running.mean - offset)
            return fused.conv_bn_relu_inference(x, kernel, running, self.pool, self.eps, affine)
        if first:
            out, moments = fused.first_conv_bn_relu(x, kernel, self.eps, affine)
        else:
            out, moments = fused.conv_bn_relu(x, kernel, self.pool, self.eps, affine)
        moments = moments._replace(mean=moments.mean + offset)
        self.update_running_statistics(moments, array.size // array.shape[1])
        return out


class Conv(nn.Module):
    """A convolution without bias, 3x3 with padding 1 or 1x1."""

    features: int
    size: int
    stride: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Activations:
        """``x``: activations, or the `InputPatches` of images for a first layer of 3x3."""
        first = isinstance(x, InputPatches)
        channels = x.columns.shape[1] // 9 if first else x.shape[1]
        shape = (self.size, self.size, channels, self.features)
        kernel = self.param("kernel", uniform_fan_in(self.size**2 * channels), shape, self.param_dtype)
        if first:  # centred patches are channels to a 1x1 convolution
            flat = kernel.reshape(1, 1, -1, self.features)
            return primitives.conv(x.columns, flat) + per_channel(as_matrix(flat) @ x.mean)
        return primitives.conv(x, kernel, self.stride)


class BatchNorm(Normalising):
    """Batch normalisation, with trainable scale and bias if ``affine``."""

    @nn.compact
    def __call__(self, x: Activations, train: bool) -> Activations:
        """Normalise by the batch's statistics, or by the running ones."""
        features = x.shape[1]
        affine, running = self.normalisation(features)
        if not train:
            return primitives.normalise(x, running.mean, lax.rsqrt(running.var + self.eps), affine)
        out, moments = primitives.batch_norm(x, affine, self.eps)
        self.update_running_statistics(moments, x.size // features)
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
        logits = kernel.T @ x
        if self.bias:
            logits = logits + self.param("bias", default, (self.num_classes,), self.param_dtype)[:, None]
        return logits.T
