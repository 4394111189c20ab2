import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import reference, torch_networks
from jax.flatten_util import ravel_pytree

from periodic_jax import ConfigError, models
from periodic_jax.models import leaf_labels


def initialised(width=3, depth=3, size=8, channels=1, dtype=jnp.float64, eps=1e-5, seed=0):
    model = models.ConvNet(width=width, depth=depth, num_classes=4, eps=eps, param_dtype=dtype)
    images = jax.random.normal(jax.random.key(seed + 1), (6, size, size, channels), dtype)
    # Compiled, a network whose logits nobody asks for costs only its parameters.
    return model, jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(seed)), images


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


@pytest.mark.parametrize(("depth", "size"), [(1, 2), (2, 12), (3, 32)])
def test_logits_equal_the_plain_network(float64, depth, size):
    model, variables, images = initialised(depth=depth, size=size, channels=2)
    got, _ = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    np.testing.assert_allclose(got, reference.logits(variables["params"], images, model.stages(), 1e-5), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "depth", "batch", "size"),
    [
        ("ConvNetSI", 3, 6, 8),
        ("ConvNetSIAf", 2, 6, 8),
        ("ConvNet", 1, 16, 16),  # of 16x16 pixels on, a batch is laid out in groups
        pytest.param("ResNet18", 3, 16, 16, marks=pytest.mark.slow),
    ],
)
def test_networks_equal_their_pytorch_counterparts(float64, name, depth, batch, size):
    """Logits, gradients and running statistics in training, and logits at test time, at parameters far from the start:
    scales and biases of either sign, running statistics of some training.
    """
    model = models.build(name, width=2, depth=depth, num_classes=3, param_dtype=jnp.float64)
    images = jax.random.normal(jax.random.key(1), (batch, size, size, 2), jnp.float64)
    nchw, labels = images.transpose(0, 3, 1, 2), jnp.arange(batch) % 3
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape)), shapes)
    variables["batch_stats"] = jax.tree.map(jnp.abs, variables["batch_stats"])
    state = {key: jnp.asarray(array) for key, array in models.to_torch(model, variables).items()}
    state = {key: array for key, array in state.items() if array.dtype == jnp.float64}
    plain = torch_networks.resnet if name.startswith("ResNet") else torch_networks.convnet

    def loss(params):
        logits, mutated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return reference.cross_entropy(logits, labels), mutated

    def plain_loss(state):
        logits, running = plain(state, nchw, True)
        return reference.cross_entropy(logits, labels), running

    (value, mutated), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    quick = {"xla_backend_optimization_level": 0}  # to compile: the plain networks run once
    compiled = jax.jit(jax.value_and_grad(plain_loss, has_aux=True), compiler_options=quick)
    (wanted, running), plain_gradient = compiled(state)
    np.testing.assert_allclose(value, wanted, rtol=1e-11)
    got = models.to_torch(model, {"params": gradient, **mutated})
    overall = max(float(jnp.abs(g).max()) for g in plain_gradient.values())
    for key, array in plain_gradient.items():
        if "running" in key:
            np.testing.assert_allclose(got[key], running[key], rtol=1e-10, atol=1e-11, err_msg=key)
        else:
            np.testing.assert_allclose(got[key], array, rtol=1e-9, atol=1e-11 * overall, err_msg=key)

    at_test_time = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    wanted = jax.jit(lambda s: plain(s, nchw, False)[0], compiler_options=quick)(state)
    np.testing.assert_allclose(at_test_time, wanted, rtol=1e-10)


def test_prepared_images_give_the_same_logits(float64):
    model, variables, images = initialised()
    apply = jax.jit(lambda variables, images: model.apply(variables, images, train=False))
    np.testing.assert_allclose(apply(variables, images), apply(variables, model.prepare(images)), rtol=1e-12)


def test_initialisation_follows_pytorch():
    """Weights and biases are U(-b, b) with b = 1/√fan_in; the head's weight is rescaled to init_scale."""
    model = models.build("ConvNetSI", width=16)

    def initial(model):
        return jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True))()["params"]

    params = jax.jit(initial, static_argnums=0)(model)
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
    plain = jax.jit(initial, static_argnums=0)(models.build("ResNet18", width=4, init_scale=-1))
    bound = 1 / np.sqrt(32)
    assert 0.9 * bound < np.abs(plain["head"]["kernel"]).max() <= bound
    assert np.abs(plain["layer4_0"]["shortcut_conv"]["kernel"]).max() <= 1 / np.sqrt(16)
    assert (plain["layer4_0"]["bn1"]["scale"] == 1).all()
    assert (plain["layer4_0"]["bn1"]["bias"] == 0).all()
    bias = jax.jit(initial, static_argnums=0)(models.build("ConvNet", width=16, depth=1))["conv1"]["conv_bias"]
    assert 0.08 * 0.9 < np.abs(bias).max() <= 1 / np.sqrt(144)


@pytest.mark.parametrize("depth", [1, 5])
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


def verdicts(name, depth=1):
    model = models.build(name, width=2, depth=depth, num_classes=3).clone(eps=0.0)
    images = jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=True))()
    marks = leaf_labels(variables["params"], model.labels())
    found = models.verify_labels(model, variables, images, model.labels())
    return {path: (mark, word) for (path, word), mark in zip(found.items(), marks, strict=True)}


@pytest.mark.parametrize("name", ["ConvNetSI", "ConvNetSIAf", "ConvNet"])
def test_kernels_before_a_normalisation_are_invariant_one_by_one(name):
    """The standard network's too, though it marks none; its convolutions' biases do not count at all in training."""
    for path, (mark, word) in verdicts(name).items():
        assert word == ("individually" if path.endswith(("conv0/kernel", "conv1/kernel", "conv_bias")) else "not"), path
        assert mark == (path.endswith("kernel") and path != "head/kernel" and name != "ConvNet"), path


@pytest.mark.parametrize(
    "name", ["ResNet18SI", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ResNet18SIAf", "ResNet18"))]
)
def test_kernels_that_add_to_the_residual_stream_are_invariant_together(name):
    """Only the first convolution of a block has a normalisation to itself. Without the last normalisation, the head
    reads the stream as it is. A bias before a 1x1 convolution is the same everywhere, and is subtracted again.
    """
    found = verdicts(name, depth=3)
    for path, (mark, word) in found.items():
        *modules, leaf = path.split("/")
        if leaf == "kernel" and modules[-1] == "conv1" and len(modules) == 2:
            assert word == "individually", path
        elif leaf == "kernel" and modules[0] != "head":
            assert word == ("not" if name == "ResNet18" else "jointly"), path
        else:
            assert word == ("individually" if path.endswith("shortcut_bn/bias") else "not"), path
        assert mark == (leaf == "kernel" and modules[0] != "head" and name != "ResNet18"), path
    assert len(found) == {"ResNet18SI": 21, "ResNet18SIAf": 61, "ResNet18": 54}[name]


class Twins(nn.Module):
    """A user's network: two linear layers that add up before they are divided by their norm, and a head."""

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(images.shape[0], -1)
        x = nn.Dense(4, use_bias=False, name="one")(x) + nn.Dense(4, use_bias=False, name="two")(x**2)
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return nn.Dense(3, name="head")(x)


def test_labels_of_a_users_network_are_checked():
    model, images = Twins(), jax.random.normal(jax.random.key(1), (5, 2, 2, 1))
    variables = jax.jit(lambda: model.init(jax.random.key(0), images, train=True))()
    both = {"one": "scale_invariant", "two": "scale_invariant", "head": "other"}
    right = {"head/bias": "not", "head/kernel": "not", "one/kernel": "jointly", "two/kernel": "jointly"}
    assert models.verify_labels(model, variables, images, both) == right
    apply = functools.partial(model.apply, train=False)
    assert models.verify_labels(apply, variables, images, both) == right
    wrong = {**both, "two": "other"}
    assert set(models.verify_labels(model, variables, images, wrong).values()) == {"not"}
    assert set(models.verify_labels(model, variables, images, wrong, tolerance=100.0).values()) == {"individually"}
    with pytest.raises(ConfigError, match=r"^labels: "):
        models.verify_labels(model, variables, images, {"one": "scale_invariant"})


def test_networks_without_scale_invariant_weights_say_so():
    model = models.build("ConvNet", width=2, depth=2)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), train=True))["params"]
    assert not any(leaf_labels(params, model.labels()))


def test_labels_must_fit_the_parameters():
    params = {"a": {"kernel": 1.0}, "b": 2.0}
    assert leaf_labels(params, {"a": "scale_invariant", "b": "other"}) == (True, False)
    for labels in (
        {"a": "scale_invariant"},
        {"a": "scale_invariant", "b": "free"},
        {"a": {"bias": "other"}, "b": "other"},
    ):
        with pytest.raises(ConfigError, match=r"^labels(/a)?: [^\n]* is not accepted; expected [^\n]*$"):
            leaf_labels(params, labels)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"name": "VGG"}, "--model: VGG"),
        ({"width": 0}, "--width: 0"),
        ({"depth": 0}, "--depth: 0"),
        ({"name": "ResNet18", "depth": 4}, "--depth: ResNet18 always has 18 layers; leave it out"),
    ],
)
def test_a_network_that_cannot_be_is_refused(arguments, named):
    with pytest.raises(ConfigError, match=named):
        models.build(**{"name": "ConvNetSI", "width": 2, **arguments})


@pytest.mark.parametrize("size", [4, 12, 30])
def test_images_that_do_not_survive_the_pooling_are_refused(size):
    with pytest.raises(ConfigError, match=f"image size: {size}x{size}"):
        models.build("ConvNetSI", width=2).check_input(size, size)


def test_residual_networks_take_any_image_of_eight_pixels():
    model = models.build("ResNet18SI", width=1)
    for size in ((8, 8), (28, 28), (9, 13)):
        model.check_input(*size)
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros((3, 9, 13, 2)), train=True)[0])
    assert out.shape == (3, 10)
    with pytest.raises(ConfigError, match="image size: 7x32"):
        model.check_input(7, 32)
