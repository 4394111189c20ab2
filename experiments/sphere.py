from experiments.declare import Experiment, paper, small_images

RUNS = {
    "laptop": {
        "sphere": small_images(
            lr=(1.0,),
            weight_decay=(0.0,),
            fixed_norm=(-1.0,),
            steps=5000,
            eval_every=250,
            elr=(1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 0.05, 0.1, 0.3),
        ),
        "normal": small_images(lr=(0.1, 0.3, 1.0, 3.0), weight_decay=(1e-2,), steps=8000, eval_every=160),
    },
    "paper": {
        "sphere": paper(
            lr=(1.0,),
            weight_decay=(0.0,),
            fixed_norm=(-1.0,),
            elr=(1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.05, 0.1),
        ),
        "normal": paper(lr=(0.01, 0.03, 1.0), weight_decay=(1e-3,)),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="sphere",
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
