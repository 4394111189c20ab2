"""Small sweeps: a network that is quick to compile, and all that a sweep of it gives."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from periodic_jax import models
from periodic_jax.sweeps import compiled

LAYOUTS = ["vmap", "unroll", "map", "map:2"]


def network(dtype=jnp.float64, **options):
    """Two convolutions: quick to compile."""
    return models.ConvNet(width=2, depth=1, num_classes=3, param_dtype=dtype, **options)


def collect(sweep, steps, **options):
    """All telemetry ``(configs, steps)`` and the evaluations ``(configs, evaluations)``."""
    chunks = list(sweep.chunks(steps, **{"eval_every": 7, **options}))
    telemetry = {n: np.concatenate([c.telemetry[n] for c in chunks], 1) for n in chunks[0].telemetry}
    evaluations = [c.evaluation for c in chunks if c.evaluation]
    return telemetry, {n: np.stack([e[n] for e in evaluations], 1) for n in evaluations[0]}


def forget_programs():
    """The next sweep traces its programs, for tests that replace what is traced."""
    compiled._shared_programs.cache_clear()
    compiled._shared_initialiser.cache_clear()


class Probe(nn.Module):
    """Not a network: its logits are fixed linear functions of the images, so that the loss tells which it saw."""

    @nn.compact
    def __call__(self, images, train):
        scale = self.param("scale", nn.initializers.ones, (1,))
        flat = images.reshape(len(images), -1)
        return 0 * scale + flat @ jnp.sin(jnp.arange(flat.shape[1] * 3.0)).reshape(-1, 3)

    def labels(self):
        return "scale_invariant"
