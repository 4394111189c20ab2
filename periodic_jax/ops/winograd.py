"""A 3x3 convolution with fewer products: Winograd's F(2x2, 3x3), 16 instead of 36 for each 2x2 tile of the output.

    y = Aᵀ [(G k Gᵀ) ⊙ (Bᵀ x B)] A        of each 4x4 patch x of the input, for each pair of channels

The sum over input channels is taken between the two transformations, where it is 16 matrix products. Float32 outputs
err about twice as much as those of direct sums.

Source: Lavin and Gray, Fast algorithms for convolutional neural networks, 2016, section 4.1.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops.layout import Kernel, materialise

Map = Float[Array, "channels height width lanes"]


class Winograd(NamedTuple):
    """A 3x3 convolution with zero padding 1 as 16 products at once: y = output(matrix(kernel) @ columns(x)).

    Attributes:
        shape: of the input, ``(channels, height, width, lanes)``; height and width even.
    """

    shape: tuple[int, int, int, int]

    def matrix(self, kernel: Kernel) -> Float[Array, "16 rows channels"]:
        """The left factors, G k Gᵀ."""

        def transformed(kernel: Kernel) -> Array:
            rows = [jnp.stack(_of_kernel(row)) for row in _of_kernel(kernel)]
            return jnp.stack(rows).reshape(16, *kernel.shape[2:])

        return materialise(transformed, kernel).mT

    def kernel(self, gradient: Float[Array, "16 channels rows"]) -> Kernel:
        """The kernel's gradient, from that of the transposed left factors."""
        rows = _to_kernel(gradient.reshape(4, 4, *gradient.shape[1:]))
        return jnp.stack([jnp.stack(_to_kernel(row)) for row in rows])

    def columns(self, x: Map) -> Float[Array, "16 channels tiles"]:
        """The right factors, Bᵀ x B of all tiles."""
        channels, height, width, lanes = self.shape

        def down(x: Map) -> Array:
            return jnp.stack(_of_input(_patches(x.reshape(channels, height // 2, 2, width * lanes), 1)))

        def across(rows: Array) -> Array:
            halves = rows.reshape(4, channels, height // 2, width // 2, 2, lanes)
            return jnp.stack(_of_input(_patches(halves, 3)), 1).reshape(16, channels, -1)

        return materialise(across, materialise(down, x))

    def image(self, gradient: Float[Array, "16 channels tiles"]) -> Map:
        """The input's gradient, from that of the right factors."""
        channels, height, width, lanes = self.shape

        def across(gradient: Array) -> Array:
            taps = gradient.reshape(4, 4, channels, height // 2, width // 2, lanes)
            pixels = _joined(_to_input([taps[:, j] for j in range(4)]), 3)
            return pixels.reshape(4, channels, height // 2, width * lanes)

        return _joined(_to_input(materialise(across, gradient)), 1).reshape(self.shape)

    def output(self, product: Float[Array, "16 rows tiles"]) -> Map:
        """Aᵀ m A of the products, as a map."""
        _, height, width, lanes = self.shape

        def transformed(product: Array) -> Array:
            taps = product.reshape(4, 4, -1, height // 2, width // 2, lanes)
            tiles = [jnp.stack(_to_output(row), 3) for row in _to_output(taps)]
            return jnp.stack(tiles, 2).reshape(-1, height, width, lanes)

        # Five readers follow in a block.
        return materialise(transformed, product)

    def rows(self, y: Map) -> Float[Array, "16 rows tiles"]:
        """The gradient of the products, from that of a map."""
        _, height, width, lanes = self.shape

        def transformed(y: Map) -> Array:
            tiles = y.reshape(-1, height // 2, 2, width // 2, 2, lanes)
            rows = _from_output([tiles[:, :, i] for i in range(2)])
            taps = [jnp.stack(_from_output([row[:, :, :, j] for j in range(2)])) for row in rows]
            return jnp.stack(taps).reshape(16, y.shape[0], -1)

        return materialise(transformed, y)


Parts = Sequence[Array] | Array


def _of_input(x: Parts) -> list[Array]:
    """Bᵀ x, x the four pixels of a patch along one axis."""
    return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _to_input(v: Parts) -> list[Array]:
    """B v, the transpose of `_of_input`."""
    return [v[0], v[1] - v[2] + v[3], v[1] + v[2] - v[0], -v[3]]


def _to_output(m: Parts) -> list[Array]:
    """Aᵀ m: the two pixels of a tile."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _from_output(y: Parts) -> list[Array]:
    """A y, the transpose of `_to_output`."""
    return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _of_kernel(k: Parts) -> list[Array]:
    """G k."""
    return [k[0], (k[0] + k[1] + k[2]) / 2, (k[0] - k[1] + k[2]) / 2, k[2]]


def _to_kernel(u: Parts) -> list[Array]:
    """Gᵀ u, the transpose of `_of_kernel`."""
    return [u[0] + (u[1] + u[2]) / 2, (u[1] - u[2]) / 2, (u[1] + u[2]) / 2 + u[3]]


def _patches(halves: Array, axis: int) -> list[Array]:
    """The four pixels of each tile's patch: of tiles of two along ``axis``, its two, the one before and the one
    after.

    Args:
        halves: tiles along ``axis``, the two pixels of each along the next one.
        axis: of the tiles.
    """
    even, odd = (lax.index_in_dim(halves, k, axis + 1, keepdims=False) for k in range(2))
    return [_shifted(odd, axis, 1), even, odd, _shifted(even, axis, -1)]


def _joined(patches: Parts, axis: int) -> Array:
    """The transpose of `_patches`: each pixel is in two patches."""
    even = patches[1] + _shifted(patches[3], axis, 1)
    odd = patches[2] + _shifted(patches[0], axis, -1)
    return jnp.stack([even, odd], axis + 1)


def _shifted(x: Array, axis: int, places: int) -> Array:
    """Moved along an axis, with zeros behind."""
    edges = [(0, 0, 0)] * x.ndim
    edges[axis] = (places, -places, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), edges)
