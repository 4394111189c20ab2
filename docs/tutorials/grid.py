# # A grid in Python
#
# You train 24 configurations side by side: two learning rates, two weight decays, two momenta and
# three seeds. Then you plot the length of their periods with error bars over the seeds.
#
# ## Train the grid
#
# All combinations of the axes are trained in one compiled program. Configurations of one seed see
# the same mini-batches.

import matplotlib.pyplot as plt
import numpy as np

import periodic_jax as pj

config = pj.RunConfig(
    out="runs/grid",
    lr=(0.5, 1.0),
    weight_decay=(0.005, 0.01),
    momentum=(0.0, 0.5),
    seed=(0, 1, 2),
    width=2,
    steps=1000,
)
run = pj.run_sweep(config)

# ## Read the recorded values
#
# `open_run` gives each axis with more than one value a dimension of its own.

ds = pj.open_run(run)
print(dict(ds.loss.sizes))
print("loss, mean of the last 50 steps and of all seeds, without momentum:")
last = ds.loss.sel(momentum=0).isel(step=slice(-50, None))
print(last.mean(("step", "seed")).round(2).to_pandas())
# > {'lr': 2, 'weight_decay': 2, 'momentum': 2, 'seed': 3, 'step': 1000}
# > loss, mean of the last 50 steps and of all seeds, without momentum:
# > weight_decay  0.005  0.010
# > lr
# > 0.5            0.05   0.12
# > 1.0            0.26   0.21

# ## Plot the period length
#
# The analysis has one dimension, `config`. `set_index` and `unstack` turn it into the axes of the
# grid, as for any xarray Dataset. `stack` puts the two learning rates and decays side by side.

axes = ["lr", "weight_decay", "momentum", "seed"]
found = run.analysis.set_index(config=axes).unstack("config")
length = found.mean_period.stack(pair=["lr", "weight_decay"])
product = length.lr * length.weight_decay

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
for momentum in length.momentum.values:
    of_seeds = length.sel(momentum=momentum)
    ax.errorbar(
        product,
        of_seeds.mean("seed"),
        yerr=of_seeds.std("seed"),
        fmt="o",
        capsize=3,
        label=f"momentum {momentum:g}",
    )
ax.set(xlabel="learning rate x decay", ylabel="mean period [steps]")
ax.legend()
figure.savefig("grid.png")
print("configurations with periods:", int(np.isfinite(length).sum()), "of", length.size)
# > configurations with periods: 24 of 24

# ![Mean period against the product of learning rate and decay, for two momenta](grid.png)
#
# Without momentum, a larger product of learning rate and decay means a shorter period. At 0.005
# there are two points of each colour: 0.5 x 0.01 and 1 x 0.005. They nearly agree: see
# [what sets the period](../theory/periods.md). With momentum the periods are longer here.
#
# NaN means "not reached": a configuration without two destabilisations has no mean period.
#
# The same grid on the command line:
#
# ```bash
# periodic-jax sweep --lr 0.5 1 --weight-decay 0.005 0.01 --momentum 0 0.5 --seed 0 1 2 \
#     --width 2 --steps 1000 --out runs/grid
# ```
#
# Next: [your own network](own_network.md).
