import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.flatten_util import ravel_pytree

from periodic_jax import ConfigError, models
from periodic_jax.models import leaf_labels


def initialised(width=3, depth=3, size=8, channels=1, dtype=jnp.float64, eps=1e-5, seed=0):
    model = models.ConvNet(width=width, depth=depth, num_classes=4, eps=eps, param_dtype=dtype)
    images = jax.random.normal(jax.random.key(seed + 1), (6, size, size, channels), dtype)
    return model, model.init(jax.random.key(seed), images, train=True), images


@pytest.mark.parametrize(
    ("depth", "stages"),
    [
        (1, [(3, False), (6, True)]),
        (2, [(3, False), (6, True), (12, True)]),
        (3, [(3, False), (6, True), (12, True), (24, True)]),
        (5, [(3, False), (3, False), (6, True), (6, False), (12, True), (24, True)]),
        (7, [(3, False), (3, False), (3, False), (6, True), (6, False), (12, True), (12, False), (24, True)]),
    ],
)
def test_stages_of_every_depth(depth, stages):
    assert models.ConvNet(width=3, depth=depth).stages() == stages


@pytest.mark.parametrize(("depth", "size"), [(1, 2), (2, 12), (3, 8), (3, 32), (4, 16)])
def test_logits_equal_the_plain_network(float64, depth, size):
    model, variables, images = initialised(depth=depth, size=size, channels=2)
    got, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(got, reference.logits(variables["params"], images, model.stages(), 1e-5), rtol=1e-10)


def test_prepared_images_give_the_same_logits(float64):
    model, variables, images = initialised()
    plain = model.apply(variables, images, train=False)
    assert np.array_equal(plain, model.apply(variables, model.prepare(images), train=False))


def test_running_statistics_follow_pytorch(float64):
    """running <- 0.9 running + 0.1 batch, with the unbiased variance."""
    model, variables, images = initialised()
    _, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    x = images
    for i, (_, pooled) in enumerate(model.stages()):
        x, mean, var = reference.block(x, variables["params"][f"conv{i}"]["kernel"], pooled, 1e-5)
        stats = changed["batch_stats"][f"conv{i}"]
        count = 6 * 8 * 8 if i < 2 else 6 * (8 >> (i - 1)) ** 2
        np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * count / (count - 1), rtol=1e-9)


def test_initialisation_follows_pytorch():
    """Weights and biases are U(-b, b) with b = 1/√fan_in; the head's weight is rescaled to init_scale."""
    model = models.build("ConvNetSI", width=16)
    params = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True)["params"]
    for i, fan_in in enumerate((27, 144, 288, 576)):
        kernel = np.asarray(params[f"conv{i}"]["kernel"])
        bound = 1 / np.sqrt(fan_in)
        assert np.abs(kernel).max() <= bound
        assert np.abs(kernel).max() > 0.95 * bound
        # Deviations of mean and variance of n uniform numbers: b/√(3n) and b²√(4/45n); four of each.
        n = kernel.size
        assert abs(kernel.mean()) < 4 * bound / np.sqrt(3 * n)
        assert abs(kernel.var() - bound**2 / 3) < 4 * bound**2 * np.sqrt(4 / (45 * n))
    assert float(jnp.linalg.norm(params["head"]["kernel"])) == pytest.approx(10, rel=1e-5)
    assert np.abs(params["head"]["bias"]).max() <= 1 / np.sqrt(128)
    plain = models.build("ConvNetSI", width=16, init_scale=-1).init(
        jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True
    )
    assert np.abs(plain["params"]["head"]["kernel"]).max() <= 1 / np.sqrt(128)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_marked_weights_are_scale_invariant_and_the_others_are_not(float64, depth):
    """f(cx) = f(x) and ⟨∇f(x), x⟩ = 0 on the marked group, jointly and kernel by kernel; neither on the unmarked
    one."""
    model, variables, images = initialised(depth=depth, eps=0.0)
    labels = jnp.arange(6) % 4
    params = variables["params"]
    marks = leaf_labels(params, model.labels())

    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return reference.cross_entropy(logits, labels)

    leaves, structure = jax.tree.flatten(params)
    base, gradient = jax.jit(jax.value_and_grad(loss))(params)
    gradient = jax.tree.leaves(gradient)
    compiled = jax.jit(loss)

    def scaled(chosen, factor):
        moved = [leaf * factor if pick else leaf for leaf, pick in zip(leaves, chosen, strict=True)]
        return float(compiled(jax.tree.unflatten(structure, moved)))

    def slope(chosen):
        x, g = (ravel_pytree([v for v, pick in zip(t, chosen, strict=True) if pick])[0] for t in (leaves, gradient))
        return float(jnp.vdot(g, x) / (jnp.linalg.norm(g) * jnp.linalg.norm(x)))

    alone = [tuple(i == k for i in range(len(marks))) for k, marked in enumerate(marks) if marked]
    for group in (marks, *alone):
        for factor in (1e-3, 0.5, 7.0):
            assert scaled(group, factor) == pytest.approx(float(base), rel=1e-11)
        assert abs(slope(group)) < 1e-11
    others = tuple(not marked for marked in marks)
    assert abs(scaled(others, 0.5) / float(base) - 1) > 1e-3
    assert abs(slope(others)) > 1e-3


def test_labels_must_fit_the_parameters():
    params = {"a": {"kernel": 1.0}, "b": 2.0}
    assert leaf_labels(params, {"a": "scale_invariant", "b": "other"}) == (True, False)
    for labels in (
        {"a": "scale_invariant"},
        {"a": "scale_invariant", "b": "free"},
        {"a": {"bias": "other"}, "b": "other"},
    ):
        with pytest.raises(ConfigError, match=r"^labels: .* is not accepted; expected "):
            leaf_labels(params, labels)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"name": "VGG"}, "--model: VGG"), ({"width": 0}, "--width: 0"), ({"depth": 0}, "--depth: 0")],
)
def test_a_network_that_cannot_be_is_refused(arguments, named):
    with pytest.raises(ConfigError, match=named):
        models.build(**{"name": "ConvNetSI", "width": 2, **arguments})


@pytest.mark.parametrize("size", [4, 12, 30])
def test_images_that_do_not_survive_the_pooling_are_refused(size):
    with pytest.raises(ConfigError, match=f"image size: {size}x{size}"):
        models.build("ConvNetSI", width=2).check_input(size, size)
