"""Against dense matrices of a plain network, and explicit loops over the mini-batches."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference
from helpers.dense_curvature import matrices, network
from jax.flatten_util import ravel_pytree

from periodic_jax import Batch, ConfigError, landscape
from periodic_jax.landscape import Surface, fixed_batches, hutchinson, lanczos
from periodic_jax.landscape.sharpness import largest_eigenvalue, largest_ritz_value, sphere_sharpness


def of_images(scores, jacobian, labels):
    """Loss and gradient of each image."""
    odds = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    right = np.eye(3)[labels]
    return -np.log((odds * right).sum(1)), np.einsum("ic,icw->iw", odds - right, jacobian)


def invariant(states):
    """How many weights are scale-invariant; they come first, the head last."""
    return sum(leaf[0].size for name, leaf in states.params.items() if name != "head" for leaf in [leaf["kernel"]])


@pytest.mark.parametrize("weights", ["invariant", "all"])
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_products_and_eigenvalues_equal_those_of_the_dense_matrix(states, dense, kind, weights):
    """Of the plain network's whole Hessian, to 1e-8 in float64; a configuration that is not finite gives NaN."""
    surface = Surface(states, dense[0], weights)
    size = surface.weights.shape[1]
    assert size == (
        invariant(states) if weights == "invariant" else sum(leaf[0].size for leaf in jax.tree.leaves(states.params))
    )
    vectors = jax.random.normal(jax.random.key(3), surface.weights.shape)
    got = surface.product(kind)(vectors)
    found = lanczos(surface.product(kind), vectors, jax.random.key(4), count=6, most=size, tolerance=1e-12)
    for k, whole in enumerate(matrices(dense)[kind]):
        matrix = whole[:size, :size]
        scale = np.abs(matrix).max()
        np.testing.assert_allclose(got[k], matrix @ np.asarray(vectors[k]), rtol=0, atol=1e-10 * scale * size**0.5)
        expected = np.linalg.eigvalsh(matrix)
        np.testing.assert_allclose(found.values[k], expected[::-1][:6], rtol=0, atol=1e-8 * np.abs(expected).max())
        converged = max(found.lowest_residual[k], 1e-8 * np.abs(expected).max())
        np.testing.assert_allclose(found.lowest[k], expected[0], rtol=0, atol=converged)
    assert np.isnan(found.values[2]).all()
    assert np.isnan(found.lowest[2])


def test_curvature_on_the_unit_sphere_is_the_second_derivative_along_great_circles(states, dense):
    """And equals ρ² P H P of the dense Hessian."""
    surface = Surface(states, dense[0])
    size = surface.weights.shape[1]
    product = surface.product("hessian", sphere=True)
    found = lanczos(product, jnp.ones_like(surface.weights), jax.random.key(0), count=5, most=size, tolerance=1e-12)
    for k, whole in enumerate(matrices(dense)["hessian"]):
        x = np.asarray(surface.weights[k])
        projection = np.eye(size) - np.outer(x, x) / (x @ x)
        expected = np.linalg.eigvalsh((x @ x) * projection @ whole[:size, :size] @ projection)
        np.testing.assert_allclose(found.values[k], expected[::-1][:5], rtol=0, atol=1e-8 * np.abs(expected).max())

    u = np.asarray(surface.weights) / np.linalg.norm(surface.weights, axis=1, keepdims=True)
    t = np.random.default_rng(1).normal(size=u.shape)
    t -= u * (u * t).sum(1, keepdims=True)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    second = (t * np.asarray(product(jnp.asarray(t)))).sum(1)[:2]
    images, labels = jnp.asarray(dense[0].images), jnp.asarray(dense[0].labels)
    model = network()

    @jax.jit
    def loss(vector, params):
        kernels = {n: {"kernel": params[n]["kernel"]} for n in params if n != "head"}
        moved = {**ravel_pytree(kernels)[1](vector), "head": params["head"]}
        each = [
            reference.cross_entropy(
                reference.logits(moved, (images[b] / 255 - dense[0].mean) / dense[0].std, model.stages(), model.eps),
                labels[b],
            )
            for b in range(len(labels))
        ]
        return sum(each) / len(each)

    angle = 1e-5
    for k in range(2):
        # At the network's own norm, not on the unit sphere, where ε of the normalisation would weigh more.
        params, rho = jax.tree.map(lambda leaf, k=k: leaf[k], states.params), np.linalg.norm(surface.weights[k])
        ahead, here, behind = (
            float(loss(rho * (np.cos(a) * u[k] + np.sin(a) * t[k]), params)) for a in (angle, 0, -angle)
        )
        assert (ahead - 2 * here + behind) / angle**2 == pytest.approx(
            second[k], rel=1e-3, abs=1e-3 * np.abs(second).max()
        )


def test_gradient_statistics_equal_loops_over_the_mini_batches(states, dense, corrupted):
    batches, found = dense
    for part, mask in (("all", np.ones(40, bool)), ("corrupted", corrupted.corrupted), ("clean", ~corrupted.corrupted)):
        part_of = fixed_batches(corrupted, 12, part=part, dtype=np.float64)
        assert np.array_equal(part_of.images, batches.images)
        noise = Surface(states, part_of).gradient_noise()
        order = np.random.default_rng(0).permutation(40)[:36].reshape(3, 12)
        size = invariant(states)
        for k in range(2):
            counted = [mask[rows] for rows in order]
            each = [of_images(*one[:2], labels) for one, labels in zip(found[k], batches.labels, strict=True)]
            gradients = np.stack([g[c, :size].mean(0) for (_, g), c in zip(each, counted, strict=True)])
            share = np.array([c.sum() for c in counted]) / sum(c.sum() for c in counted)
            mean = share @ gradients
            variance = (share[:, None] * (gradients - mean) ** 2).sum(0) / (1 - (share**2).sum())
            losses = np.concatenate([loss[c] for (loss, _), c in zip(each, counted, strict=True)])
            got, n = noise[k], sum(c.sum() for c in counted) / 3
            assert got.loss == pytest.approx(losses.mean(), rel=1e-10)
            assert got.gradient_norm == pytest.approx(np.linalg.norm(mean), rel=1e-10)
            assert got.gradient_std_norm == pytest.approx(np.linalg.norm(np.sqrt(variance)), rel=1e-10)
            assert got.mean_gradient_norm == pytest.approx(share @ np.linalg.norm(gradients, axis=1), rel=1e-10)
            signal = mean @ mean - variance.sum() * (share**2).sum()
            if signal > 0:
                assert got.noise_scale == pytest.approx(n * variance.sum() / signal, rel=1e-8)
            else:
                assert np.isnan(got.noise_scale)
                assert got.reason == "gradient not above its noise"
        assert noise[2].reason == "not finite"
        assert np.isnan(noise[2][:-1]).all()


def test_a_zero_gradient_and_a_single_mini_batch_have_no_noise_scale(states, tiny):
    dead = states.replace(params=jax.tree.map(jnp.zeros_like, states.params))
    still = Surface(dead, fixed_batches(tiny, 12, dtype=np.float64))
    noise = still.gradient_noise()[0]
    assert (noise.gradient_norm, noise.gradient_std_norm, noise.reason) == (0, 0, "zero gradient")
    assert np.isnan(noise.noise_scale)
    flat = lanczos(still.product("hessian"), jnp.ones_like(still.weights), jax.random.key(0), count=3, most=5)
    assert flat.values[0].tolist() == [0, 0, 0]
    one = Surface(states, fixed_batches(tiny, 12, images=12, dtype=np.float64)).gradient_noise()[0]
    assert one.reason == "one mini-batch"
    assert np.isnan(one.gradient_std_norm)


def example(sizes, seed=0):
    """Random symmetric matrices with repeated eigenvalues."""
    rng = np.random.default_rng(seed)
    made = []
    for values in sizes:
        q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
        made.append(q @ np.diag(values) @ q.T)
    return np.stack(made)


def test_lanczos_finds_repeated_and_negative_eigenvalues_and_its_residuals_are_true(float64):
    """Whatever vector it starts from, an eigenvector too; residuals against those of the dense eigenvectors' span."""
    values = [[5.0, 5, 5, 1, 0, 0, -7, -2], [1e6, 1, 1, 1e-3, 0, -1, -1, -1e3]]
    many = jnp.asarray(example(values))
    product = partial(jnp.einsum, "mij,mj->mi", many)
    start = jnp.stack([jnp.linalg.eigh(many[0])[1][:, 3], jnp.ones(8)])
    found = lanczos(product, start, jax.random.key(1), count=8, most=20, tolerance=0)
    for k in range(2):
        scale = np.abs(values[k]).max()
        np.testing.assert_allclose(found.values[k], np.sort(values[k])[::-1], rtol=0, atol=1e-10 * scale)
    part = lanczos(product, jnp.ones((2, 8)), jax.random.key(1), count=2, most=4, tolerance=0)
    assert part.iterations == 4
    for k in range(2):  # an eigenvalue of the matrix lies within each residual
        off = np.abs(part.values[k][:, None] - np.array(values[k])).min(1)
        assert (off <= part.residuals[k] * (1 + 1e-9) + 1e-9).all()


def test_lanczos_stops_when_what_is_wanted_has_converged():
    values = np.concatenate([[100.0, 50.0], np.linspace(0, 1, 198)])
    found = lanczos(lambda v: v * jnp.asarray(values, jnp.float32), jnp.ones((1, 200)), jax.random.key(0), count=2)
    assert found.iterations < 20
    np.testing.assert_allclose(found.values[0], [100, 50], rtol=1e-5)
    assert (found.residuals <= 0.1).all()


def test_hutchinson_is_the_mean_of_the_quadratic_forms_and_its_error_their_spread(float64):
    many = jnp.asarray(example([[3.0, -1, 2, 0.5], [1.0, 1, 1, 1]]))
    key, probes = jax.random.key(5), 400
    found = hutchinson(partial(jnp.einsum, "mij,mj->mi", many), jnp.zeros((2, 4)), key, probes=probes)
    forms = []
    for i in range(probes):
        z = np.asarray(jax.random.rademacher(jax.random.fold_in(key, i), (4,), jnp.float64))
        forms.append([z @ np.asarray(matrix) @ z for matrix in many])
    np.testing.assert_allclose(found.value, np.mean(forms, 0), rtol=1e-12)
    np.testing.assert_allclose(found.error, np.std(forms, 0, ddof=1) / 20, rtol=1e-9, atol=1e-12)
    assert abs(found.value[0] - 4.5) < 4 * found.error[0]
    assert found.value[1] == pytest.approx(4)
    assert np.isnan(hutchinson(lambda v: v, jnp.zeros((1, 4)), key, probes=1).error[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"batch_size": 41}, "batch size: 41"),
        ({"batch_size": 12, "part": "clean"}, "part: clean"),
        ({"batch_size": 12, "part": "some"}, "part: some"),
    ],
)
def test_unusable_batches_are_refused(tiny, options, named):
    with pytest.raises(ConfigError, match=named):
        fixed_batches(tiny, **options)


def test_weights_that_are_not_there_are_refused(states, tiny):
    bare = states.replace(task=dataclasses.replace(states.task, labels=(False,) * len(states.task.labels)))
    for weights in ("invariant", "some"):
        with pytest.raises(ConfigError, match="--weights"):
            Surface(bare, fixed_batches(tiny, 12), weights)
    assert landscape.fixed_batches(tiny, 12, images=None).labels.shape == (3, 12)
    assert landscape.fixed_batches(tiny, 12, images=5).labels.shape == (1, 12)


def test_tracked_sharpness_is_the_curvature_along_the_gradient(states, dense):
    """Of the dense matrix, for mini-batches alone and their mean; NaN for a configuration that is not finite, and where
    the gradient is zero."""
    batches, found = dense
    size = invariant(states)
    images = jnp.asarray((batches.images / 255 - batches.mean) / batches.std)
    labels = jnp.asarray(batches.labels)
    for chosen in (slice(0, 1), slice(0, 3)):
        measure = jax.jit(jax.vmap(sphere_sharpness, (0, None)))
        got = measure(states, Batch(images[chosen], labels[chosen]))
        for k in range(2):
            x = np.concatenate([np.ravel(states.params[n]["kernel"][k]) for n in ("conv0", "conv1")])
            hessian = np.mean([one[2] for one in found[k][chosen]], 0)[:size, :size]
            rows = zip(found[k][chosen], batches.labels[chosen], strict=True)
            g = np.mean([of_images(*one[:2], row)[1].mean(0)[:size] for one, row in rows], 0)
            g = g - x * (x @ g) / (x @ x)
            assert got[k] == pytest.approx((x @ x) * (g @ hessian @ g) / (g @ g), rel=1e-8)
        assert np.isnan(got[2])
    dead = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-30), states.params)  # no gradient passes
    dead["head"] = jax.tree.map(jnp.zeros_like, dead["head"])
    assert np.isnan(measure(states.replace(params=dead), Batch(images, labels))).all()


def test_the_tracked_eigenvalue_is_that_of_the_dense_matrix(states, dense):
    """Of the mean over the mini-batches, at x/ρ and on the tangents; never above it, and NaN where the weights are
    not finite.
    """
    batches, found = dense
    size = invariant(states)
    images = jnp.asarray((batches.images / 255 - batches.mean) / batches.std)
    fixed = Batch(images, jnp.asarray(batches.labels))
    few, many = (
        jax.jit(jax.vmap(partial(largest_eigenvalue, iterations=n), (0, None)))(states, fixed) for n in (3, 40)
    )
    for k in range(2):
        x = np.concatenate([np.ravel(states.params[n]["kernel"][k]) for n in ("conv0", "conv1")])
        tangents = np.eye(size) - np.outer(x, x) / (x @ x)
        hessian = np.mean([one[2] for one in found[k]], 0)[:size, :size]
        largest = np.linalg.eigvalsh((x @ x) * tangents @ hessian @ tangents)[-1]
        assert many[k] == pytest.approx(largest, rel=1e-8)
        assert few[k] <= largest * (1 + 1e-9)
    assert np.isnan([few[2], many[2]]).all()


def test_a_negative_eigenvalue_is_not_the_largest_however_large():
    """Also where the start is an eigenvector, and where there are more products than dimensions."""
    matrix = jnp.diag(jnp.array([3.0, -5.0, 2.0, 1.0]))

    def of(start, iterations):
        return float(largest_ritz_value(lambda v: matrix @ v, jnp.array(start), iterations))

    assert of([1.0, 1.0, 1.0, 1.0], 4) == pytest.approx(3, rel=1e-5)
    assert of([1.0, 1.0, 1.0, 1.0], 9) == pytest.approx(3, rel=1e-5)
    assert of([0.0, 0.0, 1.0, 0.0], 3) == pytest.approx(2, rel=1e-5)
