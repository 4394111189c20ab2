"""What the periods need: decay and a free norm; and what they do not: frozen other weights."""

from collections.abc import Callable, Iterator
from typing import Any

from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Branch, Experiment, Finding, Numbers, Runs, desktop, laptop, paper
from experiments.drawing import loss_and_norm
from experiments.pages import percent, table
from periodic_jax.runs.config import RunConfig

WORDS = {
    "baseline": "baseline: frozen head, no affine",
    "no_decay": "without decay",
    "fixed_norm": "norm held from the start",
    "trainable_head": "head trained too",
    "frozen_affine": "affine BN, frozen",
    "trainable_affine": "affine BN and head trained",
    "decay_off": "decay switched off half-way",
    "norm_held": "norm held half-way",
}
FROZEN = (
    "Affine normalisation is frozen at scales of 1 and shifts of 0, where it computes what the baseline does, up to "
    "rounding: that its periods stay is no finding."
)


def _runs(start: Callable[..., RunConfig], step: int, **settings: Any) -> dict[str, RunConfig | Branch]:
    return {
        "baseline": start(keep_every=step, **settings),
        "no_decay": start(**settings | {"weight_decay": (0.0,)}),
        "fixed_norm": start(fixed_norm=(-1.0,), **settings),
        "trainable_head": start(noninvariant_lr=(-1.0,), **settings),
        "frozen_affine": start(model="ConvNetSIAf", **settings),
        "trainable_affine": start(model="ConvNetSIAf", noninvariant_lr=(-1.0,), **settings),
        "decay_off": Branch("baseline", step, change={"weight_decay": (0.0,)}),
        "norm_held": Branch("baseline", step, change={"fixed_norm": (-1.0,)}),
    }


RUNS = {
    "laptop": _runs(laptop, 6000, lr=(0.1,), weight_decay=(1e-2,), seed=(0, 1), steps=10_000),
    "desktop": _runs(desktop, 8050, lr=(0.1,), weight_decay=(1e-2,)),
    "paper": _runs(paper, 117_000, lr=(0.03,), weight_decay=(1e-3,)),
}


def measure(runs: Runs) -> Numbers:
    """Of each seed of each run what every page tells, how often the loss burst, where the norm ended, and where the
    effective learning rate began.
    """
    return {
        name: [
            row
            | {
                "bursts": int(found.loss_bursts.values[i]),
                "last_norm": float(found.final_weight_norm.values[i]),
                "from_step": found.attrs["first_step"],
                "first_elr": float(found.sampled_effective_lr.values[i, 0]),
            }
            for i, row in reading.configurations(found)
        ]
        for name, found in runs.items()
    }


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    counts = {name: ", ".join(str(row["jumps"]) for row in rows) for name, rows in numbers.items()}
    found = [
        Finding(
            all(row["jumps"] > 1 for row in numbers["baseline"]),
            "The baseline is periodic.",
            f"Destabilisations by seed: {counts['baseline']}.",
        )
    ]
    bursts = {name: ", ".join(str(row["bursts"]) for row in rows) for name, rows in numbers.items()}
    for name, claim in (
        ("no_decay", "Without decay there are no periods."),
        ("fixed_norm", "With the norm held at its start there are no periods."),
        ("decay_off", "Where decay is switched off in the midst of a periodic run, the periods end."),
        ("norm_held", "Where the norm is held in the midst of a periodic run, the periods end."),
    ):
        rows = numbers[name]
        words = f"Bursts of the loss by seed: {bursts[name]}, of the baseline: {bursts['baseline']}"
        if rows[0]["from_step"]:
            elrs = " and ".join(f"{row['first_elr']:.2g}" for row in rows)
            words += f"; from step {rows[0]['from_step']:,} on, begun at effective learning rates of {elrs}"
        quiet = all(reading.most_often(row) <= 1 for row in rows)
        found.append(Finding(quiet, claim, words + "."))
    for name, claim in (
        ("trainable_head", "Periods stay where the head is trained too."),
        ("trainable_affine", "Periods stay where affine normalisation and the head are trained too."),
    ):
        rows = numbers[name]
        words = f"Destabilisations by seed: {counts[name]}, of the baseline: {counts['baseline']}."
        found.append(Finding(all(row["jumps"] > 1 for row in rows), claim, words))
    return found


def tables(numbers: Numbers) -> str:
    """All runs and seeds."""
    rows = [
        [
            WORDS[name], f"{row['seed']:.0f}", row["regime"], row["jumps"], row["bursts"], row["mean_period"],
            row["onset_elr"], row["lowest_train_loss"], row["final_train_loss"], percent(row["lowest_test_error"]),
            row["last_norm"],
        ]
        for name in WORDS
        for row in numbers[name]
    ]  # fmt: skip
    header = (
        "run", "seed", "regime", "jumps", "bursts", "mean period [steps]", "ELR at onset (median)",
        "lowest training loss", "at the end", "lowest test error", "norm at the end",
    )  # fmt: skip
    return table(header, rows)


def draw(flat: Runs, _: Runs) -> Iterator[tuple[str, Figure]]:
    """A panel for each run."""
    yield "runs", loss_and_norm({WORDS[name]: flat[name] for name in WORDS})


EXPERIMENT = Experiment(
    name="ablations",
    title="Ablations: decay, a free norm, other weights",
    claim="the periods come from the interplay of decay and a free norm of scale-invariant weights: "
    "without either there "
    "are none, and they stay where the other weights are trained.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={"runs": "Mini-batch loss (grey, medians of short stretches) and weight norm (black) of the first seed."},
    limits={"all": (FROZEN, reading.BURSTS), "laptop": ("Two seeds.",), "desktop": (SIXTEENTH,)},
)

if __name__ == "__main__":
    main(EXPERIMENT)
