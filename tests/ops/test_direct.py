"""The form of convolutions for accelerators, on a CPU: against plain operations; side by side against one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from periodic_jax.ops import direct, direct_blocks, direct_primitives, packing
from periodic_jax.ops.primitives import Affine, BatchMoments

EPS, CONFIGS = 1e-5, 4
KEYS = jax.random.split(jax.random.key(0), 6)


def normal(key, *shape, dtype=jnp.float64):
    return jax.random.normal(KEYS[key], shape, dtype)


def agree(got, wanted, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(jnp.abs(b).max())))


def outcome(function, weights):
    """Output, moments and gradients of the weighted sum of outputs, and the gradients' derivative, compiled."""

    def loss(*arguments):
        z, *moments = function(*arguments)
        return (z * weights).sum(), (z, moments)

    def gradient(*arguments):
        return jax.grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments)[0]

    def everything(*arguments):
        along = jax.tree.map(jnp.cos, arguments)
        return loss(*arguments)[1], *jax.jvp(gradient, arguments, along)

    return everything


def plain_block(x, kernel, affine, pool):
    y = reference.convolve(x, kernel)
    mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
    z = reference.normalise(y, mean, var, EPS)
    z = z if affine is None else z * affine.scale + affine.bias
    return (reference.pool(jax.nn.relu(z)) if pool else jax.nn.relu(z)), mean, var


def affine_of(features, configs=()):
    return Affine(normal(3, *configs, features), normal(4, *configs, features))


TUNINGS = [pytest.param(direct.GPU, id="gpu"), pytest.param(direct.TPU, id="tpu")]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_a_block_equals_the_plain_operations(float64, tuning, pool, trainable):
    x, kernel, weights = normal(0, 5, 6, 6, 3), normal(1, 3, 3, 3, 2), normal(2, 5, *(2 * [3 if pool else 6]), 2)
    affine = [affine_of(2)] if trainable else []

    def fast(x, kernel, *affine):
        z, moments = direct_blocks.conv_bn_relu(x, kernel, pool, EPS, affine[0] if affine else None, tuning)
        return z, *moments

    def plain(x, kernel, *affine):
        return plain_block(x, kernel, affine[0] if affine else None, pool)

    agree(*(jax.jit(outcome(f, weights))(x, kernel, *affine) for f in (fast, plain)))


@pytest.mark.parametrize("features", [2, direct.GPU.limit.channels // CONFIGS + 1])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_blocks_side_by_side_equal_one_by_one(float64, tuning, trainable, features):
    x, kernel = normal(0, CONFIGS, 3, 4, 4, 3), normal(1, CONFIGS, 3, 3, 3, features)
    weights, affine = normal(2, 3, 2, 2, features), [affine_of(features, (CONFIGS,))] if trainable else []

    def fast(x, kernel, *affine):
        z, moments = direct_blocks.conv_bn_relu(x, kernel, True, EPS, affine[0] if affine else None, tuning)
        return z, *moments

    everything = outcome(fast, weights)
    one_by_one = jax.jit(lambda *arguments: jax.lax.map(lambda a: everything(*a), arguments))
    agree(jax.jit(jax.vmap(everything))(x, kernel, *affine), one_by_one(x, kernel, *affine))


@pytest.mark.parametrize(("height", "width"), [(1, 2), (2, 3), (3, 1), (5, 4)])
def test_the_pilot_of_a_convolution_is_that_of_its_result(float64, height, width):
    x, kernels = normal(0, 4, height, width, 6), normal(1, 2, 3, 3, 3, 2)
    got = direct.pilot_of_convolution(packing.Packing(2), x, kernels)
    np.testing.assert_allclose(got, direct.pilot(direct.convolve(packing.Packing(2), x, kernels, 1)), rtol=1e-12)
    shared = direct.shared_images(x, x.dtype)
    kernels = normal(1, 2, 3, 3, 6, 2)
    got = direct.pilot_of_convolution(packing.Packing(2), shared, kernels)
    np.testing.assert_allclose(got, direct.pilot(direct.convolve(packing.Packing(2), shared, kernels, 1)), rtol=1e-12)


def from_output(shared, kernel, eps, *affine):
    """The first block with statistics of its output, as on TPUs."""
    return direct_blocks.conv_bn_relu(shared, kernel, False, eps, affine[0] if affine else None, direct.TPU)


FIRST = [direct_blocks.first_conv_bn_relu, from_output]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("first", FIRST)
def test_the_first_block_equals_the_plain_operations(float64, first, smooth, trainable):
    images = normal(0, 5, 6, 6, 3)
    images = jnp.cumsum(jnp.cumsum(images, 1), 2) / 6 + 2 if smooth else images
    kernel, weights = normal(1, CONFIGS, 3, 3, 3, 2), normal(2, 5, 6, 6, 2)
    affine = [affine_of(2, (CONFIGS,))] if trainable else []

    def fast(kernel, *affine):
        shared = direct.shared_images(images, images.dtype)
        z, moments = first(shared, kernel, EPS, *affine)
        return z, *moments

    def plain(kernel, *affine):
        return plain_block(images, kernel, affine[0] if affine else None, False)

    agree(*(jax.jit(jax.vmap(outcome(f, weights)))(kernel, *affine) for f in (fast, plain)))


@pytest.mark.parametrize("first", FIRST)
def test_images_that_differ_between_configurations(float64, first):
    images, kernel, weights = normal(0, CONFIGS, 5, 4, 4, 3), normal(1, CONFIGS, 3, 3, 3, 2), normal(2, 5, 4, 4, 2)

    def fast(images, kernel):
        def loss(kernel):
            z, _ = first(direct.shared_images(images, images.dtype), kernel, EPS)
            return (z * weights).sum()

        return jax.value_and_grad(loss)(kernel)

    def plain(images, kernel):
        return jax.value_and_grad(lambda kernel: (plain_block(images, kernel, None, False)[0] * weights).sum())(kernel)

    agree(*(jax.jit(jax.vmap(f))(images, kernel) for f in (fast, plain)))


@pytest.mark.parametrize("features", [2, direct.GPU.limit.channels // CONFIGS + 1])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_convolutions_of_any_stride_equal_lax(float64, tuning, size, stride, features):
    x, kernel = normal(0, CONFIGS, 3, 5, 4, 3), normal(1, CONFIGS, size, size, 3, features)
    weights = normal(2, 3, -(-5 // stride), -(-4 // stride), features)

    def fast(x, kernel):
        return (direct_primitives.conv(x, kernel, stride, tuning),)

    def plain(x, kernel):
        pad = ((size // 2,) * 2,) * 2
        dimensions = ("NHWC", "HWIO", "NHWC")
        return (jax.lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=dimensions),)

    agree(*(jax.jit(jax.vmap(outcome(f, weights)))(x, kernel) for f in (fast, plain)))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("tuning", TUNINGS)
def test_normalisation_equals_the_definition(float64, tuning, trainable, relu):
    x, weights, about = normal(0, CONFIGS, 3, 4, 4, 2), normal(2, 3, 4, 4, 2), normal(5, 2)
    affine = [affine_of(2, (CONFIGS,))] if trainable else []

    def fast(x, *affine):
        z, moments = direct_primitives.batch_norm(x, affine[0] if affine else None, EPS, relu, tuning, about)
        return z, *moments

    def plain(x, *affine):
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        z = reference.normalise(x, mean, var, EPS)
        z = z * affine[0].scale + affine[0].bias if affine else z
        return (jax.nn.relu(z) if relu else z), mean, var

    agree(*(jax.jit(jax.vmap(outcome(f, weights)))(x, *affine) for f in (fast, plain)))


def test_statistics_of_the_run_replace_those_of_the_batch(float64):
    x, kernel, affine = normal(0, CONFIGS, 3, 4, 4, 3), normal(1, CONFIGS, 3, 3, 3, 2), affine_of(2, (CONFIGS,))
    statistics = BatchMoments(normal(2, CONFIGS, 2), normal(5, CONFIGS, 2) ** 2)

    def fast(x, kernel, statistics, affine):
        return direct_blocks.conv_bn_relu_inference(x, kernel, statistics, True, EPS, affine)

    def plain(x, kernel, statistics, affine):
        z = reference.normalise(reference.convolve(x, kernel), *statistics, EPS)
        return reference.pool(jax.nn.relu(z * affine.scale + affine.bias))

    agree(*(jax.jit(jax.vmap(f))(x, kernel, statistics, affine) for f in (fast, plain)))


@pytest.mark.parametrize(
    ("tuning", "about"), [(direct.GPU, None), (direct.GPU, 0), (direct.TPU, None), (direct.TPU, 1001)]
)
def test_variance_keeps_its_digits_far_from_zero(tuning, about):
    x = (1000 + normal(0, 16, 8, 8, 2, dtype=jnp.float32)).astype(jnp.float32)
    _, moments = direct_primitives.batch_norm(
        x, None, EPS, False, tuning, None if about is None else jnp.full(2, about, jnp.float32)
    )
    exact = np.asarray(x, np.float64).var((0, 1, 2))
    np.testing.assert_allclose(moments.var, exact, rtol=1e-4)
    assert np.abs(np.square(x).mean((0, 1, 2)) - np.square(x.mean((0, 1, 2))) - exact).max() > 1e-3  # the plain formula


@pytest.mark.parametrize("tuning", TUNINGS)
def test_variance_of_a_convolution_keeps_its_digits_far_from_zero(tuning):
    """Under a kernel that copies its input, in single precision."""
    x = (1000 + normal(0, 16, 9, 9, 2, dtype=jnp.float32)).astype(jnp.float32)
    kernel = jnp.zeros((3, 3, 2, 2)).at[1, 1].set(jnp.eye(2))
    with jax.default_matmul_precision("highest"):
        _, moments = direct_blocks.conv_bn_relu(x, kernel, False, EPS, None, tuning)
    np.testing.assert_allclose(moments.var, np.asarray(x, np.float64).var((0, 1, 2)), rtol=1e-4)


def test_pooling_sends_the_gradient_to_the_first_maximum(float64):
    x = jnp.round(2 * normal(0, 3, 2, 2, 5))  # with ties
    features, pull = jax.vjp(direct_primitives.global_max_pool, x)
    pixels = np.asarray(x).reshape(3, 4, 5)
    assert np.array_equal(features, pixels.max(1).T)
    wanted = np.arange(4)[None, :, None] == pixels.argmax(1)[:, None]
    assert np.array_equal(pull(jnp.ones((5, 3)))[0].reshape(3, 4, 5), wanted)


@pytest.mark.parametrize("configs", [1, 2, 4])
def test_joined_kernels_come_apart(float64, configs):
    kernels = normal(1, configs, 3, 3, 2, 5)
    wide = packing.joined(kernels)
    assert wide.shape == (3, 3, configs * 2, configs * 5)
    assert np.array_equal(packing.taken_apart(wide, configs), kernels)
    assert np.count_nonzero(wide) == kernels.size


def test_activations_stored_in_bfloat16_err_by_its_rounding(float64):
    x, kernel = normal(0, 8, 8, 8, 4), normal(1, 3, 3, 4, 8)
    block = jax.jit(lambda x: direct_blocks.conv_bn_relu(x, kernel, True, EPS)[0])
    exact, stored = block(x), block(x.astype(jnp.bfloat16))
    assert stored.dtype == jnp.bfloat16
    error = jnp.linalg.norm(stored.astype(jnp.float64) - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("affine", [False, True])
def test_the_gradient_of_a_normalisation_stored_in_bfloat16_errs_by_its_rounding(float64, affine):
    scale_and_bias = Affine(jnp.array([2.0, -0.5]), jnp.array([0.3, 0.1])) if affine else None
    x = (3 + normal(0, 8, 4, 4, 2)).astype(jnp.bfloat16)
    weights = normal(1, 8, 4, 4, 2)

    def gradient(x):
        def loss(x):
            z, _ = direct_primitives.batch_norm(x, scale_and_bias, EPS, True)
            return (weights * z.astype(jnp.float64)).sum()

        return jax.jit(jax.grad(loss))(x)

    exact, stored = gradient(x.astype(jnp.float64)), gradient(x)
    assert stored.dtype == jnp.bfloat16
    error = jnp.linalg.norm(stored.astype(jnp.float64) - exact) / jnp.linalg.norm(exact)
    assert 1e-4 < error < 2e-2
