"""Convolution, batch normalisation and pooling one by one, in the layout of `layout`, with their own gradients.

Networks whose layers do not fit a fused block of `blocks` are made of these.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from periodic_jax.ops.im2col import as_matrix, col2im, im2col
from periodic_jax.ops.layout import Activations, Kernel, channel_sums, materialise, per_channel, scan_groups


class Affine(NamedTuple):
    """The trainable part of a batch normalisation: normal ↦ scale · normal + bias."""

    scale: Float[Array, "channels"]
    bias: Float[Array, "channels"]


def with_positive_scale(block: Callable[..., Any], kernel: Kernel, affine: Affine) -> tuple[Any, "BatchMoments"]:
    """A block of convolution, normalisation, ReLU and pooling whose normalisation has a positive scale.

    γ·normal(w * x) = |γ|·normal(sign(γ) w * x), and only a positive factor lets the maximum be taken first.

    Args:
        block: of (kernel, affine), with a scale from 0 on; returns the activations and the batch moments.
        kernel: w.
        affine: with γ of any sign.
    """
    sign = jnp.where(affine.scale < 0, -1, 1).astype(kernel.dtype)
    out, moments = block(kernel * sign, Affine(affine.scale * sign, affine.bias))
    return out, moments._replace(mean=moments.mean * sign)


class BatchMoments(NamedTuple):
    """Moments of one mini-batch before normalisation, for the running statistics."""

    mean: Float[Array, "channels"]  # batch mean
    var: Float[Array, "channels"]  # biased batch variance


def conv(x: Activations, kernel: Kernel, stride: int = 1) -> Activations:
    """3x3 convolution with zero padding 1, or 1x1 convolution without padding.

    y[o, i, j] = Σ_{a, b, c} kernel[a, b, c, o] x[c, s·i + a - p, s·j + b - p], p = (size - 1) / 2

    Args:
        x: activations ``(groups, channels_in, height, width, lanes)``.
        kernel: ``(3, 3, channels_in, channels_out)`` or ``(1, 1, channels_in, channels_out)``.
        stride: s, the same along both sides.

    Returns:
        Activations ``(groups, channels_out, ⌈height/s⌉, ⌈width/s⌉, lanes)``.

    Example:
        >>> conv(jnp.ones((1, 2, 4, 4, 3)), jnp.ones((1, 1, 2, 5)), 2).shape
        (1, 5, 2, 2, 3)
    """
    return _conv(x, kernel, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, stride: int) -> Any:
    return _conv_forward(x, kernel, stride)[0]


def _conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, Any]:
    size = kernel.shape[0]
    w = as_matrix(kernel)
    _, y = scan_groups(lambda _, xg: (None, w @ im2col(xg, size, stride)), None, x)
    height, width = (-(-length // stride) for length in x.shape[2:4])
    return y.reshape(x.shape[0], -1, height, width, x.shape[-1]), (x, kernel)


def _conv_backward(stride: int, residuals: Any, gradient: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    size = kernel.shape[0]
    w = as_matrix(kernel)
    dy = gradient.reshape(gradient.shape[0], gradient.shape[1], -1)

    def add(dw: Array, group: tuple[Array, Array]) -> tuple[Array, None]:
        xg, dyg = group
        return dw + im2col(xg, size, stride) @ dyg.T, None

    # Two loops: where the input needs no gradient, as the images, the second one is dead code to the compiler.
    dw, _ = scan_groups(add, jnp.zeros_like(w.T), (x, dy))
    _, dx = scan_groups(lambda _, dyg: (None, col2im(w.T @ dyg, x.shape[1:], size, stride)), None, dy)
    return dx, dw.reshape(kernel.shape)


_conv.defvjp(_conv_forward, _conv_backward)


def batch_norm(x: Activations, affine: Affine | None, eps: float) -> tuple[Activations, BatchMoments]:
    """Batch normalisation with batch statistics; the variance as a mean of squared deviations, which loses no digits.

    z = scale · (x - mean(x)) / sqrt(var(x) + eps) + bias

    Args:
        x: activations ``(groups, channels, height, width, lanes)``.
        affine: scale and bias, or ``None`` for 1 and 0.
        eps: added to the variance.

    Returns:
        The activations, and the batch moments, which carry no gradient.
    """
    return _batch_norm(x, affine, eps)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _batch_norm(x: Array, affine: Affine | None, eps: float) -> Any:
    return _batch_norm_forward(x, affine, eps)[0]


def _batch_norm_forward(x: Array, affine: Affine | None, eps: float) -> tuple[Any, Any]:
    count = x.size // x.shape[1]
    mean = channel_sums(x) / count
    var = channel_sums((x - per_channel(mean)) ** 2) / count
    inv = lax.rsqrt(var + eps)
    return (normalise(x, mean, inv, affine), BatchMoments(mean, var)), (x, affine, mean, inv)


def _batch_norm_backward(_eps: float, residuals: Any, cotangents: Any) -> tuple[Array, Affine | None]:
    x, affine, mean, inv = residuals
    g = cotangents[0]
    count = x.size // x.shape[1]
    normal = normalise(x, mean, inv, None)
    sum_g, sum_gn = channel_sums(g), channel_sums(g * normal)
    gain = inv if affine is None else inv * affine.scale
    dx = per_channel(gain) * (g - per_channel(sum_g / count) - normal * per_channel(sum_gn / count))
    return dx, None if affine is None else Affine(sum_gn, sum_g)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def normalise(
    x: Activations, mean: Float[Array, "channels"], inv: Float[Array, "channels"], affine: Affine | None
) -> Activations:
    """The map x ↦ scale · (x - mean) · inv + bias, channel by channel."""
    normal = (x - per_channel(mean)) * per_channel(inv)
    return normal if affine is None else normal * per_channel(affine.scale) + per_channel(affine.bias)


def windows(y: Float[Array, "channels height width lanes"]) -> tuple[Array, Array, Array, Array]:
    """The four entries of each 2x2 window, in reading order."""
    channels, height, width, lanes = y.shape
    v = y.reshape(channels, height // 2, 2, width // 2, 2, lanes)
    return v[:, :, 0, :, 0], v[:, :, 0, :, 1], v[:, :, 1, :, 0], v[:, :, 1, :, 1]


def window_max(y: Float[Array, "channels height width lanes"]) -> Array:
    """The maximum of each 2x2 window."""
    a, b, c, d = windows(y)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def route_to_max(y: Float[Array, "channels height width lanes"], peak: Array, gradient: Array) -> Array:
    """The gradient of `window_max`: to the first maximum of each window, as in PyTorch; zero elsewhere."""
    a, b, c, _ = windows(y)
    dtype = y.dtype  # `find_place` outlives this trace in the program: a hold on ``y`` would be a leak

    def find_place(a: Array, b: Array, c: Array, peak: Array, gradient: Array) -> tuple[Array, Array]:
        place = jnp.where(a == peak, 0, jnp.where(b == peak, 1, jnp.where(c == peak, 2, 3)))
        return place.astype(dtype), gradient  # places as numbers: compared in full vectors

    # Found for each window first: fused into the rest, it would be found again for each of the four entries.
    first, gradient = materialise(find_place, a, b, c, peak, gradient)
    place = jnp.array([[0, 1], [2, 3]], dtype)[None, None, :, None, :, None]
    first, gradient = first[:, :, None, :, None, :], gradient[:, :, None, :, None, :]
    return jnp.where(first == place, gradient, 0).reshape(y.shape)


@jax.custom_vjp
def max_pool(x: Activations) -> Activations:
    """2x2 max-pooling; the first maximum of a window takes the gradient."""
    return jax.vmap(window_max)(x)


def _max_pool_forward(x: Array) -> tuple[Array, Any]:
    peak = jax.vmap(window_max)(x)  # and not `max_pool`, so that second derivatives find plain operations
    return peak, (x, peak)


def _max_pool_backward(residuals: Any, gradient: Array) -> tuple[Array]:
    x, peak = residuals
    return (jax.vmap(route_to_max)(x, peak, gradient),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def global_max_pool(x: Activations) -> Float[Array, "channels batch"]:
    """The maximum over all pixels, features first; the first maximum takes the gradient."""
    pixels = x.reshape(*x.shape[:2], -1, x.shape[-1])
    return _as_features(_first_max(pixels))


@jax.custom_vjp
def _first_max(pixels: Float[Array, "groups channels pixels lanes"]) -> Float[Array, "groups channels lanes"]:
    return pixels.max(2)


def _first_max_forward(pixels: Array) -> tuple[Array, Array]:
    return pixels.max(2), pixels


def _first_max_backward(pixels: Array, gradient: Array) -> tuple[Array]:
    place = jnp.arange(pixels.shape[2])[:, None]
    return (jnp.where(pixels.argmax(2, keepdims=True) == place, gradient[:, :, None], 0),)


_first_max.defvjp(_first_max_forward, _first_max_backward)


def global_average_pool(x: Activations) -> Float[Array, "channels batch"]:
    """The mean over all pixels, features first."""
    return _as_features(x.mean((2, 3)))


def _as_features(x: Float[Array, "groups channels lanes"]) -> Float[Array, "channels batch"]:
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)
