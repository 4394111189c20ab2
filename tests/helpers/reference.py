"""Slow and plain counterparts of the package's fast code, written from the definitions, for tests to compare with."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def convolve(images: Any, kernel: Any) -> Any:
    """3x3 convolution with zero padding 1 by `lax.conv_general_dilated`, NHWC."""
    return lax.conv_general_dilated(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def normalise(y: Any, mean: Any, var: Any, eps: float) -> Any:
    """Batch normalisation without affine part."""
    return (y - mean) / jnp.sqrt(var + eps)


def pool(z: Any) -> Any:
    """2x2 max-pooling, NHWC."""
    return lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def block(images: Any, kernel: Any, pooled: bool, eps: float) -> tuple[Any, Any, Any]:
    """Convolution, batch normalisation, ReLU, pooling; with the batch mean and biased variance."""
    y = convolve(images, kernel)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    z = jax.nn.relu(normalise(y, mean, var, eps))
    return (pool(z) if pooled else z), mean, var


def logits(params: Any, images: Any, stages: list[tuple[int, bool]], eps: float) -> Any:
    """The whole ConvNet in training mode."""
    x = images
    for i, (_, pooled) in enumerate(stages):
        x = block(x, params[f"conv{i}"]["kernel"], pooled, eps)[0]
    return x.max((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]


def cross_entropy(scores: Any, labels: Any) -> Any:
    """Mean of -ln softmax, from the definition."""
    odds = jnp.exp(scores - scores.max(1, keepdims=True))
    return -jnp.log(odds[jnp.arange(len(labels)), labels] / odds.sum(1)).mean()


def flat(tree: Any) -> np.ndarray:
    """All leaves as one float64 vector."""
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def crop_and_flip(images, offsets, flips):
    """Plain numpy: a black frame of 4 pixels, a crop, a mirror; one image after the other."""
    height, width = images.shape[1:3]
    framed = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    crops = [f[y : y + height, x : x + width] for f, (y, x) in zip(framed, offsets, strict=True)]
    return np.stack([np.fliplr(crop) if flip else crop for crop, flip in zip(crops, flips, strict=True)])


def augmented(images, key):
    """The same with the draws of a key: rows, columns, flips."""
    bits = np.asarray(jax.random.bits(key, (3 * len(images),), jnp.uint32)).reshape(3, -1).astype(np.int64)
    return crop_and_flip(images, (bits[:2] % 9).T, bits[2] % 2 == 1)
