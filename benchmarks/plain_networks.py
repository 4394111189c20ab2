"""The package's networks as a Flax user would write them: `flax.linen` layers, without anything of this package.

What a step of the package costs is compared with these. They have the same weights and compute the same logits.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from periodic_jax.models import ConvNet, ResNet18


class PlainConvNet(nn.Module):
    """The layers of a `ConvNet`.

    Attributes:
        of: the network whose sizes it takes.
    """

    of: ConvNet

    def labels(self) -> dict[str, Any]:
        """As the network's own, by the names of its layers here."""
        blocks = {name: label for name, label in self.of.labels().items() if name != "head"}
        norms = {name.replace("conv", "norm"): block["scale"] for name, block in blocks.items() if self.of.affine}
        return {name: block["kernel"] for name, block in blocks.items()} | norms | {"head": self.of.labels()["head"]}

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of normalised images."""
        for i, (features, pooled) in enumerate(self.of.stages()):
            x = _conv(x, features, 3, 1, f"conv{i}", self.of.conv_bias)
            x = nn.relu(_norm(x, train, self.of.affine, f"norm{i}"))
            x = nn.max_pool(x, (2, 2), (2, 2)) if pooled else x
        return nn.Dense(self.of.num_classes, name="head")(jnp.max(x, (1, 2)))


class PlainResNet(nn.Module):
    """The layers of a `ResNet18`.

    Attributes:
        of: the network whose sizes it takes.
    """

    of: ResNet18

    def labels(self) -> dict[str, Any]:
        """As the network's own."""
        return self.of.labels()

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Logits of normalised images."""
        of = self.of
        x = _conv(x, of.width, 3, 1, "conv1")
        for name, features, stride in of.stages():
            x = PlainResidualBlock(features, stride, of.affine, of.full_norm, name=name)(x, train)
        if of.full_norm:
            x = nn.relu(_norm(x, train, of.affine, "bn"))
        return nn.Dense(of.num_classes, of.head_bias, name="head")(jnp.mean(x, (1, 2)))


class PlainResidualBlock(nn.Module):
    """The layers of a `ResidualBlock`, with its attributes."""

    features: int
    stride: int
    affine: bool
    shortcut_norm: bool

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Activations of ``features`` channels, and of a size divided by ``stride``."""
        h = nn.relu(_norm(x, train, self.affine, "bn1"))
        if self.stride > 1:
            x = _norm(h, train, self.affine, "shortcut_bn") if self.shortcut_norm else h
            x = _conv(x, self.features, 1, self.stride, "shortcut_conv")
        h = _conv(h, self.features, 3, self.stride, "conv1")
        return x + _conv(nn.relu(_norm(h, train, self.affine, "bn2")), self.features, 3, 1, "conv2")


def _conv(x: jax.Array, features: int, size: int, stride: int, name: str, bias: bool = False) -> Any:
    return nn.Conv(features, (size, size), stride, padding=size // 2, use_bias=bias, name=name)(x)


def _norm(x: Any, train: bool, affine: bool, name: str) -> Any:
    norm = nn.BatchNorm(momentum=0.9, use_bias=affine, use_scale=affine, name=name)
    return norm(x, use_running_average=not train)


def plain_network(model: nn.Module) -> nn.Module:
    """The counterpart of a `ConvNet` or a `ResNet18`.

    Raises:
        TypeError: another network.
    """
    if isinstance(model, ConvNet):
        return PlainConvNet(model)
    if isinstance(model, ResNet18):
        return PlainResNet(model)
    raise TypeError(f"{type(model).__name__} has no counterpart of flax.linen layers")
