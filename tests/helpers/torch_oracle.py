"""ConvNets in PyTorch itself, where it is installed: an oracle with another's kernels and another's differentiation."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed (extra bench)")
F = torch.nn.functional


def state_dict(model, variables):
    """Weights and running statistics as PyTorch's tensors, of their own dtype."""
    from periodic_jax.models import to_torch

    return {name: torch.as_tensor(np.array(a)) for name, a in to_torch(model, variables).items()}


def normalised(images, data, dtype):
    """Images ``(images, height, width, channels)`` as numbers ``(images, channels, height, width)``."""
    return torch.as_tensor(((images / 255 - np.array(data.mean)) / np.array(data.std)).transpose(0, 3, 1, 2)).to(
        getattr(torch, dtype)
    )


def convnet(model, state, x, train):
    """The logits of a ConvNet.

    Args:
        model: the Flax module, for its pooling.
        state: as of `state_dict`, in the order of the layers.
        x: as of `normalised`.
        train: normalise by the mini-batch's own statistics.
    """
    convolutions, norms, head = [], [], ""
    for name, tensor in state.items():
        place, _, part = name.rpartition(".")
        if part == "weight" and tensor.ndim == 4:
            convolutions.append(place)
        elif part == "running_mean":
            norms.append(place)
        elif part == "weight" and tensor.ndim == 2:
            head = place
    for place, norm, (_, pool) in zip(convolutions, norms, model.stages(), strict=True):
        x = F.conv2d(x, state[f"{place}.weight"], state.get(f"{place}.bias"), padding=1)
        moments = [state[f"{norm}.running_{part}"].clone() for part in ("mean", "var")]
        affine = [state.get(f"{norm}.{part}") for part in ("weight", "bias")]
        x = torch.relu(F.batch_norm(x, *moments, *affine, training=train, eps=model.eps))
        x = F.max_pool2d(x, 2) if pool else x
    return F.linear(x.amax((2, 3)), state[f"{head}.weight"], state.get(f"{head}.bias"))
