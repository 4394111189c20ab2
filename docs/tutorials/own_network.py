# # Your own network
#
# You bring a Flax network, check which of its weights are scale-invariant, and train it at three
# learning rates at once with `train_step`.
#
# ## The network
#
# Any Flax module will do whose `__call__(images, train)` returns logits. Batch normalisation follows
# the convolution, so the scale of `conv` does not change the output. The last layer is not
# normalised.

import flax.linen as nn
import jax
import jax.numpy as jnp

import periodic_jax as pj


class Net(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(16, (3, 3), use_bias=False, name="conv")(images)
        x = nn.BatchNorm(use_running_average=not train, use_bias=False, use_scale=False, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x).mean((1, 2)))


# ## The labels
#
# A tree of labels says which weights are scale-invariant. Do not trust names: `verify_labels` scales
# the weights and compares the outputs.

labels = {"conv": "scale_invariant", "head": "other"}
digits = pj.data.load_digits()
images = jnp.asarray(digits.images[:256], jnp.float32) / 255
batch = pj.Batch(images=images, labels=jnp.asarray(digits.labels[:256]))

state = pj.create_train_state(Net(), labels, jax.random.key(0), batch.images)
variables = {"params": state.params, "batch_stats": state.batch_stats}
for name, verdict in pj.models.verify_labels(Net(), variables, images, labels, tolerance=1e-2).items():
    print(name, verdict)
# > conv/kernel individually
# > head/bias not
# > head/kernel not

# The tolerance allows for the epsilon of batch normalisation, which breaks the invariance slightly.
#
# ## Train three learning rates at once
#
# `train_step` is a pure function of a state, hyperparameters and a mini-batch. `SweepGrid` makes the
# hyperparameters of a grid; `vmap` runs the step over them.

hparams = pj.SweepGrid.product(lr=[0.01, 0.1, 1.0], weight_decay=[1e-3]).hparams()
states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), state)
step = jax.jit(jax.vmap(pj.train_step, in_axes=(0, 0, None)))
for _ in range(100):
    states, metrics = step(states, hparams, batch)
for lr, norm, angle in zip(hparams.lr, metrics["weight_norm"], metrics["angular_step"], strict=True):
    print(f"lr {lr:g}: weight norm {norm:.2f}, angular step {angle:.4f} rad")
# > lr 0.01: weight norm 4.07, angular step 0.0001 rad
# > lr 0.1: weight norm 4.03, angular step 0.0013 rad
# > lr 1: weight norm 3.82, angular step 0.0280 rad

# Next: [a what-if branch](what_if.md).
