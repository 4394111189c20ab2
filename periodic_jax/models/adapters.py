"""Networks of every kind behind one protocol: Linen modules, NNX modules, pairs of pure functions.

An adapter is static: hashable, without arrays, equal for networks of one structure. So a compiled step is keyed by it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from flax.core import unfreeze
from flax.errors import InvalidRngError
from jaxtyping import Array, Key
from typing_extensions import override

from periodic_jax.core.errors import ConfigError

STATISTICS = "batch_stats"
ACCEPTED = (
    "a Linen module, an NNX module or a class or function of rngs that makes one, or a pair of functions "
    "init(key, inputs), apply(variables, inputs, train, rngs) -> (outputs, mutated)"
)
CALLED = "a __call__ that takes (inputs) or (inputs, train)"
# How others call what is `train` here, or its contrary: left at their defaults they would train in the wrong mode.
OTHER_MODES = ("training", "is_training", "deterministic", "use_running_average")

Variables = Mapping[str, Any]  # "params", and collections that the network changes, "batch_stats" above all


class Network(Protocol):
    """What a train step knows of a network."""

    def apply(
        self, variables: Variables, inputs: Any, train: bool, key: Key[Array, ""] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Outputs, and the collections as they are afterwards; none where ``train`` is not set.

        Args:
            variables: ``params`` and the other collections.
            inputs: a mini-batch, or what `prepare` made of one.
            train: train mode: statistics of the batch, random numbers.
            key: of the random numbers; None for a network that needs none.
        """
        ...

    def prepare(self, inputs: Any) -> Any:
        """What networks that see the same mini-batch can share."""
        ...


@dataclass(frozen=True)
class LinenNetwork(Network):
    """A Linen module, called as ``module.apply(variables, inputs, train=...)``. One key serves all of its streams of
    random numbers.
    """

    module: nn.Module

    @override
    def apply(
        self, variables: Variables, inputs: Any, train: bool, key: Key[Array, ""] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        collections = [name for name in variables if name != "params"]
        outputs, mutated = self.module.apply(
            variables,
            inputs,
            **_mode(self.module, train),
            mutable=collections if train else [],
            rngs=None if key is None else {"params": key, "dropout": key},
        )
        return outputs, unfreeze(dict(mutated))

    @override
    def prepare(self, inputs: Any) -> Any:
        module: Any = self.module
        return module.prepare(inputs) if hasattr(module, "prepare") else inputs


@dataclass(frozen=True)
class FunctionNetwork(Network):
    """A function ``(variables, inputs, train, rngs) -> (outputs, mutated)``. ``rngs`` is ``{"dropout": key}`` in
    training, else None; what ``mutated`` leaves out stays as it was.
    """

    function: Callable[..., Any]

    @override
    def apply(
        self, variables: Variables, inputs: Any, train: bool, key: Key[Array, ""] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        result = self.function(variables, inputs, train, None if key is None else {"dropout": key})
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
            raise ConfigError("apply", f"a result of type {type(result).__name__}", "a pair (outputs, mutated)")
        outputs, mutated = result
        before = {name: tree for name, tree in variables.items() if name != "params"}
        if unknown := set(mutated) - set(before):
            accepted = f"those of init: {', '.join(before) or 'none'}"
            raise ConfigError("apply", "new collections: " + ", ".join(sorted(unknown)), accepted)
        return outputs, unfreeze({**before, **mutated}) if train else {}

    @override
    def prepare(self, inputs: Any) -> Any:
        return inputs


class Part(NamedTuple):
    """The variables of one kind of an NNX module, which are a nested dictionary outside it."""

    structure: Any  # as NNX has them
    paths: tuple[tuple[str | int, ...], ...]  # of the leaves, in its order

    @staticmethod
    def of(state: Any) -> "Part":
        """The structure of some variables."""
        with_paths, structure = jax.tree_util.tree_flatten_with_path(state)
        paths = (tuple(k.key for k in path if not isinstance(k, jax.tree_util.GetAttrKey)) for path, _ in with_paths)
        return Part(structure, tuple(paths))

    def to_dict(self, state: Any) -> dict[str, Any]:
        """NNX's variables as a nested dictionary of arrays."""
        if len(leaves := jax.tree.leaves(state)) != len(self.paths):
            raise ConfigError("model", "an NNX module that makes variables when it is called", "all made by __init__")
        return traverse_util.unflatten_dict(dict(zip(self.paths, leaves, strict=True)))

    def from_dict(self, arrays: Mapping[str, Any]) -> Any:
        """Back to NNX's variables."""
        flat: dict[Any, Any] = traverse_util.flatten_dict(dict(arrays))
        return jax.tree.unflatten(self.structure, [flat[path] for path in self.paths])


@dataclass(frozen=True)
class NnxNetwork(Network):
    """An NNX module, split into its graph and its variables; called as ``module(inputs)`` after ``train()`` or
    ``eval()``, with ``train`` where it takes it.

    The state of random numbers is not kept: it begins anew with the key of each step.
    """

    graph: Any
    params: Part
    statistics: Part
    randomness: Part
    streams: tuple[tuple[bool, tuple[int, ...]], ...]  # of each leaf of it: is it a key, or a count; its shape
    other: Part

    @staticmethod
    def split(module: nnx.Module) -> "tuple[NnxNetwork, dict[str, Any]]":
        """The static part of a module, and its variables."""
        graph, *states = _split(module)
        params, statistics, randomness, other = map(Part.of, states)
        draws = jax.tree.leaves(states[2])
        streams = tuple((jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key), leaf.shape) for leaf in draws)
        network = NnxNetwork(graph, params, statistics, randomness, streams, other)
        variables = {"params": params.to_dict(states[0]), STATISTICS: statistics.to_dict(states[1])}
        return network, variables | ({"other": other.to_dict(states[3])} if other.paths else {})

    @override
    def apply(
        self, variables: Variables, inputs: Any, train: bool, key: Key[Array, ""] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        params, statistics = (
            part.from_dict(variables[name]) for part, name in ((self.params, "params"), (self.statistics, STATISTICS))
        )
        other = self.other.from_dict(variables.get("other", {}))
        module: Any = nnx.merge(self.graph, params, statistics, self._seeded(key), other)
        module.train() if train else module.eval()
        outputs = module(inputs, **_mode(module, train))
        if not train:
            return outputs, {}
        nnx.pop(module, nnx.Intermediate)
        _, _, statistics, _, other = _split(module)
        mutated, rest = {STATISTICS: self.statistics.to_dict(statistics)}, self.other.to_dict(other)
        return outputs, mutated | ({"other": rest} if rest else {})

    @override
    def prepare(self, inputs: Any) -> Any:
        return inputs

    def _seeded(self, key: Any) -> Any:
        """The state of each stream of random numbers: a key of its own, and a count of zero."""
        key = jax.random.key(0) if key is None else key
        leaves = [
            jax.random.split(jax.random.fold_in(key, i), shape) if is_key else jnp.zeros(shape, jnp.uint32)
            for i, (is_key, shape) in enumerate(self.streams)
        ]
        return jax.tree.unflatten(self.randomness.structure, leaves)


def initialise(model: Any, key: Key[Array, ""], inputs: Any) -> tuple[Network, dict[str, Any]]:
    """The adapter of a network, and its initial variables.

    Args:
        model: what `ACCEPTED` says. An NNX instance has its weights already; all others are initialised by the key.
        key: PRNG key of the initialisation; may be traced.
        inputs: an example mini-batch; only shapes and dtypes matter.

    Returns:
        The network, and its variables: ``params``, ``batch_stats`` (empty where there are none), and other collections.

    Raises:
        ConfigError: another kind, or a module that is called otherwise.

    Example:
        >>> network, variables = initialise(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), jax.random.key(0), jnp.ones((4, 3)))
        >>> network.apply(variables, jnp.ones((4, 3)), train=True)[0].shape
        (4, 2)
    """
    if isinstance(model, nn.Module):
        variables: Any = model.init(key, inputs, **_mode(model, train=True))
        return LinenNetwork(model), _completed(variables)
    if isinstance(model, nnx.Module):
        _mode(model, train=True)
        return NnxNetwork.split(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        init, apply = (cast("Callable[..., Any]", function) for function in model)
        _check_takes(init, "init", (None,) * 2)
        _check_takes(apply, "apply", (None,) * 4)
        variables = init(key, inputs)
        if not isinstance(variables, Mapping) or "params" not in variables:
            given = f"a result of type {type(variables).__name__} without params"
            raise ConfigError("init", given, "a dictionary with params, and optionally batch_stats and others")
        return FunctionNetwork(apply), _completed(variables)
    if makes_nnx(model):
        made: Any = cast("Callable[..., Any]", model)(rngs=nnx.Rngs(key))
        if isinstance(made, nnx.Module):
            return initialise(made, key, inputs)
    raise ConfigError("model", _described(model), ACCEPTED)


def needs_key(network: Network, variables: Variables, inputs: Any) -> bool:
    """Whether a network draws random numbers in training. Of a pair of functions nobody knows, so it gets a key."""
    if isinstance(network, NnxNetwork):
        return bool(network.randomness.paths)
    if isinstance(network, LinenNetwork):
        try:
            jax.eval_shape(partial(network.apply, train=True), dict(variables), inputs)
        except InvalidRngError:
            return True
        return False
    return True


def input_dtype(model: Any) -> Any:
    """The dtype in which a network, or an adapter of one, wants its images: its ``param_dtype``, or float32."""
    return getattr(getattr(model, "module", model), "param_dtype", jnp.float32)


def is_built_in(network: Network) -> bool:
    """Whether a network is one of this package, whose running statistics have one momentum."""
    return isinstance(network, LinenNetwork) and type(network.module).__module__.startswith("periodic_jax.models.")


def makes_nnx(model: Any) -> bool:
    """Whether something is a class or function of ``rngs``, as those that make NNX modules are."""
    if isinstance(model, nn.Module | nnx.Module) or (isinstance(model, type) and issubclass(model, nn.Module)):
        return False
    return callable(model) and "rngs" in _parameters(model)


def _split(module: Any) -> Any:
    return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)


def _completed(variables: Mapping[str, Any]) -> dict[str, Any]:
    # Plain dictionaries, whatever Flax is set to return: a FrozenDict is another structure than the labels'.
    return unfreeze({"params": {}, STATISTICS: {}, **variables})


def _mode(module: Any, train: bool) -> dict[str, Any]:
    """``train`` for a module that takes it.

    Raises:
        ConfigError: a module that can be called neither way.
    """
    call: Any = type(module).__call__
    parameters = inspect.signature(call).parameters
    mode = {"train": train} if "train" in parameters else {}
    if isinstance(module, nn.Module) and not mode and set(parameters) & set(OTHER_MODES):
        raise ConfigError("model", f"{type(module).__name__}.__call__{inspect.signature(call)}", CALLED)
    _check_takes(call, f"{type(module).__name__}.__call__", (module, None), mode, CALLED)
    return mode


def _check_takes(
    function: Callable[..., Any], name: str, arguments: tuple[Any, ...], more: dict[str, Any] | None = None,
    accepted: str = ACCEPTED,
) -> None:  # fmt: skip
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return
    try:
        signature.bind(*arguments, **(more or {}))
    except TypeError:
        raise ConfigError("model", f"{name}{signature}", accepted) from None


def _parameters(function: Any) -> Mapping[str, Any]:
    while isinstance(function, partial):
        function = function.func
    try:  # a class of NNX hides the arguments of its __init__
        return inspect.signature(function.__init__ if isinstance(function, type) else function).parameters
    except (TypeError, ValueError):
        return {}


def _described(model: Any) -> str:
    if isinstance(model, type):
        made = f" (its instance {model.__name__}(...) would be)" if issubclass(model, nn.Module) else ""
        return f"the class {model.__name__}{made}"
    return f"an object of type {type(model).__name__}"
