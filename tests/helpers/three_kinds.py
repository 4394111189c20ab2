"""The same small network as a Linen module, an NNX module and a pair of functions, in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

LABELS = {"conv": "scale_invariant", "head": "other", "norm": "other"}
MOMENTUM, EPS = 0.9, 1e-5


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), use_bias=False, param_dtype=jnp.float64, name="conv")(x)
        x = nn.BatchNorm(
            use_running_average=not train, momentum=MOMENTUM, epsilon=EPS, param_dtype=jnp.float64, name="norm"
        )(x)
        return nn.Dense(3, param_dtype=jnp.float64, name="head")(nn.relu(x).mean((1, 2)))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), use_bias=False, param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=MOMENTUM, epsilon=EPS, param_dtype=jnp.float64, rngs=rngs)
        self.head = nnx.Linear(4, 3, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


def function_init(key, x):
    kernels = jax.random.split(key)
    params = {
        "conv": {"kernel": jax.random.normal(kernels[0], (3, 3, x.shape[-1], 4), x.dtype)},
        "head": {"bias": jnp.zeros(3, x.dtype), "kernel": jax.random.normal(kernels[1], (4, 3), x.dtype)},
        "norm": {"bias": jnp.zeros(4, x.dtype), "scale": jnp.ones(4, x.dtype)},
    }
    return {"params": params, "batch_stats": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}}


def function_apply(variables, x, train, rngs):
    params, old = variables["params"], variables["batch_stats"]["norm"]
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (old["mean"], old["var"])
    new = {"mean": MOMENTUM * old["mean"] + (1 - MOMENTUM) * mean, "var": MOMENTUM * old["var"] + (1 - MOMENTUM) * var}
    x = (x - mean) / jnp.sqrt(var + EPS) * params["norm"]["scale"] + params["norm"]["bias"]
    out = jax.nn.relu(x).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    return out, {"batch_stats": {"norm": new}}


KINDS = {"linen": Linen(), "nnx": Nnx, "functions": (function_init, function_apply)}
