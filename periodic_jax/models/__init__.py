"""Flax networks whose train step stays fast when many are trained side by side, with explicit scale-invariance labels.

A network is a Flax module with three things beside ``__call__(images, train)``: ``labels()``, the scale-invariance
label of each layer; ``check_input(height, width)``; and optionally ``prepare(images)``, what networks that see the
same mini-batch can share.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from periodic_jax.errors import ConfigError
from periodic_jax.models.convnet import ConvNet
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT, leaf_labels

__all__ = ["MODELS", "OTHER", "SCALE_INVARIANT", "ConvNet", "build", "leaf_labels"]

# name -> function of (width, depth, num_classes, init_scale, param_dtype)
MODELS = {
    "ConvNetSI": ConvNet,
}


def build(
    name: str,
    *,
    width: int,
    depth: int = 3,
    num_classes: int = 10,
    init_scale: float = 10.0,
    param_dtype: Any = jnp.float32,
) -> nn.Module:
    """The network of that name.

    Args:
        name: a key of `MODELS`.
        width: channels of the first layer, at least 1.
        depth: convolutions after the first, at least 1.
        num_classes: outputs.
        init_scale: Frobenius norm of the head's weight at the start; not positive: PyTorch's default.
        param_dtype: of the parameters.

    Returns:
        An unbound Flax module.

    Raises:
        ConfigError: an unknown name, or a width or depth below 1.

    Example:
        >>> build("ConvNetSI", width=4).stages()
        [(4, False), (8, True), (16, True), (32, True)]
    """
    if name not in MODELS:
        raise ConfigError("--model", name, "one of " + ", ".join(MODELS))
    for flag, value in (("--width", width), ("--depth", depth)):
        if value < 1:
            raise ConfigError(flag, value, "a whole number from 1")
    return MODELS[name](
        width=width, depth=depth, num_classes=num_classes, init_scale=init_scale, param_dtype=param_dtype
    )
