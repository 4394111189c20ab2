from experiments.declare import Experiment, laptop, paper

RUNS = {
    "laptop": {
        "run": laptop(
            lr=(0.0316, 0.1, 0.316, 1.0, 3.16),
            weight_decay=(0.001, 0.00316, 0.01, 0.0316, 0.1),
            steps=10_000,
            eval_every=250,
        ),
    },
    "paper": {"run": paper(lr=(0.003, 0.01, 0.03, 0.1, 0.3), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))},
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="product",
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
