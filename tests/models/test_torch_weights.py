import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import ConfigError, MissingDependencyError, models


def network(name, depth=3, dtype=jnp.float32):
    """A network and variables of random numbers, without compiling anything."""
    model = models.build(name, width=2, depth=depth, num_classes=3, param_dtype=dtype)
    images = jnp.zeros((2, 8, 8, 1), dtype)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)


REFERENCE = [name for name, (module, _) in models.MODELS.items() if hasattr(module, "torch_names")]
CASES = [(name, depth) for name in REFERENCE for depth in ((3,) if name.startswith("ResNet") else (1, 2, 3, 5))]


@pytest.mark.parametrize(("name", "depth"), CASES)
def test_there_and_back_is_exact(name, depth):
    model, variables = network(name, depth)
    state = models.to_torch(model, variables)
    back = models.from_torch(model, state)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    assert jax.tree.all(jax.tree.map(np.array_equal, back, variables))
    again = models.to_torch(model, back)
    assert list(again) == list(state)
    for key, array in state.items():
        assert np.array_equal(again[key], array)
        assert array.dtype == (np.int64 if key.endswith("num_batches_tracked") else np.float32)
        assert array.flags.c_contiguous


def test_names_of_a_deeper_convnet():
    """Five convolutions after the first: stages of two, two and one, which end in a max-pool."""
    model, variables = network("ConvNetSI", 5)
    state = models.to_torch(model, variables, num_batches_tracked=7)
    expected = {}
    for place, (channels, features) in {0: (1, 2), 3: (2, 2), 6: (2, 4), 10: (4, 4), 13: (4, 8), 17: (8, 16)}.items():
        expected[f"conv_layers.{place}.weight"] = (features, channels, 3, 3)
        expected |= {f"conv_layers.{place + 1}.running_{name}": (features,) for name in ("mean", "var")}
        expected[f"conv_layers.{place + 1}.num_batches_tracked"] = ()
    expected |= {"linear_layers.2.weight": (3, 16), "linear_layers.2.bias": (3,)}
    assert {key: array.shape for key, array in state.items()} == expected
    assert list(state) == list(expected)
    assert state["conv_layers.1.num_batches_tracked"] == 7


def test_names_of_the_standard_convnet():
    model, variables = network("ConvNet", 3)
    names = [key for key in models.to_torch(model, variables) if "running" not in key and "tracked" not in key]
    places = (0, 1, 3, 4, 7, 8, 11, 12, 17)
    assert names == [f"module_list.{place}.{leaf}" for place in places for leaf in ("weight", "bias")]


@pytest.mark.parametrize(
    ("name", "count", "present", "absent"),
    [
        ("ResNet18SI", 20 + 20 * 3 + 1, "layer2.0.shortcut.1.weight", "linear.bias"),
        ("ResNet18SIAf", 20 + 20 * 5 + 1, "bn.weight", "linear.bias"),
        ("ResNet18", 20 + 16 * 5 + 2, "layer4.0.shortcut.0.weight", "bn.running_mean"),
    ],
)
def test_names_of_residual_networks(name, count, present, absent):
    model, variables = network(name)
    state = models.to_torch(model, variables)
    assert len(state) == count
    assert present in state
    assert absent not in state
    assert next(iter(state)) == "conv1.weight"
    shortcut = "layer2.0.shortcut.0.weight" if name == "ResNet18" else "layer2.0.shortcut.1.weight"
    assert state[shortcut].shape == (4, 2, 1, 1)


def test_a_kernel_is_transposed():
    """PyTorch: (out, in, row, column); Flax: (row, column, in, out)."""
    model, variables = network("ConvNetSI", 1)
    state = models.to_torch(model, variables)
    kernel = variables["params"]["conv1"]["kernel"]
    assert state["conv_layers.3.weight"][3, 1, 0, 2] == kernel[0, 2, 1, 3]
    assert state["linear_layers.2.weight"][2, 1] == variables["params"]["head"]["kernel"][1, 2]


def test_numbers_become_those_of_the_network(float64):
    model, variables = network("ConvNetSI", 1, jnp.float64)
    state = {key: array.astype(np.float32) for key, array in models.to_torch(model, variables).items()}
    back = models.from_torch(model, state)
    assert {leaf.dtype for leaf in jax.tree.leaves(back)} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv_layers.4.running_var"), "state dict: one without conv_layers.4.running_var"),
        (lambda s: s.update({"fc.weight": np.zeros(2)}), "state dict: one with fc.weight"),
        (lambda s: s.update({"fc.num_batches_tracked": 3}), "state dict: one with fc.num_batches_tracked"),
        (
            lambda s: s.update({"conv_layers.3.weight": np.zeros((4, 2, 1, 1))}),
            r"conv_layers.3.weight: the shape \(4, 2, 1, 1\) is not accepted; expected \(4, 2, 3, 3\)",
        ),
        (lambda s: s.update({"conv_layers.0.weight": np.zeros(3)}), r"conv_layers.0.weight: the shape \(3,\)"),
        (lambda s: s.update({"linear_layers.2.bias": "words"}), "linear_layers.2.bias: an entry of type str"),
    ],
)
def test_a_state_dict_of_another_network_is_refused(change, message):
    model, variables = network("ConvNetSI", 1)
    state = models.to_torch(model, variables)
    change(state)
    with pytest.raises(ConfigError, match="^" + message):
        models.from_torch(model, state)


def test_counts_of_updates_may_be_missing():
    model, variables = network("ConvNetSI", 1)
    state = {k: v for k, v in models.to_torch(model, variables).items() if not k.endswith("num_batches_tracked")}
    assert jax.tree.all(jax.tree.map(np.array_equal, models.from_torch(model, state), variables))


def test_variables_of_another_network_are_refused():
    model, variables = network("ConvNetSI", 1)
    with pytest.raises(ConfigError, match=r"^variables: a tree without batch_stats/conv0/mean"):
        models.to_torch(model, {"params": variables["params"]})
    with pytest.raises(ConfigError, match=r"^variables: a tree with batch_stats/conv2/mean"):
        models.to_torch(model, network("ConvNetSI", 2)[1])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), variables)
    with pytest.raises(ConfigError, match=r"^params/conv0/kernel: the shape \(2, 3, 3, 1, 2\)"):
        models.to_torch(model, stacked)


class Tensor:
    """As much of a PyTorch tensor as is used."""

    def __init__(self, array):
        self.array = array

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return self.array


@pytest.fixture
def torch_with(monkeypatch):
    """Stand in for torch: ``load`` returns, or raises, what a test gives."""

    def install(content):
        def load(path, *, map_location, weights_only):
            assert map_location == "cpu"
            assert weights_only
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))

    return install


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_is_read_with_torch(torch_with, wrapped):
    model, variables = network("ConvNetSIAf", 1)
    state = {key: Tensor(array) for key, array in models.to_torch(model, variables).items()}
    torch_with({"epoch": 3, "state_dict": state} if wrapped else state)
    assert jax.tree.all(jax.tree.map(np.array_equal, models.from_torch(model, "net.pt"), variables))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (FileNotFoundError("no such file"), r"state dict: net.pt is not accepted; .*\(no such file\)"),
        (RuntimeError("bad\nzip"), r"state dict: net.pt is not accepted; .*\(bad\)"),
        ([1, 2], "state dict: net.pt is not accepted; expected a state dict in the file, not a list"),
    ],
)
def test_a_file_that_holds_no_state_dict_is_refused(torch_with, content, message):
    torch_with(content)
    with pytest.raises(ConfigError, match="^" + message):
        models.from_torch(network("ConvNetSI", 1)[0], "net.pt")


def test_a_file_needs_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependencyError, match=r"reading net.pt needs torch, which is not installed"):
        models.from_torch(network("ConvNetSI", 1)[0], "net.pt")
