import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference

from periodic_jax.ops import fused, im2col, layout, winograd
from periodic_jax.ops.patches import input_patches
from periodic_jax.ops.primitives import Affine, BatchMoments

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


def test_a_group_is_the_divisor_of_the_batch_nearest_to_what_is_wanted(float64):
    assert layout.to_activations(example(4, 1, 1)[0], 5).shape == (2, 1, 4, 4, 6)


def outcome(function, weights):
    """Output, batch moments and gradients of a block, of its weighted sum of outputs, as one compiled function."""

    def loss(*arguments):
        z, mean, var = function(*arguments)
        return (z * weights).sum(), (z, mean, var)

    return jax.jit(lambda *arguments: jax.value_and_grad(loss, tuple(range(len(arguments))), has_aux=True)(*arguments))


def agree(got, wanted):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1.0, float(jnp.abs(b).max())))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("group_size", [12, 4])
@pytest.mark.parametrize(("height", "channels_in", "channels_out"), [(2, 3, 5), (6, 4, 1), (4, 16, 2)])
def test_a_block_and_its_gradients_equal_the_plain_operations(
    float64, pool, group_size, height, channels_in, channels_out
):
    x, kernel, key = example(height, channels_in, channels_out)

    def fast(x, kernel):
        z, moments = fused.conv_bn_relu(layout.to_activations(x, group_size), kernel, pool, EPS)
        return to_images(z), *moments

    size = height // 2 if pool else height
    weights = jax.random.normal(key, (12, size, size, channels_out), jnp.float64)

    def plain(x, kernel):
        return reference.block(x, kernel, pool, EPS)

    agree(outcome(fast, weights)(x, kernel), outcome(plain, weights)(x, kernel))


@pytest.mark.parametrize("group_size", [12, 3])
def test_the_first_block_equals_the_plain_operations(float64, group_size):
    x, kernel, key = example(8, 3, 4)
    weights = jax.random.normal(key, (12, 8, 8, 4), jnp.float64)

    def fast(kernel):
        patches = input_patches(layout.to_activations(x, group_size))
        z, moments = fused.first_conv_bn_relu(patches, kernel, EPS)
        return to_images(z), *moments

    agree(outcome(fast, weights)(kernel), outcome(lambda k: reference.block(x, k, False, EPS), weights)(kernel))


@pytest.mark.parametrize(("kind", "group_size"), [("first", 4), ("plain", 4), ("pooled", 4), ("pooled", 12)])
def test_scale_and_bias_of_either_sign_equal_the_plain_operations(float64, kind, group_size):
    """For a stack of networks; a negative scale makes the smallest number of a window the largest."""
    x, _, key = example(4, 2, 4)
    kernels = jax.random.normal(key, (2, 3, 3, 2, 4), jnp.float64)
    affine = Affine(jnp.array([1.5, -0.7, 0.2, -2.0]), jnp.array([0.3, 0.4, -0.1, 0.0]))
    size = 2 if kind == "pooled" else 4
    weights = jax.random.normal(jax.random.key(9), (12, size, size, 4), jnp.float64)

    def fast(kernel, affine):
        laid_out = layout.to_activations(x, group_size)
        if kind == "first":
            z, moments = fused.first_conv_bn_relu(input_patches(laid_out), kernel, EPS, affine)
        else:
            z, moments = fused.conv_bn_relu(laid_out, kernel, kind == "pooled", EPS, affine)
        return to_images(z), *moments

    def plain(kernel, affine):
        y = reference.convolve(x, kernel)
        mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
        z = jax.nn.relu(affine.scale * reference.normalise(y, mean, var, EPS) + affine.bias)
        return (reference.pool(z) if kind == "pooled" else z), mean, var

    got = jax.vmap(outcome(fast, weights), (0, None))(kernels, affine)
    wanted = [outcome(plain, weights)(kernel, affine) for kernel in kernels]
    agree(got, jax.tree.map(lambda *leaves: jnp.stack(leaves), *wanted))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_inference_uses_the_given_statistics(float64, pool, first, trainable):
    x, kernel, key = example(4, 2, 3)
    mean, var = jax.random.normal(key, (3,)), jnp.array([0.5, 1.0, 2.0])
    affine = Affine(jnp.array([1.0, -2.0, 0.5]), jnp.array([0.5, 1.0, -1.0])) if trainable else None
    given = layout.to_activations(x, 4)
    given = input_patches(given) if first else given
    z = reference.normalise(reference.convolve(x, kernel), mean, var, EPS)
    z = jax.nn.relu(z if affine is None else affine.scale * z + affine.bias)
    expected = reference.pool(z) if pool else z
    statistics = BatchMoments(mean, var)
    got = to_images(jax.jit(lambda x: fused.conv_bn_relu_inference(x, kernel, statistics, pool, EPS, affine))(given))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("group_size", [12, 4])
def test_a_stack_of_kernels_equals_one_by_one(float64, group_size):
    x, _, key = example(4, 2, 3)
    kernels = jax.random.normal(key, (3, 3, 3, 2, 3), jnp.float64)

    def loss(kernel):
        return (fused.conv_bn_relu(layout.to_activations(x, group_size), kernel, True, EPS)[0] ** 3).sum()

    gradient = jax.jit(jax.grad(loss))
    one_by_one = jnp.stack([gradient(kernel) for kernel in kernels])
    stacked = jax.jit(jax.vmap(jax.grad(loss)))(kernels)
    looped = jax.jit(lambda k: jax.lax.map(jax.grad(loss), k))(kernels)
    np.testing.assert_allclose(stacked, one_by_one, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(looped, one_by_one, rtol=1e-11, atol=1e-12)


def test_ties_go_to_the_first_maximum(float64):
    """Columns of equal pixels: the gradient of a 1x1 kernel sees where it went."""
    x = jnp.repeat(jax.random.normal(jax.random.key(0), (4, 2, 1, 1), jnp.float64), 2, axis=2)
    x = x + jnp.zeros((4, 2, 2, 1))
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)

    def out(x):
        return to_images(fused.conv_bn_relu(layout.to_activations(x), kernel, True, EPS)[0])

    def first_of_window(x):
        """The same, with the pool written as a choice of the first maximum."""
        z = reference.block(x, kernel, False, EPS)[0].reshape(4, 4, 1)
        return jnp.take_along_axis(z, z.argmax(1, keepdims=True), 1)[:, :, None]

    weights = jnp.arange(1.0, 5).reshape(4, 1, 1, 1)
    got, wanted = (jax.jit(jax.grad(lambda x, f=f: (f(x) * weights).sum()))(x) for f in (out, first_of_window))
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_patches_and_their_transpose_are_adjoint(float64):
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3), jnp.float64)
    columns = jax.random.normal(jax.random.key(1), (18, 72), jnp.float64)
    forward = jnp.vdot(im2col.im2col(x), columns)
    backward = jnp.vdot(x, im2col.col2im(columns, x.shape))
    np.testing.assert_allclose(forward, backward, rtol=1e-13)


@pytest.mark.parametrize(
    ("form", "height"),
    [(im2col.Patches, 2), (im2col.Patches, 5), (im2col.WholeMap, 2), (winograd.Winograd, 2),
     (winograd.Winograd, 6)],
)  # fmt: skip
def test_each_form_of_a_convolution_is_the_plain_one_and_its_maps_are_adjoint(float64, form, height):
    x, kernel, key = example(height, 3, 5)
    laid_out = layout.to_activations(x)[0]
    form = form(laid_out.shape)
    matrix, columns = form.matrix(kernel), form.columns(laid_out)
    product = matrix @ columns
    y = form.output(product)
    np.testing.assert_allclose(to_images(y[None]), reference.convolve(x, kernel), atol=1e-12)
    a, b, c, d = (
        jax.random.normal(k, m.shape, jnp.float64)
        for k, m in zip(jax.random.split(key, 4), (matrix.mT, columns, product, y), strict=True)
    )
    np.testing.assert_allclose(jnp.vdot(matrix.mT, a), jnp.vdot(kernel, form.kernel(a)), rtol=1e-11)
    np.testing.assert_allclose(jnp.vdot(columns, b), jnp.vdot(laid_out, form.image(b)), rtol=1e-11)
    np.testing.assert_allclose(jnp.vdot(form.output(c), d), jnp.vdot(c, form.rows(d)), rtol=1e-11)


def test_the_form_follows_the_size_of_the_map_and_its_channels():
    forms = {(3, 32, 32): "Patches", (16, 32, 32): "Winograd", (16, 5, 5): "Patches", (16, 2, 2): "WholeMap"}
    assert {shape: type(im2col.form_of((*shape, 4))).__name__ for shape in forms} == forms


def test_variance_keeps_its_digits_far_from_zero():
    """Activations with a mean of 1000 deviations: E[y^2] - E[y]^2 in float32 would have no digit left."""
    x = 1000 + jax.random.normal(jax.random.key(0), (16, 8, 8, 1), jnp.float32)
    kernel = jnp.zeros((3, 3, 1, 1), jnp.float32).at[1, 1].set(1)
    _, moments = fused.conv_bn_relu(layout.to_activations(x, 4), kernel, True, EPS)
    exact = np.asarray(x, np.float64).var()
    np.testing.assert_allclose(float(moments.var[0]), exact, rtol=1e-4)


def test_materialise_passes_nan_through():
    nan = jnp.full((3,), jnp.nan)
    assert np.isnan(jax.jit(lambda x: layout.materialise(lambda y: y + 1, x))(nan)).all()
    assert np.array_equal(jax.jit(lambda x: layout.materialise(lambda y: y + 1, x))(jnp.arange(3.0)), [1, 2, 3])
