# # A what-if branch
#
# You stop a periodic run half-way, change one hyperparameter, and compare what follows: does the
# network still destabilise without weight decay?
#
# ## The parent
#
# `keep_every` keeps the checkpoints at multiples of 500 steps.

import matplotlib.pyplot as plt

import periodic_jax as pj

config = pj.RunConfig(
    out="runs/parent",
    lr=(0.3,),
    weight_decay=(1e-2,),
    width=2,
    steps=2000,
    keep_every=500,
)
parent = pj.run_sweep(config)

# ## The branch
#
# A branch begins with the weights of a checkpoint. The order of the data stays the same. Each
# changed hyperparameter is an axis again: here with decay and without.

branch = pj.branch_run(parent, "runs/branch", step=1000, change={"weight_decay": [1e-2, 0.0]})
ds = pj.open_run(branch)
print("steps:", int(ds.step[0]), "to", int(ds.step[-1]))
for decay in ds.weight_decay.values:
    norm = ds.weight_norm.sel(weight_decay=decay)
    shrinks = bool((norm.diff("step") < -1e-3 * norm[0]).any())
    print(f"decay {decay:g}: the norm", "falls and grows" if shrinks else "only grows")
# > steps: 1000 to 1999
# > decay 0: the norm only grows
# > decay 0.01: the norm falls and grows

# ## The picture

before = pj.open_run(parent)
figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
before.weight_norm.sel(step=slice(0, 1000)).plot(ax=ax, color="grey", label="parent")
for decay in ds.weight_decay.values:
    ds.weight_norm.sel(weight_decay=decay).plot(ax=ax, label=f"branch, decay {decay:g}")
ax.set(title="", yscale="log", ylabel="weight norm")
ax.legend()
figure.savefig("what_if.png")

# ![The weight norm of the parent and of two branches](what_if.png)
#
# Without decay nothing shrinks the norm: plain SGD on scale-invariant weights can only increase it,
# as [the theory](../theory/scale_invariance.md) says. The effective learning rate stays low, and no
# period begins.
#
# The same branch on the command line:
#
# ```bash
# periodic-jax branch runs/parent --step 1000 --weight-decay 0.01 0 --out runs/branch
# ```
#
# Next: [the minimal train loop](train_loop.md).
