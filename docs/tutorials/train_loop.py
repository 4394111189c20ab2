# # The minimal train loop
#
# The whole idea in one file: no run directory, no command line, one `lax.scan` over the steps and one
# `vmap` over the configurations. Take it as the start of your own experiment.
#
# ## Data and network

import jax
import jax.numpy as jnp

import periodic_jax as pj

digits = pj.data.load_digits()
images = jnp.asarray(digits.images, jnp.float32) / 255
labels = jnp.asarray(digits.labels)
model = pj.models.build("ConvNetSI", width=2)

# ## One configuration
#
# A state holds the weights, the statistics of batch normalisation, and the optimiser's momentum. It
# contains arrays only, so `scan` and `vmap` take it as it is.


def draw_batch(key):
    """128 images, drawn with replacement."""
    index = jax.random.randint(key, (128,), 0, len(images))
    return pj.Batch(images=images[index], labels=labels[index])


def train(hparams):
    """1,000 steps: the metrics of each."""
    state = pj.create_train_state(model, model.labels(), jax.random.key(0), images[:2])

    def step(state, key):
        return pj.train_step(state, hparams, draw_batch(key))

    return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 1000))[1]


# ## All configurations
#
# Every metric has the shape (configurations, steps).

hparams = pj.SweepGrid.product(lr=[0.1, 1.0], weight_decay=[1e-3, 1e-2]).hparams()
metrics = jax.jit(jax.vmap(train))(hparams)
print("weight norm:", metrics["weight_norm"].shape)
# > weight norm: (4, 1000)

# ## What it shows
#
# Where the product of learning rate and decay is small the norm only falls. Where it is large the
# norm falls and grows again. After the first 100 steps, count the steps in which it grows by more
# than a hundredth.

norm = metrics["weight_norm"][:, 100:]
bursts = (norm[:, 1:] > 1.01 * norm[:, :-1]).sum(1)
for lr, decay, count in zip(hparams.lr, hparams.weight_decay, bursts, strict=True):
    print(f"lr {lr:g}, decay {decay:g}: {count} such steps")
# > lr 0.1, decay 0.001: 0 such steps
# > lr 0.1, decay 0.01: 4 such steps
# > lr 1, decay 0.001: 2 such steps
# > lr 1, decay 0.01: 90 such steps

# `pj.run_sweep` does the same with checkpoints, evaluations, all devices and a run directory: see
# [a grid in Python](grid.md).
