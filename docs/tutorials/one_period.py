# # One period
#
# You train one small network, find its periods, and look at one of them step by step. It takes about
# ten seconds on two CPU cores. The terms in *italics* are in the [glossary](../theory/glossary.md).
#
# ## Train
#
# `RunConfig` holds all settings of a run. Each hyperparameter is a tuple: an axis of a grid. This
# grid has one configuration, with learning rate 0.3 and weight decay 0.01. The network is a
# convolutional network of width 4, the data are scikit-learn's 1,797 handwritten digits.

import matplotlib.pyplot as plt

import periodic_jax as pj

config = pj.RunConfig(out="runs/one-period", lr=(0.3,), weight_decay=(1e-2,), steps=2000)
run = pj.run_sweep(config)

# ## Find the destabilisations
#
# `run.analysis` is an [xarray](https://docs.xarray.dev) Dataset that names the *regime* of each
# configuration and lists its *destabilisations*: the steps at which the weight norm begins to grow.

found = run.analysis.isel(config=0)
print("regime:", found.regime.item())
print("destabilisations:", int(found.destabilisations))
print("mean period:", round(float(found.mean_period)), "steps")
# > regime: periodic
# > destabilisations: 5
# > mean period: 365 steps

# ## Look at one period
#
# `open_run` gives the recorded trajectories: one value for every step. A period goes from one
# *onset* to the next. Cut out the steps around the last complete one.

onsets = found.onset_step.dropna("destabilisation").astype(int)
first, last = int(onsets[-2]), int(onsets[-1])
ds = pj.open_run(run)
period = ds.sel(step=slice(first - 50, last + 50))

figure, axes = plt.subplots(3, sharex=True, figsize=(7, 6), layout="constrained")
for ax, name in zip(axes, ("loss", "weight_norm", "effective_lr"), strict=True):
    period[name].plot(ax=ax, yscale="log")
    ax.set(title="", xlabel="")
    for step in (first, last):
        ax.axvline(step, color="grey", linestyle=":")
axes[-1].set_xlabel("step")
figure.savefig("one_period.png")

# ![Loss, weight norm and effective learning rate over one period](one_period.png)
#
# *Phase A*: the loss is low and the gradients are small. Weight decay shrinks the norm, so the
# *effective learning rate* rises. *Phase B*: at the dotted line the steps have become too long. The
# loss rises, and large gradients increase the norm within a few dozen steps.
#
# ## Compare with theory
#
# Without gradients, decay alone multiplies the norm by 1 - lr x decay in each step. The *rotation*
# of the weights slows the fall down by an amount that is known exactly. The ratio of the predicted
# and the measured length of the *falling edge* is close to one.

ratio = found.predicted_fall_steps / found.fall_steps
print("decay alone predicts", round(float(ratio.mean()), 2), "of the falling edge")
# > decay alone predicts 0.93 of the falling edge

# [The rotation budget](../theory/rotation_budget.md) explains the rest. Next: [a grid](grid.md).
