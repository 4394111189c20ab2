import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from periodic_jax.ops import layout, primitives
from periodic_jax.ops.primitives import Affine

EPS = 1e-5


def to_images(x):
    """Activations back to NHWC."""
    groups, channels, height, width, lanes = x.shape
    return x.transpose(0, 4, 2, 3, 1).reshape(groups * lanes, height, width, channels)


def plain_conv(images, kernel, stride):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_norm(images, affine, eps=EPS):
    z = (images - images.mean((0, 1, 2))) / jnp.sqrt(images.var((0, 1, 2)) + eps)
    return z if affine is None else affine.scale * z + affine.bias


def value_and_vjp(function, *arguments, weights):
    out, pull = jax.vjp(function, *arguments)
    return out, pull(weights)


def agree(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize(("height", "width", "group_size"), [(4, 6, 2), (5, 1, 6), (2, 3, 6)])
def test_convolution_and_its_gradients_equal_lax(float64, size, stride, height, width, group_size):
    """One by one, for a stack of kernels under ``vmap``, and in a loop."""
    keys = jax.random.split(jax.random.key(height), 3)
    images = jax.random.normal(keys[0], (6, height, width, 2), jnp.float64)
    kernels = jax.random.normal(keys[1], (2, size, size, 2, 3), jnp.float64)
    shape = (6, -(-height // stride), -(-width // stride), 3)
    weights = jax.random.normal(keys[2], shape, jnp.float64)

    def fast(images, kernel):
        return to_images(primitives.conv(layout.to_activations(images, group_size), kernel, stride))

    def one(kernel):
        return value_and_vjp(fast, images, kernel, weights=weights)

    convolve = functools.partial(plain_conv, stride=stride)
    plain = jax.jit(lambda ks: [value_and_vjp(convolve, images, k, weights=weights) for k in ks])(kernels)
    stacked, looped, single = jax.jit(lambda k: (jax.vmap(one)(k), lax.map(one, k), one(k[0])))(kernels)
    wanted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plain)
    agree(stacked, wanted)
    agree(looped, wanted)
    agree(single, plain[0])


@pytest.mark.parametrize("group_size", [6, 2])
@pytest.mark.parametrize("trainable", [True, False])
def test_normalisation_and_its_gradients_equal_the_definition(float64, group_size, trainable):
    keys = jax.random.split(jax.random.key(0), 3)
    images = 3 + jax.random.normal(keys[0], (2, 6, 3, 5, 4), jnp.float64)
    affine = Affine(jnp.array([1.0, -2.0, 0.5, 0.0]), jnp.arange(4.0)) if trainable else None
    weights = jax.random.normal(keys[1], images.shape[1:], jnp.float64)

    def fast(images, affine):
        return to_images(primitives.batch_norm(layout.to_activations(images, group_size), affine, EPS)[0])

    def pulled(function):
        return jax.vmap(lambda images: value_and_vjp(function, images, affine, weights=weights))

    agree(jax.jit(pulled(fast))(images), jax.jit(pulled(plain_norm))(images))
    _, moments = primitives.batch_norm(layout.to_activations(images[0], group_size), affine, EPS)
    np.testing.assert_allclose(moments.mean, images[0].mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(moments.var, images[0].var((0, 1, 2)), rtol=1e-13)


def test_variance_keeps_its_digits_far_from_zero():
    x = 1000 + jax.random.normal(jax.random.key(0), (2, 1, 8, 8, 8), jnp.float32)
    z, moments = jax.jit(lambda x: primitives.batch_norm(x, None, 0.0))(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(float(moments.var[0]), exact.var(), rtol=1e-4)
    np.testing.assert_allclose(z, (exact - exact.mean()) / exact.std(), atol=1e-3)


def first_maximum(images):
    """The place of the first maximum in reading order of each (image, channel), one by one."""
    batch, _, width, channels = images.shape
    hot = np.zeros(images.shape)
    for n in range(batch):
        for c in range(channels):
            place = int(np.argmax(images[n, :, :, c].ravel()))
            hot[n, place // width, place % width, c] = 1
    return hot


@pytest.mark.parametrize("group_size", [4, 2])
def test_pooling_sends_the_gradient_to_the_first_maximum(group_size):
    """Of few values, so that most windows tie."""
    images = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 4, 6, 3)).astype(np.float32))

    def pool(images):
        return to_images(primitives.max_pool(layout.to_activations(images, group_size)))

    pooled, pull = jax.vjp(pool, images)
    weights = jnp.arange(1.0, 1 + pooled.size).reshape(pooled.shape)
    gradient = np.asarray(pull(weights)[0])
    for i in range(2):
        for j in range(3):
            window = np.s_[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            assert np.array_equal(pooled[:, i, j], images[window].max((1, 2)))
            expected = first_maximum(np.asarray(images[window])) * np.asarray(weights)[:, i, j][:, None, None]
            assert np.array_equal(gradient[window], expected)

    features, pull = jax.vjp(lambda x: primitives.global_max_pool(layout.to_activations(x, group_size)), images)
    assert np.array_equal(features.T, images.max((1, 2)))
    weights = jnp.arange(1.0, 13).reshape(3, 4)
    expected = first_maximum(np.asarray(images)) * np.asarray(weights).T[:, None, None]
    assert np.array_equal(pull(weights)[0], expected)


def test_mean_over_all_pixels(float64):
    images = jax.random.normal(jax.random.key(0), (4, 2, 3, 5), jnp.float64)
    features = primitives.global_average_pool(layout.to_activations(images, 2))
    np.testing.assert_allclose(features.T, images.mean((1, 2)), rtol=1e-13)


def test_nan_goes_through_every_pooling():
    """Divergence must not hide."""
    x = jnp.zeros((1, 1, 2, 2, 1)).at[0, 0, 1, 0, 0].set(jnp.nan)
    for pool in (primitives.max_pool, primitives.global_max_pool, primitives.global_average_pool):
        assert np.isnan(pool(x)).all()


def test_a_gradient_of_pooling_leaks_no_tracer():
    """`jax.checking_leaks` is how users look for their own."""
    y = jnp.arange(32.0).reshape(2, 4, 4, 1)
    with jax.checking_leaks():
        routed = jax.jit(primitives.route_to_max)(y, primitives.window_max(y), jnp.ones((2, 2, 2, 1)))
    assert routed.sum() == 8
