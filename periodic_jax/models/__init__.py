"""Flax networks whose train step stays fast when many are trained side by side, with explicit scale-invariance labels.

A network of this package is a Flax module with three things beside ``__call__(images, train)``: ``labels()``, the
scale-invariance label of each layer; ``check_input(height, width)``; and optionally ``prepare(images)``, what networks
that see the same mini-batch can share.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.models import forms
from periodic_jax.models.convnet import ConvNet
from periodic_jax.models.dense import MLP, ViT
from periodic_jax.models.invariance import MeasuredLabels, measure_labels, verify_labels
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT, leaf_labels
from periodic_jax.models.layers import ImageNetwork
from periodic_jax.models.resnet import ResNet18
from periodic_jax.models.torch_weights import from_torch, to_torch

__all__ = [
    "MLP",
    "MODELS",
    "OTHER",
    "SCALE_INVARIANT",
    "ConvNet",
    "MeasuredLabels",
    "ResNet18",
    "ViT",
    "build",
    "from_torch",
    "has_scale_invariant",
    "leaf_labels",
    "measure_labels",
    "to_torch",
    "verify_labels",
]

# The name, of the reference for the first six -> module and options.
MODELS: dict[str, tuple[type[ConvNet] | type[ResNet18] | type[MLP] | type[ViT], dict[str, Any]]] = {
    "ConvNetSI": (ConvNet, {}),
    "ConvNetSIAf": (ConvNet, {"affine": True}),
    "ConvNet": (ConvNet, {"affine": True, "conv_bias": True}),
    "ResNet18SI": (ResNet18, {}),
    "ResNet18SIAf": (ResNet18, {"affine": True}),
    "ResNet18": (ResNet18, {"affine": True, "full_norm": False, "head_bias": True}),
    "MLPSI": (MLP, {}),
    "ViTSI": (ViT, {}),
}


def build(
    name: str,
    *,
    width: int,
    depth: int = 3,
    num_classes: int = 10,
    init_scale: float = 10.0,
    param_dtype: Any = jnp.float32,
    platform: str | None = None,
    storage: str = "float32",
) -> nn.Module:
    """The network of that name.

    Args:
        name: a key of `MODELS`.
        width: channels of the first layer, at least 1; of all layers of MLPSI and ViTSI.
        depth: of a ConvNet, convolutions after the first, at least 1; hidden layers of MLPSI, blocks of ViTSI; a
            ResNet18 has one depth and takes the default.
        num_classes: outputs.
        init_scale: Frobenius norm of the head's weight at the start; not positive: PyTorch's default.
        param_dtype: of the parameters.
        platform: one of ``cpu``, ``cuda``, ``rocm``, ``tpu``, whose form of convolutions it takes; None: where JAX
            runs. Any form runs anywhere, in other rounding and at another speed.
        storage: of activations between operations, ``float32`` for the dtype of the images, or ``bf16``.

    Returns:
        An unbound Flax module.

    Raises:
        ConfigError: an unknown name, platform or storage, a width or depth below 1, another depth for a ResNet18, or
            another storage than float32 for MLPSI and ViTSI.

    Example:
        >>> build("ConvNetSI", width=4).stages()
        [(4, False), (8, True), (16, True), (32, True)]
    """
    if name not in MODELS:
        raise ConfigError("--model", name, "one of " + ", ".join(MODELS))
    for flag, value, most in (("--width", width, 65_536), ("--depth", depth, 1000)):
        if not 1 <= value <= most:
            raise ConfigError(flag, value, f"a whole number from 1 to {most}")
    module, options = MODELS[name]
    if not issubclass(module, ResNet18):
        options = {**options, "depth": depth}
    elif depth != 3:
        raise UsageError("--depth", f"{name} always has 18 layers", "leave it out")
    forms.form_of(forms.check_platform(platform), storage)
    if issubclass(module, ImageNetwork):
        options = {**options, "platform": platform, "storage": storage}
    elif storage != "float32":
        raise ConfigError("--storage", storage, f"float32 for {name}")
    return module(width=width, num_classes=num_classes, init_scale=init_scale, param_dtype=param_dtype, **options)


def has_scale_invariant(model: Any) -> bool:
    """Whether a network marks any of its weights as scale-invariant."""
    return SCALE_INVARIANT in jax.tree.leaves(model.labels())
