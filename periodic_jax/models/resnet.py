"""ResNet18: the pre-activation residual network with batch normalisation, 18 layers deep."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.core.errors import ConfigError
from periodic_jax.models.forms import Form
from periodic_jax.models.labels import OTHER, SCALE_INVARIANT
from periodic_jax.models.layers import BatchNorm, Conv, Head, ImageNetwork
from periodic_jax.models.torch_weights import kernel_names, norm_names


class ResidualBlock(nn.Module):
    """x + conv2(relu(bn2(conv1(h)))) with h = relu(bn1(x)), where the first convolution may have a stride.

    With a stride the shape changes, and a 1x1 convolution of h takes the place of x, with a normalisation of its own
    before it if ``shortcut_norm``.
    """

    form: Form
    features: int
    stride: int
    affine: bool
    shortcut_norm: bool
    eps: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        """Activations of ``features`` channels, and of a size divided by ``stride``."""

        def norm(name: str, x: Any, relu: bool) -> Any:
            return BatchNorm(self.form, self.affine, self.eps, self.param_dtype, relu, name=name)(x, train)

        def conv(name: str, x: Any, size: int, stride: int) -> Any:
            return Conv(self.form, self.features, size, stride, self.param_dtype, name=name)(x)

        h = norm("bn1", x, True)
        if self.stride > 1:
            x = conv("shortcut_conv", norm("shortcut_bn", h, False) if self.shortcut_norm else h, 1, self.stride)
        h = conv("conv1", h, 3, self.stride)
        return x + conv("conv2", norm("bn2", h, True), 3, 1)


class ResNet18(ImageNetwork):
    """ResNet18SI of the reference, and with other options its ResNet18SIAf and ResNet18.

    A 3x3 convolution to ``width`` channels; four stages of two residual blocks with 1, 2, 4 and 8 times as many
    channels, each stage but the first halving the image; a mean over all remaining pixels and a linear head.

    Attributes:
        width: channels of the first convolution.
        num_classes: outputs.
        affine: whether normalisations have a trainable scale and bias.
        full_norm: whether a normalisation stands before each 1x1 convolution of a shortcut, and one with a ReLU before
            the head. With the latter nothing reads the residual stream without normalising it, so that the kernels
            are scale-invariant jointly.
        head_bias: whether the head has a bias.
        init_scale: norm of the head's weight at the start; not positive: PyTorch's default initialisation as it is.
        eps: ε of batch normalisation, added to the variance.
        param_dtype: of the parameters.
        platform, storage: how it computes; see `layers.ImageNetwork`.

    Example:
        >>> import jax
        >>> model = ResNet18(width=2)
        >>> initialise = jax.jit(model.init, static_argnames="train")
        >>> variables = initialise(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=True)
        >>> model.apply(variables, jnp.zeros((2, 8, 8, 1)), train=False).shape
        (2, 10)

    Source: the networks of Lobacheva et al., NeurIPS 2021, arXiv 2106.15739.
    """

    width: int = 32
    num_classes: int = 10
    affine: bool = False
    full_norm: bool = True
    head_bias: bool = False
    init_scale: float = 10.0
    eps: float = 1e-5
    param_dtype: Any = jnp.float32
    platform: str | None = None
    storage: str = "float32"

    def stages(self) -> list[tuple[str, int, int]]:
        """(name, channels, stride) of each residual block."""
        return [
            (f"layer{stage + 1}_{block}", self.width * 2**stage, 2 if stage > 0 and block == 0 else 1)
            for stage in range(4)
            for block in range(2)
        ]

    def labels(self) -> dict[str, Any]:
        """The scale-invariance label of each weight: the kernels together, if all that reads the residual stream,
        which sums what they make, normalises it first. Without the last normalisation the head does not.
        """
        kernel = {"kernel": SCALE_INVARIANT if self.full_norm else OTHER}
        labels: dict[str, Any] = {"conv1": kernel, "head": OTHER}
        for name, _, stride in self.stages():
            convs = ["conv1", "conv2"] + ["shortcut_conv"] * (stride > 1)
            norms = ["bn1", "bn2"] + ["shortcut_bn"] * (stride > 1 and self.full_norm)
            labels[name] = dict.fromkeys(convs, kernel) | dict.fromkeys(norms * self.affine, OTHER)
        return labels | ({"bn": OTHER} if self.affine and self.full_norm else {})

    def check_input(self, height: int, width: int) -> None:
        """Refuse images that the three halvings leave no choice of pixels.

        Raises:
            ConfigError: a side below 8.
        """
        if min(height, width) < 8:
            raise ConfigError("image size", f"{height}x{width}", "sides of at least 8, which are halved three times")

    @nn.compact
    def __call__(self, images: Any, train: bool) -> Float[Array, "batch classes"]:
        """Logits of normalised images ``(batch, height, width, channels)``, or of their `prepare`d form."""
        form, x = self.form, self.prepare(images)
        self.check_input(*form.image_size(x))
        norm = self.affine, self.eps, self.param_dtype
        x = Conv(form, self.width, 3, 1, self.param_dtype, name="conv1")(x)
        for name, features, stride in self.stages():
            block = ResidualBlock(form, features, stride, self.affine, self.full_norm, *norm[1:], name=name)
            x = block(x, train)
        if self.full_norm:
            x = BatchNorm(form, *norm, True, name="bn")(x, train)
        head = Head(self.num_classes, self.head_bias, self.init_scale, self.param_dtype, name="head")
        return head(form.global_average_pool(x))

    def torch_names(self) -> dict[str, str]:
        """Where each entry of the reference's PyTorch state dict is found, in its order; see `torch_weights`."""
        names = kernel_names("conv1", "conv1")
        for name, _, stride in self.stages():
            prefix = name.replace("_", ".")
            for i in ("1", "2"):
                names |= norm_names(f"{prefix}.bn{i}", f"{name}/bn{i}", self.affine)
                names |= kernel_names(f"{prefix}.conv{i}", f"{name}/conv{i}")
            if stride > 1 and self.full_norm:
                names |= norm_names(f"{prefix}.shortcut.0", f"{name}/shortcut_bn", self.affine)
            if stride > 1:
                names |= kernel_names(f"{prefix}.shortcut.{int(self.full_norm)}", f"{name}/shortcut_conv")
        if self.full_norm:
            names |= norm_names("bn", "bn", self.affine)
        return names | kernel_names("linear", "head", "bias" if self.head_bias else None)
