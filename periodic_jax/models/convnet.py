"""ConvNet: a stack of 3x3 convolutions, each followed by batch normalisation and ReLU, in three stages that end in a
2x2 max-pool.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.core.errors import ConfigError
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT
from periodic_jax.models.layers import ConvBlock, Head, ImageNetwork
from periodic_jax.models.torch_weights import kernel_names, norm_names


class ConvNet(ImageNetwork):
    """ConvNetSI of the reference, and with the options on its ConvNetSIAf and ConvNet.

    A first convolution to ``width`` channels, then ``depth`` convolutions in three stages of ⌈d/3⌉, ⌈(d-1)/3⌉ and
    ⌈(d-2)/3⌉: the last of a stage doubles the channels and is followed by a 2x2 max-pool. Then a max-pool over all
    remaining pixels and a linear head, whose weight is rescaled to the Frobenius norm ``init_scale``.

    Attributes:
        width: channels of the first convolution.
        depth: convolutions after the first, at least 1.
        num_classes: outputs.
        affine: whether normalisations have a trainable scale and bias.
        conv_bias: whether convolutions have a bias, as in the reference's standard network, all of whose weights are
            trained alike.
        init_scale: norm of the head's weight at the start; not positive: PyTorch's default initialisation as it is.
        eps: ε of batch normalisation, added to the variance.
        param_dtype: of the parameters.
        platform, storage: how it computes; see `layers.ImageNetwork`.

    Example:
        >>> import jax
        >>> model = ConvNet(width=4)
        >>> initialise = jax.jit(model.init, static_argnames="train")
        >>> variables = initialise(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
        >>> model.apply(variables, jnp.zeros((2, 8, 8, 1)), train=False).shape
        (2, 10)

    Source: the networks of Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.
    """

    width: int = 32
    depth: int = 3
    num_classes: int = 10
    affine: bool = False
    conv_bias: bool = False
    init_scale: float = 10.0
    eps: float = 1e-5
    param_dtype: Any = jnp.float32
    platform: str | None = None
    storage: str = "float32"

    def stages(self) -> list[tuple[int, bool]]:
        """(channels, pooled?) of each convolution, the first one included."""
        layers = [(self.width, False)]
        for stage in range(3):
            count = math.ceil(max(self.depth - stage, 0) / 3)
            layers += [(self.width * 2**stage, False)] * (count - 1)
            layers += [(self.width * 2 ** (stage + 1), True)] * min(count, 1)
        return layers

    def labels(self) -> dict[str, Any]:
        """The scale-invariance label of each weight.

        A kernel is scale-invariant because a normalisation follows it. With ``conv_bias`` nothing is marked: the
        network is the reference's standard one, whose weights are not told apart.
        """
        block = {"kernel": OTHER if self.conv_bias else SCALE_INVARIANT}
        block |= dict.fromkeys(["conv_bias"] * self.conv_bias + ["scale", "bias"] * self.affine, OTHER)
        return {**{f"conv{i}": block for i in range(len(self.stages()))}, "head": OTHER}

    def check_input(self, height: int, width: int) -> None:
        """Refuse images that do not survive the pooling.

        Raises:
            ConfigError: sides that cannot be halved once for each pooled stage.
        """
        least = 2 ** sum(pooled for _, pooled in self.stages())
        if height % least or width % least:
            raise ConfigError("image size", f"{height}x{width}", f"sides divisible by {least} for depth {self.depth}")

    @nn.compact
    def __call__(self, images: Any, train: bool) -> Float[Array, "batch classes"]:
        """Logits of normalised images ``(batch, height, width, channels)``, or of their `prepare`d form."""
        form, x = self.form, self.prepare(images)
        self.check_input(*form.image_size(x))
        for i, (features, pooled) in enumerate(self.stages()):
            norm = form, self.affine, self.eps, self.param_dtype
            x = ConvBlock(*norm, features, pooled, self.conv_bias, name=f"conv{i}")(x, train)
        return Head(self.num_classes, True, self.init_scale, self.param_dtype, name="head")(form.global_max_pool(x))

    def torch_names(self) -> dict[str, str]:
        """Where each entry of the reference's PyTorch state dict is found, in its order; see `torch_weights`."""
        layers = "module_list" if self.conv_bias else "conv_layers"
        names: dict[str, str] = {}
        # In the reference's list of layers: convolution, normalisation, ReLU, and where there is one, pooling.
        place = 0
        for i, (_, pooled) in enumerate(self.stages()):
            names |= kernel_names(f"{layers}.{place}", f"conv{i}", "conv_bias" if self.conv_bias else None)
            names |= norm_names(f"{layers}.{place + 1}", f"conv{i}", self.affine)
            place += 4 if pooled else 3
        # Behind the last layer come a max-pool and a flattening, in the same list or in one of its own.
        head = f"{layers}.{place + 2}" if self.conv_bias else "linear_layers.2"
        return names | kernel_names(head, "head", "bias")
