from experiments.declare import Experiment, laptop, paper, small_images

LR, DECAY = (0.1, 0.3), (1e-2,)


def usual(**s):
    return laptop(**({"lr": LR, "weight_decay": DECAY, "steps": 8000} | s))


RUNS = {
    "laptop": {
        "baseline": usual(),
        "trainable": usual(model="ConvNet", noninvariant_lr=(-1.0,)),
        "momentum": usual(lr=(0.01, 0.03), momentum=(0.9,)),
        "augmentation": usual(augment=True),
        "cosine": usual(schedule="cosine"),
        "steps": usual(schedule="default"),
        "width_2": usual(width=2),
        "width_8": usual(width=8),
        "depth_6": usual(depth=6),
        "resnet": usual(model="ResNet18SI", lr=(0.3,), steps=6000),
        "resnet_all": usual(
            model="ResNet18", noninvariant_lr=(-1.0,), lr=(0.03,), momentum=(0.9,), augment=True, steps=6000
        ),
        "cifar10": small_images(
            lr=LR,
            weight_decay=DECAY,
            steps=6000,
            eval_every=300,
            augment=True,
            momentum=(0.0,),
            noninvariant_lr=(-1.0,),
            model="ConvNetSIAf",
        ),
    },
    "paper": {
        "baseline": paper(lr=(0.03,)),
        "trainable": paper(lr=(0.03,), model="ConvNet", noninvariant_lr=(-1.0,)),
        "momentum": paper(lr=(0.003,), momentum=(0.9,)),
        "augmentation": paper(lr=(0.03,), augment=True),
        "cosine": paper(lr=(0.03,), schedule="cosine"),
        "steps": paper(lr=(0.03,), schedule="default"),
        "width_8": paper(lr=(0.03,), width=8),
        "width_64": paper(lr=(0.03,), width=64),
        "depth_6": paper(lr=(0.03,), depth=6),
        "resnet": paper(lr=(0.03,), model="ResNet18SI"),
        "resnet_all": paper(lr=(0.003,), model="ResNet18", noninvariant_lr=(-1.0,), momentum=(0.9,), augment=True),
        "cifar100": paper(lr=(0.03,), dataset="cifar100"),
    },
}

from experiments.common import main

EXPERIMENT = Experiment(
    name="practice",
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
