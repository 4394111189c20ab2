"""Patches of a mini-batch of images, computed once and shared by all networks that see the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops.im2col import im2col
from periodic_jax.ops.layout import Activations, scan_groups


class InputPatches(NamedTuple):
    """3x3 patches of a mini-batch of images with their moments, computed once and shared by all networks that see the
    batch.
    """

    # The patches less their mean; patch = 9 * channels, ordered (row, column, channel).
    columns: Float[Array, "groups patch height width lanes"]
    mean: Float[Array, "patch"]
    covariance: Float[Array, "patch patch"]


def input_patches(x: Activations) -> InputPatches:
    """Patches of the images, centred, with their mean and covariance, from which the first layer's statistics follow.

    With patches c: mean(w c) = w mean(c) and var(w c) = w cov(c) w^T, so no pass over the first layer's output is
    needed; and w (c - mean(c)) is normalised without subtracting nearly equal numbers again.
    """
    groups, channels, height, width, lanes = x.shape
    count = groups * height * width * lanes
    mean = _patch_sums(jax.vmap(lambda xg: xg.sum(-1))(x).sum(0)) / count

    def add(total: Array, xg: Array) -> tuple[Array, Array]:
        c = im2col(xg) - mean[:, None]
        return total + c @ c.T, c

    outer, columns = scan_groups(add, jnp.zeros((9 * channels,) * 2, x.dtype), x)
    return InputPatches(columns.reshape(groups, -1, height, width, lanes), mean, outer / count)


def _patch_sums(x: Float[Array, "channels height width"]) -> Float[Array, "patch"]:
    """Sum of each entry of all 3x3 patches: an entry sees all pixels but the edge from which it is moved away."""

    def seen(length: int) -> Array:
        return jnp.ones((3, length), x.dtype).at[0, -1].set(0).at[2, 0].set(0)

    sums = jnp.einsum("chw,ih,jw->ijc", x, seen(x.shape[1]), seen(x.shape[2]), precision=lax.Precision.HIGHEST)
    return sums.reshape(-1)
