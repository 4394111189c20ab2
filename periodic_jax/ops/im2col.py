"""Convolution of one group as matrix products, kernel x columns, in the form that suits the map's size.

A stack of kernels under ``vmap`` would make `jax.lax.conv` a grouped convolution, and inside a loop XLA's CPU
backend computes its gradient 40 - 80 times slower than outside. Everything here is a (batched) matrix product
instead, whatever transformation surrounds it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops.layout import Kernel, materialise
from periodic_jax.ops.winograd import Map, Winograd

FEWEST_CHANNELS = 16  # with which the products that `Winograd` saves are worth its transformations on CPU


class Patches(NamedTuple):
    """A 3x3 convolution with zero padding 1 as kernel x patches: y = output(matrix(kernel) @ columns(x)).

    Attributes:
        shape: of the input, ``(channels, height, width, lanes)``.
    """

    shape: tuple[int, int, int, int]

    def matrix(self, kernel: Kernel) -> Float[Array, "rows patch"]:
        """The left factor."""
        return as_matrix(kernel)

    def kernel(self, gradient: Float[Array, "patch rows"]) -> Kernel:
        """The kernel's gradient, from that of the left factor's transpose."""
        return gradient.reshape(3, 3, self.shape[0], -1)

    def columns(self, x: Map) -> Float[Array, "patch pixels"]:
        """The right factor."""
        return im2col(x)

    def image(self, gradient: Float[Array, "patch pixels"]) -> Map:
        """The input's gradient, from that of the right factor."""
        return col2im(gradient, self.shape)

    def output(self, product: Float[Array, "rows pixels"]) -> Map:
        """The product as a map."""
        return product.reshape(-1, *self.shape[1:])

    def rows(self, y: Map) -> Float[Array, "rows pixels"]:
        """A map as the product."""
        return y.reshape(y.shape[0], -1)


class WholeMap(NamedTuple):
    """The same of a 2x2 map, as one product over all its pixels: of the 36 products that patches make there, 20 are
    with zeros.

    Pixels come before channels in rows and columns, so that all rearranging moves whole rows of lanes or of outputs.

    Attributes:
        shape: of the input, ``(channels, 2, 2, lanes)``.
    """

    shape: tuple[int, int, int, int]

    def matrix(self, kernel: Kernel) -> Float[Array, "rows patch"]:
        """The left factor: kernel[1 + i - k, 1 + j - l] takes input pixel (i, j) to output pixel (k, l)."""

        def spread(kernel: Kernel) -> Array:
            rows = jnp.stack([kernel[1:], kernel[:2]], 1)  # (i, k, 3, in, out)
            taps = jnp.stack([rows[:, :, 1:], rows[:, :, :2]], 3)  # (i, k, j, l, in, out)
            return taps.transpose(0, 2, 4, 1, 3, 5).reshape(4 * self.shape[0], -1)

        return materialise(spread, kernel).T

    def kernel(self, gradient: Float[Array, "patch rows"]) -> Kernel:
        """The kernel's gradient, from that of the left factor's transpose."""
        taps = gradient.reshape(2, 2, self.shape[0], 2, 2, -1).transpose(0, 3, 1, 4, 2, 5)  # (i, k, j, l, in, out)
        zero = jnp.zeros((), gradient.dtype)
        edge = (0, 0, 0)
        rows = sum(
            (lax.pad(taps[:, :, :, k], zero, (edge, edge, (1 - k, k, 0), edge, edge)) for k in range(2)), start=zero
        )
        return sum((lax.pad(rows[:, k], zero, ((1 - k, k, 0), edge, edge, edge)) for k in range(2)), start=zero)

    def columns(self, x: Map) -> Float[Array, "patch pixels"]:
        """The right factor."""
        return x.transpose(1, 2, 0, 3).reshape(-1, x.shape[-1])

    def image(self, gradient: Float[Array, "patch pixels"]) -> Map:
        """The input's gradient, from that of the right factor."""
        return self.output(gradient)

    def output(self, product: Float[Array, "rows pixels"]) -> Map:
        """The product as a map."""
        return product.reshape(2, 2, -1, self.shape[-1]).transpose(2, 0, 1, 3)

    def rows(self, y: Map) -> Float[Array, "rows pixels"]:
        """A map as the product."""
        return self.columns(y)


def form_of(shape: tuple[int, ...]) -> Patches | WholeMap | Winograd:
    """The form that is fastest for an input ``(channels, height, width, lanes)``, as measured."""
    channels, height, width, lanes = shape
    form: type[Patches | WholeMap | Winograd] = Patches
    if height == width == 2:
        form = WholeMap
    elif channels >= FEWEST_CHANNELS and height % 2 == width % 2 == 0:
        form = Winograd
    return form((channels, height, width, lanes))


def im2col(
    x: Float[Array, "channels height width lanes"], size: int = 3, stride: int = 1
) -> Float[Array, "patch pixels"]:
    """All patches of a 3x3 convolution with zero padding 1, or of a 1x1 convolution without.

    First each row's left neighbours, itself and its right neighbours, between two rows of zeros; then three shifts
    along the height, which are copies without a condition.
    """
    if size == 1:
        return x[:, ::stride, ::stride].reshape(x.shape[0], -1)
    channels, height, width, lanes = x.shape
    rows, cols = (-(-length // stride) for length in (height, width))

    def beside(x: Array) -> Array:
        flat, unit = _flat_rows(x, stride)
        shifted = [
            _pad(flat, (1, 1, 0), ((1 - j) * unit, (stride * (cols - 1) - width + j) * unit, 0)) for j in range(3)
        ]
        taken = [lax.slice_in_dim(s, 0, None, stride, 2) for s in shifted]
        return jnp.stack(taken).reshape(3 * channels, height + 2, cols * lanes)

    near = materialise(beside, x)
    stop = stride * (rows - 1) + 1
    return jnp.stack([lax.slice_in_dim(near, i, i + stop, stride, 1) for i in range(3)]).reshape(9 * channels, -1)


def col2im(
    columns: Float[Array, "patch pixels"], shape: tuple[int, int, int, int], size: int = 3, stride: int = 1
) -> Float[Array, "channels height width lanes"]:
    """The transpose of `im2col`: add each patch entry back to its pixel, along the width, then along the height."""
    channels, height, width, lanes = shape
    rows, cols = (-(-length // stride) for length in (height, width))
    if size == 1:
        taps = columns.reshape(channels, rows, cols, lanes)
        return _pad(taps, _spread(0, rows, height, stride), _spread(0, cols, width, stride))

    def along_rows(columns: Array) -> Array:
        taps = columns.reshape(3, 3, channels, rows, cols, lanes)
        total = jnp.zeros((), columns.dtype)
        for j in range(3):
            flat, unit = _flat_rows(taps[:, j].reshape(3 * channels, rows, cols, lanes), stride)
            low, high, gap = _spread(j - 1, cols, width, stride)
            total = total + _pad(flat, (0, 0, 0), (low * unit, high * unit, gap))
        return total.reshape(3, channels, rows, width * lanes)

    sums = materialise(along_rows, columns)
    spread = (_pad(sums[i], _spread(i - 1, rows, height, stride), (0, 0, 0)) for i in range(3))
    return sum(spread, start=jnp.zeros((), columns.dtype)).reshape(shape)


def _flat_rows(x: Array, stride: int) -> tuple[Array, int]:
    """Rows of pixels and lanes as one axis, where no stride tells pixels apart, and the length of a pixel on it.

    Long contiguous rows are what XLA's CPU backend copies fastest.
    """
    return (x.reshape(*x.shape[:2], -1), x.shape[3]) if stride == 1 else (x, 1)


def _pad(x: Array, rows: tuple[int, int, int], cols: tuple[int, int, int]) -> Array:
    """Zeros around axes 1 and 2: (low, high, between), as `lax.pad` takes them."""
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), rows, cols, *[(0, 0, 0)] * (x.ndim - 3)))


def _spread(shift: int, places: int, length: int, stride: int) -> tuple[int, int, int]:
    """Padding that puts place i of ``places`` at stride · i + shift of an axis of that length."""
    return shift, length - shift - stride * (places - 1) - 1, stride - 1


def as_matrix(kernel: Kernel) -> Float[Array, "channels_out patch"]:
    """A Flax kernel ``(size, size, in, out)`` as the left factor of kernel x patches."""
    return kernel.reshape(-1, kernel.shape[-1]).T
