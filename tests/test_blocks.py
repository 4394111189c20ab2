import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from periodic_jax.models import blocks, layout
from periodic_jax.models.operations import BatchMoments

EPS = 1e-5


def to_images(x):
    """Activations back to NHWC."""
    groups, channels, height, width, lanes = x.shape
    return x.transpose(0, 4, 2, 3, 1).reshape(groups * lanes, height, width, channels)


def example(height, channels_in, channels_out, batch=12, seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    x = jax.random.normal(keys[0], (batch, height, height, channels_in), jnp.float64)
    kernel = jax.random.normal(keys[1], (3, 3, channels_in, channels_out), jnp.float64)
    return x, kernel, keys[2]


@pytest.mark.parametrize("group_size", [12, 4, 1])
def test_the_layout_keeps_every_image(float64, group_size):
    x, _, _ = example(6, 3, 2)
    laid_out = layout.to_activations(x, group_size)
    assert laid_out.shape == (12 // group_size, 3, 6, 6, group_size)
    assert np.array_equal(to_images(laid_out), x)


def test_a_batch_that_the_group_does_not_divide_is_one_group(float64):
    assert layout.to_activations(example(4, 1, 1)[0], 5).shape == (1, 1, 4, 4, 12)


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("group_size", [12, 4])
@pytest.mark.parametrize(("height", "channels_in", "channels_out"), [(2, 3, 5), (4, 1, 2), (8, 2, 3), (6, 4, 1)])
def test_a_block_and_its_gradients_equal_the_plain_operations(
    float64, pool, group_size, height, channels_in, channels_out
):
    x, kernel, key = example(height, channels_in, channels_out)

    def fast(x, kernel):
        z, moments = blocks.conv_bn_relu(layout.to_activations(x, group_size), kernel, pool, EPS)
        return to_images(z), moments

    out, moments = jax.jit(fast)(x, kernel)
    expected, mean, var = reference.block(x, kernel, pool, EPS)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.var, var, rtol=1e-12)

    weights = jax.random.normal(key, expected.shape, jnp.float64)
    gradients = jax.jit(jax.grad(lambda x, k: (fast(x, k)[0] * weights).sum(), (0, 1)))(x, kernel)
    plain = jax.grad(lambda x, k: (reference.block(x, k, pool, EPS)[0] * weights).sum(), (0, 1))(x, kernel)
    for got, wanted in zip(gradients, plain, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * float(jnp.abs(wanted).max()) + 1e-13)


@pytest.mark.parametrize("group_size", [12, 3])
def test_the_first_block_equals_the_plain_operations(float64, group_size):
    x, kernel, key = example(8, 3, 4)
    weights = jax.random.normal(key, (12, 8, 8, 4), jnp.float64)

    def fast(kernel):
        patches = layout.input_patches(layout.to_activations(x, group_size))
        z, moments = blocks.first_conv_bn_relu(patches, kernel, EPS)
        return to_images(z), moments

    out, moments = jax.jit(fast)(kernel)
    expected, mean, var = reference.block(x, kernel, False, EPS)
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(moments.var, var, rtol=1e-12)
    got = jax.jit(jax.grad(lambda k: (fast(k)[0] * weights).sum()))(kernel)
    wanted = jax.grad(lambda k: (reference.block(x, k, False, EPS)[0] * weights).sum())(kernel)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12 * float(jnp.abs(wanted).max()))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_inference_uses_the_given_statistics(float64, pool, first):
    x, kernel, key = example(4, 2, 3)
    mean, var = jax.random.normal(key, (3,)), jnp.array([0.5, 1.0, 2.0])
    given = layout.to_activations(x, 4)
    given = layout.input_patches(given) if first else given
    z = jax.nn.relu(reference.normalise(reference.convolve(x, kernel), mean, var, EPS))
    expected = reference.pool(z) if pool else z
    got = to_images(blocks.conv_bn_relu_inference(given, kernel, BatchMoments(mean, var), pool, EPS))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [12, 4])
def test_a_stack_of_kernels_equals_one_by_one(float64, group_size):
    x, _, key = example(4, 2, 3)
    kernels = jax.random.normal(key, (3, 3, 3, 2, 3), jnp.float64)

    def loss(kernel):
        return (blocks.conv_bn_relu(layout.to_activations(x, group_size), kernel, True, EPS)[0] ** 3).sum()

    one_by_one = jnp.stack([jax.grad(loss)(kernel) for kernel in kernels])
    stacked = jax.jit(jax.vmap(jax.grad(loss)))(kernels)
    looped = jax.jit(lambda k: jax.lax.map(jax.grad(loss), k))(kernels)
    np.testing.assert_allclose(stacked, one_by_one, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(looped, one_by_one, rtol=1e-11, atol=1e-12)


def test_patches_and_their_transpose_are_adjoint(float64):
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3), jnp.float64)
    columns = jax.random.normal(jax.random.key(1), (18, 72), jnp.float64)
    forward = jnp.vdot(layout.im2col(x), columns)
    backward = jnp.vdot(x, layout.col2im(columns, x.shape))
    np.testing.assert_allclose(forward, backward, rtol=1e-13)


def test_variance_keeps_its_digits_far_from_zero():
    """Activations with a mean of 1000 deviations: E[y^2] - E[y]^2 in float32 would have no digit left."""
    x = 1000 + jax.random.normal(jax.random.key(0), (16, 8, 8, 1), jnp.float32)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.float32).at[1, 1].set(1)
    _, moments = blocks.conv_bn_relu(layout.to_activations(x, 4), kernel, True, EPS)
    exact = np.asarray(x, np.float64).var()
    np.testing.assert_allclose(float(moments.var[0]), exact, rtol=1e-4)


def test_materialise_passes_nan_through():
    nan = jnp.full((3,), jnp.nan)
    assert np.isnan(jax.jit(lambda x: layout.materialise(lambda y: y + 1, x))(nan)).all()
    assert np.array_equal(jax.jit(lambda x: layout.materialise(lambda y: y + 1, x))(jnp.arange(3.0)), [1, 2, 3])
