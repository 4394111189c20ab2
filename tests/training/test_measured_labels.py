import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import Batch, ConfigError, HParams, create_train_state, models, train_step
from periodic_jax.models.invariance import largest_vanishing_sum

IMAGES = jax.random.normal(jax.random.key(1), (8, 6))


def functions(shapes, forward):
    """A network of named matrices."""

    def init(key, x):
        keys = jax.random.split(key, len(shapes))
        return {"params": {n: jax.random.normal(k, s) for (n, s), k in zip(shapes.items(), keys, strict=True)}}

    return init, lambda variables, x, train, rngs: (forward(variables["params"], x), {})


def normalised(x):
    return (x - x.mean(0)) / x.std(0)


MATRIX = (6, 6)
NETWORKS = {
    # a residual stream of two writers, which is normalised before it is read
    "jointly": (
        functions(
            {"a": MATRIX, "b": MATRIX, "head": MATRIX}, lambda p, x: normalised(x @ p["a"] + x @ p["b"]) @ p["head"]
        ),
        {"a": "jointly", "b": "jointly", "head": "not"},
    ),
    # scaling a by c and b by 1/c changes nothing, but scaling them together does
    "homogeneous": (
        functions({"a": MATRIX, "b": MATRIX}, lambda p, x: jax.nn.relu(x @ p["a"]) @ p["b"]),
        {"a": "not", "b": "not"},
    ),
    "both": (
        functions(
            {"a": MATRIX, "b": MATRIX, "c": MATRIX, "head": MATRIX},
            lambda p, x: normalised(normalised(x @ p["c"]) @ p["a"] + x @ p["b"]) @ p["head"],
        ),
        {"a": "jointly", "b": "jointly", "c": "individually", "head": "not"},
    ),
    "all": (functions({"a": MATRIX}, lambda p, x: normalised(x @ p["a"])), {"a": "individually"}),
    "none": (functions({"a": MATRIX}, lambda p, x: x @ p["a"]), {"a": "not"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_measured_is_what_the_structure_says(name):
    network, verdicts = NETWORKS[name]
    measured = models.measure_labels(network, IMAGES)
    assert measured.verdicts == verdicts
    assert measured.labels == tuple(verdict != "not" for verdict in verdicts.values())


@pytest.mark.parametrize("name", ["all", "none", "jointly"])
def test_networks_with_all_or_no_weights_scale_invariant_train(name, capsys):
    network, _ = NETWORKS[name]
    state = create_train_state(network, "auto", jax.random.key(0), IMAGES)
    assert capsys.readouterr().out == str(models.measure_labels(network, IMAGES)) + "\n"
    after, metrics = jax.jit(train_step)(state, HParams(lr=0.1, noninvariant_lr=0.1), Batch(IMAGES, jnp.arange(8) % 6))
    assert int(after.diverged_at) == -1
    if name == "none":
        assert np.isnan(metrics["weight_norm"])
        assert metrics["noninvariant_weight_norm"] > 0
    else:
        assert metrics["radial_leak"] < 1e-5
        assert (metrics["noninvariant_weight_norm"] == 0) == (name == "all")


def test_wrong_labels_show_in_the_radial_leak():
    network, _ = NETWORKS["jointly"]
    batch = Batch(IMAGES, jnp.arange(8) % 6)
    leaks = {}
    for name, labels in {"right": "auto", "wrong": "scale_invariant"}.items():
        state = create_train_state(network, labels, jax.random.key(0), IMAGES)
        leaks[name] = float(jax.jit(train_step)(state, HParams(), batch)[1]["radial_leak"])
    assert leaks["wrong"] > 1000 * leaks["right"]


def test_labels_cannot_be_measured_where_values_are_not_known():
    network, _ = NETWORKS["none"]
    with pytest.raises(ConfigError, match="labels: 'auto' where values are not known"):
        jax.jit(lambda key: create_train_state(network, "auto", key, IMAGES))(jax.random.key(0))


def test_labels_of_another_number_are_refused():
    network, _ = NETWORKS["jointly"]
    with pytest.raises(ConfigError, match="labels: 2 of them is not accepted; expected one for each of 3 parameters"):
        create_train_state(network, (True, False), jax.random.key(0), IMAGES)


class BatchNormAndEps(nn.Module):
    """With Flax's own ε, which is not zero."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, use_bias=False, use_scale=False)(nn.Dense(6, name="body")(x))
        return nn.Dense(3, name="head")(nn.relu(x))


def test_the_epsilon_of_a_normalisation_does_not_count():
    """The bias in front of it is subtracted again."""
    measured = models.measure_labels(BatchNormAndEps(), IMAGES)
    assert measured.verdicts["body/kernel"] == measured.verdicts["body/bias"] == "individually"
    assert measured.verdicts["head/kernel"] == "not"


def every_subset(vectors):
    """The largest set whose sum vanishes, among all."""
    count = len(vectors)
    masks = [np.array([i >> k & 1 for k in range(count)], bool) for i in range(2**count)]
    return max((m for m in masks if np.abs(vectors[m].sum(0)).max(initial=0) < 1e-9), key=lambda m: m.sum())


@pytest.mark.parametrize("seed", range(6))
def test_the_largest_vanishing_sum_is_that_of_all_subsets(seed):
    rng = np.random.default_rng(seed)
    free = rng.normal(size=(4, 9))
    # two groups that vanish, one of opposite signs, which does not when scaled together, and what is free
    vectors = np.stack([free[0], free[1], -free[0] - free[1], free[2], -free[2], free[3], free[3]])
    vectors = vectors[rng.permutation(len(vectors))]
    expected = every_subset(vectors)
    assert expected.sum() == 5
    assert np.array_equal(largest_vanishing_sum(vectors, 1e-9), expected)
