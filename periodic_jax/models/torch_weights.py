"""Weights from and to PyTorch state dicts of the reference's networks, exact both ways.

A network that can be converted has ``torch_names()``: each key of its state dict, in PyTorch's order, with the path
``collection/module/.../leaf`` of the same array among the Flax variables. Convolution kernels are ``(out, in, h, w)``
there and ``(h, w, in, out)`` here, linear weights ``(out, in)`` there and ``(in, out)`` here.
"""

import os
import pickle
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from periodic_jax.core.errors import ConfigError, MissingDependencyError

STEP_COUNT = "num_batches_tracked"  # PyTorch's number of updates of running statistics; nothing here depends on it


def kernel_names(torch: str, module: str, bias: str | None = None) -> dict[str, str]:
    """Names of a convolution or linear layer; ``bias`` names the leaf of its bias, if it has one."""
    names = {f"{torch}.weight": f"params/{module}/kernel"}
    return names | ({f"{torch}.bias": f"params/{module}/{bias}"} if bias else {})


def norm_names(torch: str, module: str, affine: bool) -> dict[str, str]:
    """Names of a batch normalisation."""
    trained = {f"{torch}.weight": f"params/{module}/scale", f"{torch}.bias": f"params/{module}/bias"} if affine else {}
    return trained | {f"{torch}.running_{name}": f"batch_stats/{module}/{name}" for name in ("mean", "var")}


def from_torch(model: Any, state_dict: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """Flax variables of a network from the state dict of its PyTorch counterpart.

    Args:
        model: a network of `models.build`.
        state_dict: PyTorch's names with arrays or tensors, or the path of a file that ``torch.save`` wrote: a state
            dict, or a checkpoint that holds one as ``state_dict``. Only then is torch needed.

    Returns:
        ``{"params": ..., "batch_stats": ...}``, of the network's ``param_dtype``.

    Raises:
        ConfigError: a key that is missing or unknown, a wrong shape, a file that cannot be read, or no torch to read
            it with.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2)
        >>> initialise = jax.jit(model.init, static_argnames="train")
        >>> variables = initialise(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True)
        >>> back = models.from_torch(model, models.to_torch(model, variables))
        >>> bool(jnp.array_equal(back["params"]["conv0"]["kernel"], variables["params"]["conv0"]["kernel"]))
        True
    """
    if not isinstance(state_dict, Mapping):
        state_dict = _load(state_dict)
    names = _torch_names(model)
    arrays = {key: _as_numpy(key, value) for key, value in state_dict.items()}
    counts = {key.rpartition(".")[0] + "." + STEP_COUNT for key in names if key.endswith(".running_mean")}
    _check_names("state dict", "one", arrays, names, counts)
    shapes = _shapes(model, _to_flax(arrays[next(iter(names))]))
    variables = {}
    for key, path in names.items():
        array, wanted = _to_flax(arrays[key]), shapes[path]
        if array.shape != wanted.shape:
            expected = _to_torch(np.empty(wanted.shape, np.bool_)).shape
            raise ConfigError(key, f"the shape {arrays[key].shape}", f"{expected}")
        variables[path] = jnp.asarray(array, wanted.dtype)
    return traverse_util.unflatten_dict(variables, sep="/")


def to_torch(model: Any, variables: Mapping[str, Any], num_batches_tracked: int = 0) -> dict[str, np.ndarray]:
    """The PyTorch state dict of Flax variables, as NumPy arrays; ``torch.as_tensor`` makes tensors of them.

    Args:
        model: a network of `models.build`.
        variables: its ``params`` and ``batch_stats``, of one configuration.
        num_batches_tracked: what PyTorch calls the number of updates of running statistics.

    Returns:
        Arrays by PyTorch's names, in PyTorch's order.

    Raises:
        ConfigError: variables of another network.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2, depth=1)
        >>> initialise = jax.jit(model.init, static_argnames="train")
        >>> state_dict = to_torch(model, initialise(jax.random.key(0), jnp.zeros((2, 8, 8, 3)), train=True))
        >>> [name for name in state_dict if "weight" in name]
        ['conv_layers.0.weight', 'conv_layers.3.weight', 'linear_layers.2.weight']
    """
    leaves = {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(dict(variables), sep="/").items()}
    names = _torch_names(model)
    _check_names("variables", "a tree", leaves, names.values())
    shapes = _shapes(model, leaves[next(iter(names.values()))])
    state_dict = {}
    for key, path in names.items():
        if leaves[path].shape != shapes[path].shape:
            raise ConfigError(path, f"the shape {leaves[path].shape}", f"{shapes[path].shape}")
        state_dict[key] = np.ascontiguousarray(_to_torch(leaves[path]))
        if key.endswith(".running_var"):
            state_dict[key.removesuffix("running_var") + STEP_COUNT] = np.asarray(num_batches_tracked, np.int64)
    return state_dict


def _torch_names(model: Any) -> dict[str, str]:
    if not hasattr(model, "torch_names"):
        raise ConfigError("model", type(model).__name__, "a network of the reference, which PyTorch's weights are of")
    return model.torch_names()


def _check_names(
    argument: str, kind: str, given: Collection[str], needed: Collection[str], optional: Collection[str] = ()
) -> None:
    for name in needed:
        if name not in given:
            raise ConfigError(argument, f"{kind} without {name}", f"the {len(needed)} entries of this network")
    for name in given:
        if name not in needed and name not in optional:
            raise ConfigError(argument, f"{kind} with {name}", "no entries that this network lacks")


def _shapes(model: Any, first_kernel: np.ndarray) -> dict[str, Any]:
    """Shapes and dtypes of the variables by their paths; they do not depend on the size of the images."""
    channels = first_kernel.shape[2] if first_kernel.ndim == 4 else 3
    images = jax.ShapeDtypeStruct((2, 32, 32, channels), model.param_dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes: Any = jax.eval_shape(lambda key, images: model.init(key, images, train=True), key, images)
    return traverse_util.flatten_dict(shapes, sep="/")


def _to_flax(array: np.ndarray) -> np.ndarray:
    """(out, in, h, w) → (h, w, in, out), (out, in) → (in, out)."""
    return {4: lambda a: a.transpose(2, 3, 1, 0), 2: lambda a: a.T}.get(array.ndim, lambda a: a)(array)


def _to_torch(array: np.ndarray) -> np.ndarray:
    """(h, w, in, out) → (out, in, h, w), (in, out) → (out, in)."""
    return {4: lambda a: a.transpose(3, 2, 0, 1), 2: lambda a: a.T}.get(array.ndim, lambda a: a)(array)


def _as_numpy(key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, which may want gradients or live on an accelerator
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ConfigError(key, f"an entry of type {type(value).__name__}", "an array of real numbers")
    return array


def _load(path: Any) -> Mapping[str, Any]:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(f"reading {path}", "torch", "torch") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        expected = f"a file that torch.load reads with weights_only=True ({reason})"
        raise ConfigError("state dict", path, expected) from None
    content = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise ConfigError("state dict", path, f"a state dict in the file, not a {type(content).__name__}")
    return content
