from experiments.declare import Experiment, small_images, paper

RUNS = {
    "laptop": {
        "rates": small_images(lr=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), weight_decay=(1e-2,), steps=8000, eval_every=160),
        "decays": small_images(
            lr=(0.3,), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), steps=8000, eval_every=160
        ),
    },
    "paper": {
        "rates": paper(lr=(0.001, 0.01, 0.03, 1.0), weight_decay=(1e-3,)),
        "decays": paper(lr=(0.03,), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="rate_and_decay",
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
