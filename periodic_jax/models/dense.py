"""Networks of dense layers, in plain JAX on every platform: an MLP, and a small transformer on images."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.core.errors import ConfigError
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT
from periodic_jax.models.layers import BN_MOMENTUM, Head, uniform_fan_in
from periodic_jax.ops.direct import precision

PATCHES = 4  # along each side of an image: 16 tokens


class Dense(nn.Module):
    """A linear layer without bias."""

    features: int
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``(..., channels)`` to ``(..., features)``."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", uniform_fan_in(shape[0]), shape, self.param_dtype)
        return jnp.matmul(x, kernel, precision=precision())


class FlatBatchNorm(nn.Module):
    """Batch normalisation of ``(batch, features)`` without scale and bias, with running statistics as PyTorch's."""

    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool) -> Float[Array, "batch features"]:
        """Normalise by the batch's statistics, or by the running ones."""
        features = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, self.param_dtype)
        var = self.variable("batch_stats", "var", jnp.ones, features, self.param_dtype)
        if not train:
            return (x - mean.value) * jax.lax.rsqrt(var.value + self.eps)
        batch_mean, batch_var = x.mean(0), x.var(0)
        if not self.is_initializing():
            unbiased = batch_var * (len(x) / max(len(x) - 1, 1))
            for old, new in ((mean, batch_mean), (var, unbiased)):
                old.value = BN_MOMENTUM * old.value + (1 - BN_MOMENTUM) * jax.lax.stop_gradient(new)
        return (x - batch_mean) * jax.lax.rsqrt(batch_var + self.eps)


class DenseNetwork(nn.Module):
    """What both networks are built with.

    Attributes:
        width: of the hidden layers, or of the tokens.
        depth: number of hidden layers or of blocks.
        num_classes: outputs.
        init_scale: norm of the head's weight at the start; not positive: PyTorch's default initialisation as it is.
        eps: ε of a normalisation, added to the variance or to the mean square.
        param_dtype: of the parameters.
    """

    width: int = 32
    depth: int = 3
    num_classes: int = 10
    init_scale: float = 10.0
    eps: float = 1e-5
    param_dtype: Any = jnp.float32


class MLP(DenseNetwork):
    """MLPSI: ``depth`` dense layers of ``width``, each with batch normalisation and a ReLU behind it, and a head.

    Example:
        >>> variables = MLP(width=4).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
        >>> sorted(variables["params"])
        ['dense0', 'dense1', 'dense2', 'head']
    """

    def labels(self) -> dict[str, Any]:
        """The scale-invariance label of each weight: a normalisation follows all but the head."""
        return {**{f"dense{i}": SCALE_INVARIANT for i in range(self.depth)}, "head": OTHER}

    def check_input(self, height: int, width: int) -> None:
        """Images of every size will do."""

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Float[Array, "batch classes"]:
        """Logits of normalised images ``(batch, height, width, channels)``."""
        x = images.reshape(len(images), -1)
        for i in range(self.depth):
            x = Dense(self.width, self.param_dtype, name=f"dense{i}")(x)
            x = jax.nn.relu(FlatBatchNorm(self.eps, self.param_dtype, name=f"norm{i}")(x, train))
        return Head(self.num_classes, True, self.init_scale, self.param_dtype, name="head")(x.T)


class Attention(nn.Module):
    """Attention whose queries and keys are normalised, so that their scales do not count."""

    heads: int
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """softmax(q̂ k̂ᵀ/√d) v, of each head."""
        width = x.shape[-1]

        def project(name: str) -> Array:
            projected = Dense(width, self.param_dtype, name=name)(x)
            return projected.reshape(*x.shape[:2], self.heads, width // self.heads)

        query, key = (rms_norm(project(name), self.eps) for name in ("query", "key"))
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=precision())
        weights = jax.nn.softmax(scores / math.sqrt(width // self.heads), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, project("value"), precision=precision())
        return Dense(width, self.param_dtype, name="out")(mixed.reshape(x.shape))


class Block(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(W₂ relu(W₁ norm(x))).

    The norm behind each branch makes all of its weights scale-invariant, each by itself.
    """

    heads: int
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Tokens to tokens."""
        width = x.shape[-1]
        attention = Attention(self.heads, self.eps, self.param_dtype, name="attention")
        x = x + rms_norm(attention(rms_norm(x, self.eps)), self.eps)
        h = jax.nn.relu(Dense(4 * width, self.param_dtype, name="up")(rms_norm(x, self.eps)))
        return x + rms_norm(Dense(width, self.param_dtype, name="down")(h), self.eps)


class ViT(DenseNetwork):
    """ViTSI: a vision transformer without running statistics, all of whose weights but the head are scale-invariant.

    16 equal patches of an image are tokens of ``width`` numbers, normalised, with fixed positions added; ``depth``
    blocks, with two heads of attention where the width is even and else one; a normalisation, the mean over all tokens
    and a linear head. A norm is x/√(mean x² + ε).

    Example:
        >>> variables = ViT(width=4, depth=1).init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
        >>> sorted(variables["params"]["block0"]["attention"]), list(variables)
        (['key', 'out', 'query', 'value'], ['params'])
    """

    def labels(self) -> dict[str, Any]:
        """The scale-invariance label of each weight: a norm follows all but the head."""
        return {"embed": SCALE_INVARIANT, **{f"block{i}": SCALE_INVARIANT for i in range(self.depth)}, "head": OTHER}

    def check_input(self, height: int, width: int) -> None:
        """Refuse images that cannot be cut into equal patches.

        Raises:
            ConfigError: a side that is not divisible by 4.
        """
        if height % PATCHES or width % PATCHES:
            raise ConfigError(
                "image size", f"{height}x{width}", f"sides divisible by {PATCHES}, the patches along each"
            )

    @nn.compact
    def __call__(self, images: Array, train: bool) -> Float[Array, "batch classes"]:
        """Logits of normalised images ``(batch, height, width, channels)``."""
        batch, height, width, channels = images.shape
        self.check_input(height, width)
        cut = images.reshape(batch, PATCHES, height // PATCHES, PATCHES, width // PATCHES, channels)
        tokens = cut.transpose(0, 1, 3, 2, 4, 5).reshape(batch, PATCHES**2, -1)
        x = rms_norm(Dense(self.width, self.param_dtype, name="embed")(tokens), self.eps)
        x = x + positions(PATCHES**2, self.width).astype(x.dtype)
        heads = 1 if self.width % 2 else 2
        for i in range(self.depth):
            x = Block(heads, self.eps, self.param_dtype, name=f"block{i}")(x)
        mean = rms_norm(x, self.eps).mean(1)
        return Head(self.num_classes, True, self.init_scale, self.param_dtype, name="head")(mean.T)


def rms_norm(x: Array, eps: float) -> Array:
    """x/√(mean x² + ε) over the last axis."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def positions(tokens: int, width: int) -> Float[Array, "tokens width"]:
    """Sines and cosines of the number of a token, of wavelengths from 2π on, ten times as long over the width."""
    rates = 10.0 ** -(jnp.arange(width) // 2 * 2 / width)
    angles = jnp.arange(tokens)[:, None] * rates
    return jnp.where(jnp.arange(width) % 2, jnp.cos(angles), jnp.sin(angles))
