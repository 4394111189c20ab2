from experiments.declare import Experiment, laptop, paper

RUNS = {
    "laptop": {
        "run": laptop(
            full_batch=True, use_data_size=640, lr=(0.1, 0.3, 1.0), weight_decay=(1e-2,), steps=8000, eval_every=80
        ),
    },
    "paper": {
        "run": paper(full_batch=True, lr=(0.1, 0.3, 1.0, 3.0), weight_decay=(1e-3,), epochs=10_000, eval_every=100),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="full_batch",
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
