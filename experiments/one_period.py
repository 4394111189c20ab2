from experiments.declare import Experiment, laptop, paper

RUNS = {
    "laptop": {"run": laptop(lr=(0.1,), weight_decay=(1e-2,), seed=(0, 1), steps=8000, eval_every=20, per_layer=True)},
    "paper": {"run": paper(lr=(0.03,), weight_decay=(1e-3,), eval_every=390, per_layer=True)},
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="one_period",
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
