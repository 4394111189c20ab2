"""Do periods survive what is done in practice: trained affine layers, momentum, augmentation, "
"schedules, other networks.
"""

from collections.abc import Iterator
from typing import Any

from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, desktop, laptop, paper, small_images
from experiments.drawing import loss_and_norm
from experiments.pages import percent, table
from periodic_jax.runs.config import RunConfig

WORDS = {
    "baseline": "baseline",
    "trainable": "affine, biases, head trained",
    "momentum": "momentum 0.9",
    "augmentation": "crops and flips",
    "augmentation_wide": "crops and flips, width 16",
    "cosine": "cosine schedule",
    "steps": "default schedule",
    "width_2": "width 2",
    "width_8": "width 8",
    "width_64": "width 64",
    "depth_6": "depth 6",
    "resnet": "ResNet-18, scale-invariant",
    "resnet_plain": "ResNet-18, momentum, trained",
    "resnet_all": "ResNet-18, augmented too",
    "cifar10_affine": "CIFAR-10, affine, trained",
    "cifar10": "CIFAR-10, augmented too",
    "cifar100": "CIFAR-100",
}

SAID = {
    "resnet_plain": "ResNet-18, momentum, all trained",
    "trainable": "affine normalisation, biases and head trained",
    "resnet_all": "ResNet-18, momentum, augmentation, all trained",
    "cifar10": "CIFAR-10, augmentation, affine normalisation and head trained",
    "cifar10_affine": "CIFAR-10, affine normalisation and head trained",
}


def _usual(**settings: Any) -> RunConfig:
    return laptop(**({"lr": (0.1, 0.3), "weight_decay": (1e-2,), "steps": 8000} | settings))


def _desktop(**settings: Any) -> RunConfig:
    return desktop(**({"lr": (0.1, 0.3), "weight_decay": (3e-3,), "epochs": 350} | settings))


def _paper(**settings: Any) -> RunConfig:
    return paper(**({"lr": (0.03,)} | settings))


RUNS = {
    "laptop": {
        "baseline": _usual(),
        "trainable": _usual(model="ConvNet", noninvariant_lr=(-1.0,)),
        "momentum": _usual(lr=(0.01, 0.03), momentum=(0.9,)),
        "augmentation": _usual(augment=True),
        "cosine": _usual(schedule="cosine"),
        "steps": _usual(schedule="default"),
        "width_2": _usual(width=2),
        "width_8": _usual(width=8),
        "depth_6": _usual(depth=6),
        "resnet": _usual(model="ResNet18SI", lr=(0.3,), steps=6000),
        "resnet_all": _usual(
            model="ResNet18", noninvariant_lr=(-1.0,), lr=(0.03,), momentum=(0.9,), augment=True, steps=6000
        ),
        "resnet_plain": _usual(model="ResNet18", noninvariant_lr=(-1.0,), lr=(0.03,), momentum=(0.9,), steps=6000),
        "augmentation_wide": _usual(lr=(0.03, 0.1), width=16, augment=True),
        "cifar10_affine": small_images(
            lr=(0.1, 0.3), weight_decay=(1e-2,), steps=6000, eval_every=300, noninvariant_lr=(-1.0,),
            model="ConvNetSIAf",
        ),
        "cifar10": small_images(
            lr=(0.1, 0.3), weight_decay=(1e-2,), steps=6000, eval_every=300, augment=True, momentum=(0.0,),
            noninvariant_lr=(-1.0,), model="ConvNetSIAf",
        ),
    },
    "desktop": {
        "baseline": _desktop(),
        "trainable": _desktop(model="ConvNet", noninvariant_lr=(-1.0,)),
        "momentum": _desktop(lr=(0.01, 0.03), momentum=(0.9,)),
        "augmentation": _desktop(augment=True),
        "cosine": _desktop(schedule="cosine"),
        "steps": _desktop(schedule="default"),
        "depth_6": _desktop(depth=6, lr=(0.3,)),
    },
    "paper": {
        "baseline": _paper(),
        "trainable": _paper(model="ConvNet", noninvariant_lr=(-1.0,)),
        "momentum": _paper(lr=(0.003,), momentum=(0.9,)),
        "augmentation": _paper(augment=True),
        "cosine": _paper(schedule="cosine"),
        "steps": _paper(schedule="default"),
        "width_8": _paper(width=8),
        "width_64": _paper(width=64),
        "depth_6": _paper(depth=6),
        "resnet": _paper(model="ResNet18SI"),
        "resnet_all": _paper(lr=(0.003,), model="ResNet18", noninvariant_lr=(-1.0,), momentum=(0.9,), augment=True),
        "cifar100": _paper(dataset="cifar100"),
    },
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Of each configuration of each run what every page tells, and how often its loss burst."""
    return {
        name: [row | {"bursts": int(found.loss_bursts.values[i])} for i, row in reading.configurations(found)]
        for name, found in runs.items()
    }


def findings(numbers: Numbers) -> list[Finding]:
    """One for each practice: whether there are periods at one of its learning rates with every seed, or nowhere."""
    found = []
    for name, words in WORDS.items():
        if name not in numbers:
            continue
        rates = sorted({row["lr"] for row in numbers[name]})
        groups = {lr: [row for row in numbers[name] if row["lr"] == lr] for lr in rates}
        counted = "; ".join(_counted(lr, rows) for lr, rows in groups.items())
        claim = f"Periods with {SAID.get(name, words)}." if name != "baseline" else "The baseline is periodic."
        counts = [[reading.most_often(row) for row in rows] for rows in groups.values()]
        with_every_seed, somewhere = max(map(min, counts)) > 1, max(map(max, counts)) > 1
        holds = True if with_every_seed else None if somewhere else False
        found.append(Finding(holds, claim, f"Destabilisations: {counted}."))
    return found


def _counted(lr: float, rows: list[dict[str, Any]]) -> str:
    """Destabilisations of each seed at a learning rate, and its regime: once, where all seeds have the same."""
    counts = ", ".join(str(reading.most_often(row)) for row in rows)
    regimes = [row["regime"] for row in rows]
    return f"{counts} at {lr:g} ({', '.join(regimes if len(set(regimes)) > 1 else regimes[:1])})"


def tables(numbers: Numbers) -> str:
    """All runs."""
    rows = [
        [
            words, f"{row['lr']:g}", f"{row['product']:g}", f"{row['seed']:g}", row["regime"], row["jumps"],
            row["bursts"], row["mean_period"], row["onset_elr"], row["lowest_train_loss"],
            percent(row["lowest_test_error"]), row["weight_norm"],
        ]
        for name, words in WORDS.items()
        for row in numbers.get(name, [])
    ]  # fmt: skip
    header = (
        "practice", "learning rate", "lr x decay / (1 - momentum)", "seed", "regime", "jumps", "bursts",
        "mean period [steps]", "ELR at onset (median)", "lowest training loss", "lowest test error", "norm (median)",
    )  # fmt: skip
    return table(header, rows)


def draw(flat: Runs, _: Runs) -> Iterator[tuple[str, Figure]]:
    """A panel for each run."""
    panels = {WORDS[name]: flat[name] for name in WORDS if name in flat}
    yield "runs", loss_and_norm(panels, columns=min(5, -(-len(panels) // 2)))


EXPERIMENT = Experiment(
    name="practice",
    title="Periods in practice",
    claim="periods appear in practical settings too: with trained affine normalisation and head, "
    "momentum, augmentation "
    "and schedules, in networks of other widths and depths, in ResNet-18, and on CIFAR-100.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "runs": "Mini-batch loss (grey, medians of short stretches) and weight norm (black) at the lower learning rate."
    },
    limits={
        "all": (
            "Practices one by one, at one decay.",
            reading.BURSTS,
            "Where no weight is marked scale-invariant (biases before the normalisation, ResNet-18 as it is), the norm "
            "of all weights stands for theirs, and their angle is not recorded. That norm may hardly rise at a "
            "destabilisation: there the loss tells.",
        ),
        "laptop": (
            "CIFAR-100: its data were not at hand. It is declared at the paper's scale only.",
            "Crops shift an image by up to 4 pixels whatever its size, half of it at 8x8 and an eighth at 32x32: with "
            "them no network here fits its data (see the training losses), and one that does not fit has no periods.",
            "One seed, mostly on 8x8 digits; ResNet-18 has width 4 here.",
        ),
        "desktop": (
            SIXTEENTH,
            "Crops shift an image by up to 4 pixels whatever its size, a quarter of it at 16x16: with them the network "
            "does not fit its data (see the training losses), and one that does not fit has no periods.",
            "8,050 steps. At a learning rate of 0.1 the decay takes 3,333 of them to shrink the norm by a factor of e, "
            "so that few periods fit.",
            "No ResNet-18 and no CIFAR-100.",
        ),
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
