"""Convolutions for accelerators, with the channels innermost.

Activations are ``(batch, height, width, channels)``, of several configurations side by side; see `packing`. The three
products of a convolution are explicit, so that each is one call of the vendor's library: a convolution of one kernel,
or, of many channels, one with groups for a TPU, and batched products of patches for a GPU: a grouped convolution cuDNN
computes group by group, with copies of each group's channels around it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops.packing import UNLIMITED, Limit, Packing, apart, beside, joined, taken_apart

Images = Float[Array, "batch height width channels"]
Kernels = Float[Array, "configs size size channels_in channels_out"]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class SharedImages(NamedTuple):
    """A mini-batch with the moments of its 3x3 patches, computed once for all networks that see it.

    In a basis of cosines over the patch, the covariance of smooth images loses no digits: neighbours that are nearly
    equal differ in entries of their own.
    """

    images: Images  # in the dtype of stored activations
    mean: Float[Array, "patch"]  # of the patches; patch = 9 * channels, ordered (row, column, channel)
    covariance: Float[Array, "patch patch"]  # in the basis
    basis: Float[Array, "patch patch"]  # rows: cosines over 3x3 pixels, for each channel


def precise(x: Array) -> Array:
    """In at least float32, in which sums and normalisation are computed."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def precision() -> lax.Precision | None:
    """Of products: exact in float32 unless the caller of JAX has set something, as ``--precision`` does."""
    return lax.Precision.HIGHEST if jax.config.values["jax_default_matmul_precision"] is None else None


matmul = partial(jnp.matmul, precision=lax.Precision.HIGHEST)  # of small matrices


@jax.custom_jvp
def materialise(*arrays: Array) -> tuple[Array, ...]:
    """Evaluate all of them before any reader runs, so that one kernel makes them in one pass over what they share."""
    return lax.optimization_barrier(arrays)


@materialise.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return materialise(*primals), tuple(tangents)


class Tuning(NamedTuple):
    """What suits the compiler of a platform.

    Attributes:
        fused: it computes sums over a map where a convolution makes it. Then no barrier is between them. Otherwise each
            pass reads the map anew, and barriers keep the passes few.
        limit: of block-diagonal kernels.
    """

    fused: bool
    limit: Limit

    def materialise(self, *arrays: Array) -> tuple[Array, ...]:
        """`materialise`, where the passes are not fused."""
        return arrays if self.fused else materialise(*arrays)

    def two_sums(self, a: Images, b: Images) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
        """Sums over all but the channels: as one reduction with two results, or as two that may be fused."""
        return (a.sum((0, 1, 2)), b.sum((0, 1, 2))) if self.fused else two_sums(a, b)

    def limit_of(self, x: Any) -> Limit:
        """Of a convolution of x: of images that all configurations share it is dense by itself."""
        return UNLIMITED if isinstance(x, SharedImages) else self.limit


# Measured on an H200 at widths 8 and 32: a dense kernel of so many channels is 9 - 25 % faster than products of
# patches, and than a grouped convolution.
GPU = Tuning(fused=False, limit=Limit(512))
# Counted for a v5e: with dense kernels ConvNetSI of width 8 is as fast, ResNet18SI slower.
TPU = Tuning(fused=True, limit=Limit(0, grouped=True))


@jax.custom_jvp
def two_sums(a: Images, b: Images) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Sums over all but the channels, as one reduction with two results."""
    zeros = (jnp.zeros((), a.dtype), jnp.zeros((), b.dtype))
    sums: Any = lax.reduce((a, b), zeros, lambda p, q: (p[0] + q[0], p[1] + q[1]), (0, 1, 2))
    return tuple(sums)


@two_sums.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return two_sums(*primals), two_sums(*tangents)  # as they are linear


def convolve(packing: Packing, x: Images | SharedImages, kernels: Kernels, stride: int) -> Images:
    """The convolutions of all configurations, 3x3 with padding 1 or 1x1 without.

    Of images that all configurations see it is one dense convolution.
    """
    if isinstance(x, SharedImages):
        return _product(x.images, beside(kernels.astype(x.images.dtype)), stride)
    kernels = kernels.astype(x.dtype)
    if not packing.apart:
        kernel, groups = _one_kernel(packing, kernels)
        return _product(x, kernel, stride, groups)
    size, channels_out = kernels.shape[1], kernels.shape[-1]
    patches = _patches(x, size, stride)
    y = jnp.matmul(patches.reshape(-1, patches.shape[-1]), kernels.reshape(-1, channels_out), precision=precision())
    return y.reshape(*patches.shape[:3], channels_out)


def input_gradient(packing: Packing, dy: Images, kernels: Kernels, shape: tuple[int, ...], stride: int) -> Images:
    """The gradient of the input, of that shape."""
    kernels = kernels.astype(dy.dtype)
    if not packing.apart:
        kernel, groups = _one_kernel(packing, kernels)
        return _transposed(lambda x: _product(x, kernel, stride, groups), shape, dy)
    size, channels_out = kernels.shape[1], kernels.shape[-1]
    columns = jnp.matmul(dy.reshape(-1, channels_out), kernels.reshape(-1, channels_out).T, precision=precision())
    (columns,) = materialise(columns.reshape(*dy.shape[:3], -1))
    return _transposed(lambda x: _patches(x, size, stride), shape, columns)


def kernel_gradient(
    packing: Packing, x: Images | SharedImages, dy: Images, shape: tuple[int, ...], stride: int
) -> Kernels:
    """The gradients of the kernels, whose shape is given."""
    configs, size, _, channels_in, channels_out = shape
    if packing.apart and not isinstance(x, SharedImages):
        patches = _patches(x, size, stride).reshape(-1, size * size * channels_in)
        return jnp.matmul(patches.T, dy.reshape(-1, channels_out), precision=precision()).reshape(shape)
    if packing.grouped or isinstance(x, SharedImages):
        images, groups = (x.images, 1) if isinstance(x, SharedImages) else (x, configs)
        narrow = (size, size, channels_in, dy.shape[-1])
        return apart(_transposed(lambda w: _product(images, w, stride, groups), narrow, dy), configs)
    wide = (size, size, configs * channels_in, configs * channels_out)
    return taken_apart(_transposed(lambda w: _product(x, w, stride), wide, dy), configs)


def gradients(
    packing: Packing, x: Images | SharedImages, kernels: Kernels, dy: Images, stride: int
) -> tuple[Array, ...]:
    """Those of the kernels and of the input; of images that all configurations share, the kernels' alone."""
    of_kernels = kernel_gradient(packing, x, dy, kernels.shape, stride)
    if isinstance(x, SharedImages):
        return (of_kernels,)
    return of_kernels, input_gradient(packing, dy, kernels, x.shape, stride)


def _one_kernel(packing: Packing, kernels: Kernels) -> tuple[Array, int]:
    """For a convolution of all configurations side by side, and its number of groups."""
    return (beside(kernels), packing.configs) if packing.grouped else (joined(kernels), 1)


def _product(x: Images, kernel: Array, stride: int, groups: int = 1) -> Images:
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=DIMENSIONS, precision=precision(),
        feature_group_count=groups,
    )  # fmt: skip


def _patches(x: Images, size: int, stride: int) -> Float[Array, "batch rows columns patch"]:
    """All patches of a convolution, ordered (row, column, channel)."""
    batch, height, width, channels = x.shape
    pad = size // 2
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    rows, columns = (-(-length // stride) for length in (height, width))
    ends = (stride * (rows - 1) + 1, stride * (columns - 1) + 1)
    taken = [
        lax.slice(padded, (0, i, j, 0), (batch, i + ends[0], j + ends[1], channels), (1, stride, stride, 1))
        for i in range(size)
        for j in range(size)
    ]
    return jnp.concatenate(taken, -1)


def _transposed(linear: Callable[[Array], Array], shape: tuple[int, ...], cotangent: Array) -> Array:
    return jax.linear_transpose(linear, jax.ShapeDtypeStruct(shape, cotangent.dtype))(cotangent)[0]


def pilot(y: Images) -> Float[Array, "channels"]:
    """A number near each channel's mean, about which squares lose no digits: the mean of the images' central pixels.

    All images, as single ones cost a TPU a copy of the whole map, where the batch is innermost.
    """
    central = precise(lax.stop_gradient(y[:, y.shape[1] // 2, y.shape[2] // 2]))
    return (central * (1 / len(central))).sum(0)  # so that the division is no kernel of its own


def pilot_of_convolution(packing: Packing, x: Images | SharedImages, kernels: Kernels) -> Float[Array, "channels"]:
    """The `pilot` of a 3x3 convolution, from the patches under the central pixels.

    Known before the convolution, it lets the sums about it be computed where the convolution makes its numbers.
    """
    images = x.images if isinstance(x, SharedImages) else x
    kernel = beside(kernels) if isinstance(x, SharedImages) else joined(kernels)
    row, column = images.shape[1] // 2, images.shape[2] // 2
    patches = precise(images[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2])
    patch = (patches * (1 / len(patches))).sum(0)
    outside = [(first, 3 - first - length) for first, length in zip((row < 1, column < 1), patch.shape, strict=False)]
    patch = jnp.pad(patch, [(int(first), int(last)) for first, last in outside] + [(0, 0)])
    return lax.stop_gradient((patch[..., None] * precise(kernel)).sum((0, 1, 2)))


def moments_about(
    about: Float[Array, "channels"], s1: Array, s2: Array, count: int
) -> tuple[Float[Array, "channels"], Float[Array, "channels"]]:
    """Mean and biased variance, from the sums of numbers less ``about`` and of their squares."""
    return about + s1 / count, jnp.maximum(s2 / count - (s1 / count) ** 2, 0)


def shared_images(images: Images, dtype: Any) -> SharedImages:
    """What the first layer needs of a mini-batch of normalised images.

    Args:
        images: ``(batch, height, width, channels)``.
        dtype: of stored activations.
    """
    exact, (_, height, width, channels) = precise(images), images.shape
    cosines = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    basis = jnp.asarray(np.kron(np.kron(cosines, cosines), np.eye(channels)), exact.dtype)
    # The mean of each pixel of a patch: over the images first, then over the rows and columns that it meets.
    within = (np.stack([np.eye(n, k=1 - i).sum(1) for i in range(3)]) for n in (height, width))
    rows, columns = (jnp.asarray(w, exact.dtype) for w in within)
    mean = jnp.einsum("ih,hwc,jw->ijc", rows, exact.mean(0) / (height * width), columns, precision="highest").ravel()
    kernel = basis.T.reshape(3, 3, channels, -1)
    products = lax.conv_general_dilated(
        exact, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=DIMENSIONS, precision=lax.Precision.HIGHEST
    )
    turned = (products - matmul(basis, mean)).reshape(-1, len(basis))
    return SharedImages(images.astype(dtype), mean, matmul(turned.T, turned) / len(turned), basis)
