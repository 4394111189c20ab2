from experiments.declare import Branch, Experiment, laptop, paper

SEEDS = (0, 1)
RUNS = {
    "laptop": {
        "baseline": laptop(lr=(0.1,), weight_decay=(1e-2,), seed=SEEDS, steps=10_000, keep_every=4000),
        "no_decay": laptop(lr=(0.1,), weight_decay=(0.0,), seed=SEEDS, steps=10_000),
        "fixed_norm": laptop(lr=(0.1,), weight_decay=(1e-2,), fixed_norm=(-1.0,), seed=SEEDS, steps=10_000),
        "trainable_head": laptop(lr=(0.1,), weight_decay=(1e-2,), noninvariant_lr=(-1.0,), seed=SEEDS, steps=10_000),
        "trainable_affine": laptop(
            model="ConvNetSIAf", lr=(0.1,), weight_decay=(1e-2,), noninvariant_lr=(-1.0,), seed=SEEDS, steps=10_000
        ),
        "frozen_affine": laptop(model="ConvNetSIAf", lr=(0.1,), weight_decay=(1e-2,), seed=SEEDS, steps=10_000),
        "decay_off": Branch("baseline", 4000, change={"weight_decay": (0.0,)}),
        "norm_held": Branch("baseline", 4000, change={"fixed_norm": (-1.0,)}),
    },
    "paper": {
        "baseline": paper(lr=(0.03,), weight_decay=(1e-3,), keep_every=39_000),
        "no_decay": paper(lr=(0.03,), weight_decay=(0.0,)),
        "fixed_norm": paper(lr=(0.03,), weight_decay=(1e-3,), fixed_norm=(-1.0,)),
        "trainable_head": paper(lr=(0.03,), weight_decay=(1e-3,), noninvariant_lr=(-1.0,)),
        "trainable_affine": paper(model="ConvNetSIAf", lr=(0.03,), weight_decay=(1e-3,), noninvariant_lr=(-1.0,)),
        "frozen_affine": paper(model="ConvNetSIAf", lr=(0.03,), weight_decay=(1e-3,)),
        "decay_off": Branch("baseline", 117_000, change={"weight_decay": (0.0,)}),
        "norm_held": Branch("baseline", 117_000, change={"fixed_norm": (-1.0,)}),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="ablations",
    title="T",
    claim="C",
    runs=RUNS,
    measure=lambda r: {},
    findings=lambda n: [],
    tables=lambda n: "",
    draw=lambda a, b: [],
    captions={},
)
if __name__ == "__main__":
    main(EXPERIMENT)
