"""The two forms in which networks compute: one for CPUs, one for accelerators. They differ in rounding alone."""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array
from typing_extensions import override

from periodic_jax.core.errors import ConfigError
from periodic_jax.ops import direct, direct_blocks, direct_primitives, fused, primitives
from periodic_jax.ops.direct import SharedImages, Tuning
from periodic_jax.ops.im2col import as_matrix
from periodic_jax.ops.layout import Kernel, per_channel, to_activations
from periodic_jax.ops.patches import InputPatches, input_patches
from periodic_jax.ops.primitives import Affine, BatchMoments

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
STORAGE = {"float32": None, "bf16": jnp.bfloat16}  # of activations; None: the dtype of the images


class Form(Protocol):
    """What a layer asks of a form. Activations are opaque to it; ``x`` of a first layer is what `prepare` returned."""

    def prepare(self, images: Any) -> Any:
        """What networks that see the same mini-batch share, of images ``(batch, height, width, channels)``."""
        ...

    def is_prepared(self, x: Any) -> bool:
        """Whether ``x`` comes from `prepare`."""
        ...

    def image_size(self, x: Any) -> tuple[int, int]:
        """Height and width."""
        ...

    def channels(self, x: Any) -> int:
        """Of the images or the activations."""
        ...

    def count(self, x: Any) -> int:
        """Numbers in a channel: images times pixels."""
        ...

    def conv_bn_relu(
        self, x: Any, kernel: Kernel, pool: bool, eps: float, affine: Affine | None
    ) -> tuple[Any, BatchMoments]:
        """As `fused.conv_bn_relu`, and `fused.first_conv_bn_relu` of a first layer."""
        ...

    def conv_bn_relu_inference(
        self, x: Any, kernel: Kernel, statistics: BatchMoments, pool: bool, eps: float, affine: Affine | None
    ) -> Any:
        """As `fused.conv_bn_relu_inference`."""
        ...

    def conv(self, x: Any, kernel: Kernel, stride: int) -> Any:
        """As `primitives.conv`."""
        ...

    def batch_norm(
        self, x: Any, affine: Affine | None, eps: float, relu: bool, running_mean: Array
    ) -> tuple[Any, BatchMoments]:
        """As `primitives.batch_norm`, followed by a ReLU if ``relu``. The running means only tell where the means are
        about, for the sake of rounding.
        """
        ...

    def normalise(self, x: Any, statistics: BatchMoments, eps: float, affine: Affine | None, relu: bool) -> Any:
        """`batch_norm` with given statistics."""
        ...

    def global_max_pool(self, x: Any) -> Array:
        """The maximum over all pixels, ``(channels, batch)``."""
        ...

    def global_average_pool(self, x: Any) -> Array:
        """The mean over all pixels, ``(channels, batch)``."""
        ...


def platform_of(device: Any) -> str:
    """The platform of a JAX device, one of `PLATFORMS`."""
    if device.platform not in ("gpu", "cuda", "rocm"):
        return device.platform if device.platform in PLATFORMS else "cpu"
    return "rocm" if "rocm" in getattr(device.client, "platform_version", "").lower() else "cuda"


def here() -> str:
    """The platform on which JAX runs by default."""
    return platform_of(jax.devices()[0])


def check_platform(platform: str | None) -> str:
    """Return a platform, or the one on which JAX runs for None.

    Raises:
        ConfigError: none of `PLATFORMS`.
    """
    if platform is not None and platform not in PLATFORMS:
        raise ConfigError("platform", platform, "one of " + ", ".join(PLATFORMS))
    return here() if platform is None else platform


def form_of(platform: str, storage: str = "float32") -> Form:
    """The form for a platform.

    Args:
        platform: one of `PLATFORMS`.
        storage: a key of `STORAGE`: how activations are stored between operations.

    Raises:
        ConfigError: an unknown platform or storage.
    """
    check_platform(platform)
    if storage not in STORAGE:
        raise ConfigError("--storage", storage, "one of " + ", ".join(STORAGE))
    if platform == "cpu" and storage == "float32":
        return Lanes()
    return Direct(storage, direct.TPU if platform == "tpu" else direct.GPU)


@dataclass(frozen=True)
class Lanes(Form):
    """For CPUs: products of patches, with the batch innermost; see `layout`."""

    @override
    def prepare(self, images: Any) -> InputPatches:
        return input_patches(to_activations(images))

    @override
    def is_prepared(self, x: Any) -> bool:
        return isinstance(x, InputPatches)

    @override
    def image_size(self, x: Any) -> tuple[int, int]:
        height, width = (x.columns if isinstance(x, InputPatches) else x).shape[2:4]
        return height, width

    @override
    def channels(self, x: Any) -> int:
        return x.columns.shape[1] // 9 if isinstance(x, InputPatches) else x.shape[1]

    @override
    def count(self, x: Any) -> int:
        array = x.columns if isinstance(x, InputPatches) else x
        return array.size // array.shape[1]

    @override
    def conv_bn_relu(
        self, x: Any, kernel: Kernel, pool: bool, eps: float, affine: Affine | None
    ) -> tuple[Any, BatchMoments]:
        if isinstance(x, InputPatches):
            return fused.first_conv_bn_relu(x, kernel, eps, affine)
        return fused.conv_bn_relu(x, kernel, pool, eps, affine)

    @override
    def conv_bn_relu_inference(
        self, x: Any, kernel: Kernel, statistics: BatchMoments, pool: bool, eps: float, affine: Affine | None
    ) -> Any:
        return fused.conv_bn_relu_inference(x, kernel, statistics, pool, eps, affine)

    @override
    def conv(self, x: Any, kernel: Kernel, stride: int) -> Any:
        if not isinstance(x, InputPatches):
            return primitives.conv(x, kernel, stride)
        flat = kernel.reshape(1, 1, -1, kernel.shape[-1])  # centred patches are channels to a 1x1 convolution
        return primitives.conv(x.columns, flat) + per_channel(as_matrix(flat) @ x.mean)

    @override
    def batch_norm(
        self, x: Any, affine: Affine | None, eps: float, relu: bool, running_mean: Array
    ) -> tuple[Any, BatchMoments]:
        out, moments = primitives.batch_norm(x, affine, eps)
        return jax.nn.relu(out) if relu else out, moments

    @override
    def normalise(self, x: Any, statistics: BatchMoments, eps: float, affine: Affine | None, relu: bool) -> Any:
        out = primitives.normalise(x, statistics.mean, lax.rsqrt(statistics.var + eps), affine)
        return jax.nn.relu(out) if relu else out

    @override
    def global_max_pool(self, x: Any) -> Array:
        return primitives.global_max_pool(x)

    @override
    def global_average_pool(self, x: Any) -> Array:
        return primitives.global_average_pool(x)


@dataclass(frozen=True)
class Direct(Form):
    """For accelerators: convolutions with the channels innermost, configurations side by side; see `direct`.

    Attributes:
        storage: a key of `STORAGE`.
        tuning: for the platform. Without fused passes, the first layer's statistics follow from the moments of the
            images' patches, which are read once for all configurations.
    """

    storage: str
    tuning: Tuning = direct.GPU

    @override
    def prepare(self, images: Any) -> SharedImages:
        return direct.shared_images(images, STORAGE[self.storage] or images.dtype)

    @override
    def is_prepared(self, x: Any) -> bool:
        return isinstance(x, SharedImages)

    @override
    def image_size(self, x: Any) -> tuple[int, int]:
        height, width = _images(x).shape[1:3]
        return height, width

    @override
    def channels(self, x: Any) -> int:
        return _images(x).shape[-1]

    @override
    def count(self, x: Any) -> int:
        return _images(x).size // _images(x).shape[-1]

    @override
    def conv_bn_relu(
        self, x: Any, kernel: Kernel, pool: bool, eps: float, affine: Affine | None
    ) -> tuple[Any, BatchMoments]:
        if isinstance(x, SharedImages) and not self.tuning.fused:
            return direct_blocks.first_conv_bn_relu(x, kernel, eps, affine)
        return direct_blocks.conv_bn_relu(x, kernel, pool, eps, affine, self.tuning)

    @override
    def conv_bn_relu_inference(
        self, x: Any, kernel: Kernel, statistics: BatchMoments, pool: bool, eps: float, affine: Affine | None
    ) -> Any:
        return direct_blocks.conv_bn_relu_inference(x, kernel, statistics, pool, eps, affine, self.tuning)

    @override
    def conv(self, x: Any, kernel: Kernel, stride: int) -> Any:
        return direct_primitives.conv(x, kernel, stride, self.tuning)

    @override
    def batch_norm(
        self, x: Any, affine: Affine | None, eps: float, relu: bool, running_mean: Array
    ) -> tuple[Any, BatchMoments]:
        return direct_primitives.batch_norm(x, affine, eps, relu, self.tuning, running_mean)

    @override
    def normalise(self, x: Any, statistics: BatchMoments, eps: float, affine: Affine | None, relu: bool) -> Any:
        return direct_primitives.normalise(x, statistics, eps, affine, relu)

    @override
    def global_max_pool(self, x: Any) -> Array:
        return direct_primitives.global_max_pool(x)

    @override
    def global_average_pool(self, x: Any) -> Array:
        return direct_primitives.global_average_pool(x)


def _images(x: Any) -> Array:
    return x.images if isinstance(x, SharedImages) else x
