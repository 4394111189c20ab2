"""The reference's networks straight from a PyTorch state dict: NCHW, plain operations, the order of PyTorch's layers.

A slow and independent counterpart of `periodic_jax.models`, which shares neither its layout nor its parameter tree.
"""

import re

import jax
import jax.numpy as jnp
from jax import lax

EPS, MOMENTUM = 1e-5, 0.1


def conv(state, name, x, stride=1):
    kernel = state[f"{name}.weight"]
    pad = kernel.shape[-1] // 2
    y = lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=("NCHW", "OIHW", "NCHW")
    )
    return y + state[f"{name}.bias"][:, None, None] if f"{name}.bias" in state else y


def norm(state, running, name, x, train):
    """`running` receives the moved statistics."""
    mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    if train:
        batch_mean, batch_var = x.mean((0, 2, 3)), x.var((0, 2, 3))
        n = x.size // x.shape[1]
        running[f"{name}.running_mean"] = (1 - MOMENTUM) * mean + MOMENTUM * batch_mean
        running[f"{name}.running_var"] = (1 - MOMENTUM) * var + MOMENTUM * batch_var * n / (n - 1)
        mean, var = batch_mean, batch_var
    y = (x - mean[:, None, None]) / jnp.sqrt(var + EPS)[:, None, None]
    if f"{name}.weight" in state:
        y = y * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]
    return y


def linear(state, name, x):
    logits = x @ state[f"{name}.weight"].T
    return logits + state[f"{name}.bias"] if f"{name}.bias" in state else logits


def convnet(state, x, train):
    """Layers as the names number them: a gap of 4 from one convolution to the next has a max-pool in it."""
    running = {}
    layers = "module_list" if "module_list.0.weight" in state else "conv_layers"
    places = sorted(
        int(re.findall(r"\d+", name)[0]) for name in state if name.startswith(layers) and state[name].ndim == 4
    )
    for place, following in zip(places, [*places[1:], places[-1] + 4], strict=True):
        x = conv(state, f"{layers}.{place}", x)
        x = jax.nn.relu(norm(state, running, f"{layers}.{place + 1}", x, train))
        if following - place == 4:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    head = f"{layers}.{places[-1] + 6}" if layers == "module_list" else "linear_layers.2"
    return linear(state, head, x.max((2, 3))), running


def resnet(state, x, train):
    running = {}
    x = conv(state, "conv1", x)
    for stage in range(1, 5):
        for block in range(2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            out = jax.nn.relu(norm(state, running, f"{name}.bn1", x, train))
            if f"{name}.shortcut.1.weight" in state:
                x = conv(state, f"{name}.shortcut.1", norm(state, running, f"{name}.shortcut.0", out, train), stride)
            elif f"{name}.shortcut.0.weight" in state:
                x = conv(state, f"{name}.shortcut.0", out, stride)
            out = conv(state, f"{name}.conv1", out, stride)
            out = conv(state, f"{name}.conv2", jax.nn.relu(norm(state, running, f"{name}.bn2", out, train)))
            x = x + out
    if "bn.running_mean" in state:
        x = jax.nn.relu(norm(state, running, "bn", x, train))
    return linear(state, "linear", x.mean((2, 3))), running
