"""MLPSI and ViTSI against NumPy, and their labels against what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import Batch, ConfigError, HParams, create_train_state, models, train_step

EPS = 1e-5


def example(name, **options):
    model = models.build(name, param_dtype=jnp.float64, num_classes=3, **options)
    images = jax.random.normal(jax.random.key(1), (6, 8, 8, 2), jnp.float64)
    return model, model.init(jax.random.key(0), images, train=True), images


def relu(x):
    return np.maximum(x, 0)


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mlp(params, images, depth):
    x = np.asarray(images).reshape(len(images), -1)
    for i in range(depth):
        x = x @ params[f"dense{i}"]["kernel"]
        x = relu((x - x.mean(0)) / np.sqrt(x.var(0) + EPS))
    return x @ params["head"]["kernel"] + params["head"]["bias"]


def vit_of_one(params, image, depth, heads):
    """Token by token and head by head, as a transformer is explained."""
    rows = np.split(np.asarray(image), 4)
    patches = [patch.ravel() for row in rows for patch in np.split(row, 4, axis=1)]
    width = params["embed"]["kernel"].shape[1]
    x = rms(np.stack(patches) @ params["embed"]["kernel"])
    for token in range(16):
        for channel in range(width):
            angle = token / 10 ** ((channel - channel % 2) / width)
            x[token, channel] += np.cos(angle) if channel % 2 else np.sin(angle)
    size = width // heads
    for i in range(depth):
        block = params[f"block{i}"]
        weight = {name: leaf["kernel"] for name, leaf in block["attention"].items()}
        h, mixed = rms(x), np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            q, k = rms((h @ weight["query"])[:, part]), rms((h @ weight["key"])[:, part])
            mixed[:, part] = softmax(q @ k.T / np.sqrt(size)) @ (h @ weight["value"])[:, part]
        x = x + rms(mixed @ weight["out"])
        x = x + rms(relu(rms(x) @ block["up"]["kernel"]) @ block["down"]["kernel"])
    return rms(x).mean(0) @ params["head"]["kernel"] + params["head"]["bias"]


def test_the_mlp_is_layer_after_layer(float64):
    model, variables, images = example("MLPSI", width=5, depth=2)
    logits, mutated = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    np.testing.assert_allclose(logits, mlp(variables["params"], images, 2), rtol=1e-9, atol=1e-12)
    first = np.asarray(images).reshape(6, -1) @ variables["params"]["dense0"]["kernel"]
    statistics = mutated["batch_stats"]["norm0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * first.mean(0), rtol=1e-9)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * first.var(0, ddof=1), rtol=1e-9)


@pytest.mark.parametrize(("width", "heads"), [(6, 2), (3, 1)])
def test_the_transformer_is_what_it_says(float64, width, heads):
    model, variables, images = example("ViTSI", width=width, depth=1)
    assert set(variables) == {"params"}
    logits = jax.jit(lambda v: model.apply(v, images, train=True))(variables)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = [vit_of_one(params, image, 1, heads) for image in images]
    np.testing.assert_allclose(logits, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["MLPSI", "ViTSI"])
def test_labels_are_what_is_measured_and_the_step_is_on_a_sphere(float64, name):
    model, variables, images = example(name, width=6, depth=1)
    marks = models.leaf_labels(variables["params"], model.labels())
    exact = model.clone(eps=1e-30)
    measured = models.measure_labels(exact, images, tolerance=1e-6)
    assert measured.labels == marks
    assert set(measured.verdicts.values()) == {"individually", "not"}
    state = create_train_state(exact, model.labels(), jax.random.key(0), images)
    _, metrics = jax.jit(train_step)(state, HParams(lr=0.1), Batch(images, jnp.arange(6) % 3))
    assert float(metrics["radial_leak"]) < 1e-10


def test_what_they_do_not_have_is_refused():
    with pytest.raises(ConfigError, match="--storage: bf16 is not accepted; expected float32 for MLPSI"):
        models.build("MLPSI", width=4, storage="bf16")
    with pytest.raises(ConfigError, match="image size: 8x10 is not accepted; expected sides divisible by 4"):
        models.build("ViTSI", width=4).check_input(8, 10)
    with pytest.raises(ConfigError, match="model: ViT is not accepted; expected a network of the reference"):
        models.from_torch(models.build("ViTSI", width=4), {})
