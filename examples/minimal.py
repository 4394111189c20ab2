"""Periodic training on real digits, from data to plot: network, grid of learning rates, vmap, scan, plot.

Run it: python examples/minimal.py [steps]. It draws minimal.png.
"""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import periodic_jax as pj

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
BATCH = 128

# Data: 1,500 scans of digits, 8x8 pixels, normalised.
digits = pj.data.load("digits")
images = jnp.asarray((digits.images / 255 - digits.mean) / digits.std, jnp.float32)
labels = jnp.asarray(digits.labels)


# Network: nothing after a normalisation depends on the scale of the weights before it. So both kernels are
# scale-invariant, and the head is not.
class Net(nnx.Module):
    """Two dense layers with batch normalisation, and a linear head."""

    def __init__(self, rngs):
        """Initialise all weights."""
        plain = {"use_bias": False, "use_scale": False, "rngs": rngs}
        self.dense0 = nnx.Linear(64, 32, use_bias=False, rngs=rngs)
        self.norm0 = nnx.BatchNorm(32, **plain)
        self.dense1 = nnx.Linear(32, 32, use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(32, **plain)
        self.head = nnx.Linear(
            32, 10, kernel_init=nnx.initializers.normal(0.6), rngs=rngs
        )  # kept: its norm is about 10

    def __call__(self, x):
        """Logits of images (batch, height, width, channels)."""
        x = x.reshape(len(x), -1)
        x = nnx.relu(self.norm0(self.dense0(x)))
        x = nnx.relu(self.norm1(self.dense1(x)))
        return self.head(x)


# State: weights, running statistics and optimiser of one configuration. The labels are measured, and printed.
state = pj.create_train_state(Net, "auto", jax.random.key(0), images[:BATCH])

# Grid: learning rates side by side. SGD with coupled weight decay; the head keeps its initial weights.
lrs = [0.03, 0.3, 1.0]
hparams = pj.SweepGrid.product(lr=lrs, weight_decay=0.01).hparams()
states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(lrs)), state)


# Training: one compiled program. All configurations see the same mini-batch in each step.
@jax.jit
def train(states, hparams, images, labels):
    """Scan over steps, vmap over configurations."""

    def step(states, key):
        index = jax.random.randint(key, (BATCH,), 0, len(images))
        batch = pj.Batch(images[index], labels[index])
        return jax.vmap(pj.train_step, in_axes=(0, 0, None))(states, hparams, batch)

    return jax.lax.scan(step, states, jax.random.split(jax.random.key(1), STEPS))


states, metrics = train(states, hparams, images, labels)  # each metric: (steps, configurations)

# Plot: while the loss falls, decay shrinks the norm and so raises the effective learning rate lr/norm^2, until training
# destabilises, the norm jumps, and a new period begins.
figure, axes = plt.subplots(3, 1, sharex=True, figsize=(7, 7))
quantities = {"loss": "loss of the mini-batch", "weight_norm": "norm", "effective_lr": "effective learning rate"}
for ax, (name, label) in zip(axes, quantities.items(), strict=True):
    for i, lr in enumerate(lrs):
        ax.semilogy(np.asarray(metrics[name])[:, i], lw=0.6, label=f"learning rate {lr:g}")
    ax.set_ylabel(label)
axes[0].legend()
axes[-1].set_xlabel("step")
figure.savefig("minimal.png", dpi=150, bbox_inches="tight")
for lr, loss, norm in zip(lrs, metrics["loss"][-1], metrics["weight_norm"][-1], strict=True):
    print(f"learning rate {lr:g}: loss {loss:.3g}, norm {norm:.3g} after {STEPS} steps")
