from experiments.declare import Experiment, laptop, paper

RUNS = {
    "laptop": {
        "run": laptop(
            lr=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0),
            weight_decay=(1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1),
            steps=4000,
            eval_every=400,
        ),
    },
    "paper": {
        "run": paper(
            lr=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 10.0),
            weight_decay=(1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2),
        ),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="theory",
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
