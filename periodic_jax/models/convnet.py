"""ConvNet: a stack of 3x3 convolutions, each followed by batch normalisation and ReLU, in three stages that end in a
2x2 max-pool.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.errors import ConfigError
from periodic_jax.models import blocks
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT

BN_MOMENTUM = (
    0.9  # running <- 0.9 running + 0.1 batch, with the unbiased batch variance, as torch.nn.BatchNorm2d(momentum=0.1)
)


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default for convolutions and linear layers, weights and biases alike: U(-1/√fan_in, 1/√fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: Any) -> Array:
        # Drawn flat: the counters of a 4-d draw take XLA:CPU 8 times longer to compile (1.2 s against 0.15 s a
        # parameter).
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


class ConvBlock(nn.Module):
    """One convolution without bias, batch normalisation without affine part, ReLU, and optionally a 2x2 max-pool."""

    features: int
    pool: bool
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> blocks.Activations:
        """``x``: activations, or the `InputPatches` of images for a first layer."""
        first = isinstance(x, blocks.InputPatches)
        array = x.columns if first else x
        channels = array.shape[1] // 9 if first else array.shape[1]
        shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", uniform_fan_in(9 * channels), shape, self.param_dtype)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,), self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,), self.param_dtype)
        if not train:
            return blocks.conv_bn_relu_inference(x, kernel, mean.value, var.value, self.pool, self.eps)
        if first:
            out, moments = blocks.first_conv_bn_relu(x, kernel, self.eps)
            out = blocks.max_pool(out) if self.pool else out
        else:
            out, moments = blocks.conv_bn_relu(x, kernel, self.pool, self.eps)
        if not self.is_initializing():
            count = array.shape[0] * array.shape[2] * array.shape[3] * array.shape[4]
            unbiased = lax.stop_gradient(moments.var) * (count / max(count - 1, 1))
            mean.value = BN_MOMENTUM * mean.value + (1 - BN_MOMENTUM) * lax.stop_gradient(moments.mean)
            var.value = BN_MOMENTUM * var.value + (1 - BN_MOMENTUM) * unbiased
        return out


class ConvNet(nn.Module):
    """ConvNetSI of the reference: every convolution kernel is scale-invariant by itself.

    A first convolution to ``width`` channels, then ``depth`` convolutions in three stages of ⌈d/3⌉, ⌈(d-1)/3⌉ and
    ⌈(d-2)/3⌉: the last of a stage doubles the channels and is followed by a 2x2 max-pool. Then a max-pool over all
    remaining pixels and a linear head, whose weight is rescaled to the Frobenius norm ``init_scale``.

    Attributes:
        width: channels of the first convolution.
        depth: convolutions after the first, at least 1.
        num_classes: outputs.
        init_scale: norm of the head's weight at the start; not positive: PyTorch's default initialisation as it is.
        eps: ε of batch normalisation, added to the variance.
        param_dtype: of the parameters.

    Example:
        >>> model = ConvNet(width=4)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
        >>> model.apply(variables, jnp.zeros((2, 8, 8, 1)), train=False).shape
        (2, 10)

    Source: the ConvNetSI of Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.
    """

    width: int = 32
    depth: int = 3
    num_classes: int = 10
    init_scale: float = 10.0
    eps: float = 1e-5
    param_dtype: Any = jnp.float32

    def stages(self) -> list[tuple[int, bool]]:
        """(channels, pooled?) of each convolution, the first one included."""
        layers = [(self.width, False)]
        for stage in range(3):
            count = math.ceil(max(self.depth - stage, 0) / 3)
            layers += [(self.width * 2**stage, False)] * (count - 1)
            layers += [(self.width * 2 ** (stage + 1), True)] * min(count, 1)
        return layers

    def labels(self) -> dict[str, str]:
        """The scale-invariance label of each layer: a kernel is scale-invariant because a normalisation follows it."""
        return {**{f"conv{i}": SCALE_INVARIANT for i in range(len(self.stages()))}, "head": OTHER}

    def check_input(self, height: int, width: int) -> None:
        """Refuse images that do not survive the pooling.

        Raises:
            ConfigError: sides that cannot be halved once for each pooled stage.
        """
        halvings = sum(pooled for _, pooled in self.stages())
        if height % 2**halvings or width % 2**halvings or min(height, width) < 2**halvings:
            raise ConfigError(
                "image size", f"{height}x{width}", f"sides divisible by {2**halvings} for depth {self.depth}"
            )

    @nn.compact
    def __call__(self, images: Any, train: bool) -> Float[Array, "batch classes"]:
        """Logits of normalised images ``(batch, height, width, channels)``, or of their `prepare`d form."""
        x: Any = images if isinstance(images, blocks.InputPatches) else self.prepare(images)
        self.check_input(*x.columns.shape[2:4])
        for i, (features, pooled) in enumerate(self.stages()):
            x = ConvBlock(features, pooled, self.eps, self.param_dtype, name=f"conv{i}")(x, train)
        x = x.max((2, 3)).transpose(1, 0, 2).reshape(x.shape[1], -1)  # (channels, batch)
        return Head(self.num_classes, self.init_scale, self.param_dtype, name="head")(x)

    def prepare(self, images: Float[Array, "batch height width channels"]) -> blocks.InputPatches:
        """What networks that see the same mini-batch can share: the first layer's patches and their moments."""
        return blocks.input_patches(blocks.to_activations(images))


class Head(nn.Module):
    """A linear layer with bias whose weight starts at the Frobenius norm ``init_scale``."""

    num_classes: int
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
        bias = self.param("bias", default, (self.num_classes,), self.param_dtype)
        return (kernel.T @ x + bias[:, None]).T
