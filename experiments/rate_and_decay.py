"""Periodic behaviour against the learning rate at a fixed decay, and against the decay at a fixed learning rate."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, desktop, paper, small_images
from experiments.drawing import four_panels
from experiments.pages import cell, percent, spelt, table
from experiments.statistics import slope, trend

ORDER = ("converging", "periodic", "equilibrium")
NAMES = {"lr": "learning rate", "weight_decay": "decay"}
SWEPT = {"rates": "lr", "decays": "weight_decay"}
PARTS = {"rates": ("rates", "high_rate", "low_rate"), "decays": ("decays",)}  # the runs of each axis
UNFITTED = "all_images"  # the run on more images than its network can fit
EPOCH = 390  # steps
# As read off the paper's figure, ±5 epochs and ±5 %, at decay 1e-3, by learning rate.
PAPER = {
    0.001: {"jumps": "0", "test error": "29"},
    0.01: {
        "jumps": "4", "mean gap [epochs]": "220", "lowest loss": "2.7e-3 to 1.5e-4",
        "test error": "24.4, 21.3, 17.3, 16.9, 18.5", "ELR at onset": "2.1e-4 to 3.3e-3",
    },
    0.03: {
        "jumps": "15", "mean gap [epochs]": "64", "lowest loss": "3.5e-3 to 3.5e-4",
        "test error": "21, 19, 16.5, 15.6", "ELR at onset": "5e-4 to 3.1e-3",
    },
    1.0: {"jumps": "-", "norm": "33.5", "test error": "23 to 50"},
}  # fmt: skip

RUNS = {
    "laptop": {
        "rates": small_images(lr=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0), weight_decay=(1e-2,), steps=8000, eval_every=160),
        "decays": small_images(
            lr=(0.3,), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2), steps=8000, eval_every=160
        ),
    },
    "desktop": {
        "rates": desktop(lr=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), weight_decay=(1e-3,)),
        "decays": desktop(lr=(0.1,), weight_decay=(1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
        UNFITTED: desktop(
            lr=(0.03, 0.3), weight_decay=(1e-3,), seed=(0,), use_data_size=None, epochs=150, eval_every=1170
        ),
    },
    # In the precision that the reference has on a GPU.
    "paper": {
        "rates": paper(lr=(0.01, 0.03), weight_decay=(1e-3,), precision="tf32"),
        "high_rate": paper(lr=(1.0,), weight_decay=(1e-3,), precision="tf32", epochs=60),
        "low_rate": paper(lr=(0.001,), weight_decay=(1e-3,), precision="tf32"),
        "decays": paper(lr=(0.03,), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), precision="tf32"),
    },
}


def measure(runs: Runs) -> Numbers:
    """Of each configuration what every page tells, the minima and test errors of its periods, and equilibrium norms."""
    numbers: Numbers = {}
    for name, axis in SWEPT.items():
        rows = [row for part in PARTS[name] if part in runs for row in _rows(runs[part])]
        numbers[name] = sorted(rows, key=lambda row: (row[axis], row["seed"]))
    if UNFITTED in runs:
        numbers[UNFITTED] = _rows(runs[UNFITTED])
    return numbers


def _rows(found: xr.Dataset) -> list[dict[str, Any]]:
    return [
        row
        | {
            "steps": int(found.steps.values[i]),
            "minima": reading.of(found, "lowest_loss", i),
            "plateaus": reading.of(found, "period_lowest_test_error", i),
            "onset_elrs": reading.of(found, "onset_effective_lr", i),
            "equilibrium_norm": float(found.equilibrium_weight_norm.values[i]),
            "measured_norm": float(found.measured_weight_norm.values[i]),
        }
        for i, row in reading.configurations(found)
    ]


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim, for each axis that was run."""
    found = []
    for name, axis in SWEPT.items():
        if numbers[name]:
            found += [_regimes(numbers[name], axis), _counts(numbers[name], axis)]
    found += [_minima(numbers), _plateaus(numbers), _equilibrium(numbers)]
    return [*found, _unfitted(numbers[UNFITTED])] if UNFITTED in numbers else found


def _unfitted(rows: list[dict[str, Any]]) -> Finding:
    """Whether there are periods where there are too many images for the network."""
    losses = "; ".join(f"{row['lr']:g}: {row['regime']}, {cell(row['lowest_train_loss'])}" for row in rows)
    return Finding(
        all(row["regime"] == "equilibrium" and not row["jumps"] for row in rows),
        "Where the images are too many for the network to fit, there are no periods but an equilibrium.",
        f"Regime and lowest training loss on all 50,000 images, by learning rate: {losses}.",
    )


def _regimes(rows: list[dict[str, Any]], axis: str) -> Finding:
    """Whether one slow descent, periods and an equilibrium follow each other, for every seed."""
    known = [row for row in rows if row["regime"] in ORDER]
    place = [
        [ORDER.index(row["regime"]) for row in known if row["seed"] == seed] for seed in {row["seed"] for row in rows}
    ]
    listed = "; ".join(f"{value:g}: {', '.join(kinds)}" for value, kinds in _by(rows, axis, "regime").items())
    ordered = all(one == sorted(one) for one in place)
    complete = {row["regime"] for row in rows} >= set(ORDER)
    return Finding(
        ordered and (complete or None),
        f"As the {NAMES[axis]} grows, one slow descent gives way to periods, and these to an equilibrium.",
        listed + ".",
    )


def _counts(rows: list[dict[str, Any]], axis: str) -> Finding:
    """Whether there are more destabilisations the larger the axis, among periodic configurations of one length."""
    periodic = [row for row in rows if row["regime"] == "periodic"]
    counts = _by(periodic, axis, "jumps")
    grows = slope(np.log([row[axis] for row in periodic]), [row["jumps"] for row in periodic])
    listed = "; ".join(f"{value:g}: {', '.join(map(str, one))}" for value, one in counts.items())
    more = "" if math.isnan(grows.value) else f" By a factor of e in the {NAMES[axis]}: {spelt(grows)} more."
    return Finding(
        {1: True, -1: False, None: None}[grows.sign()],
        f"The larger the {NAMES[axis]}, the more periods.",
        f"Destabilisations at the periodic {NAMES[axis]}s: {listed or 'none is periodic'}.{more}",
    )


def _by(rows: list[dict[str, Any]], axis: str, what: str) -> dict[float, list[Any]]:
    """For each value of an axis what its configurations have."""
    found: dict[float, list[Any]] = {}
    for row in rows:
        found.setdefault(row[axis], []).append(row[what])
    return found


def _all(numbers: Numbers) -> list[dict[str, Any]]:
    """Of both axes, each configuration once: where they cross, both have it."""
    rows = [row for run in SWEPT for row in numbers[run]]
    return list({(row["lr"], row["weight_decay"], row["seed"]): row for row in rows}.values())


def _minima(numbers: Numbers) -> Finding:
    """Whether later minima are deeper."""
    rows = [row for row in _all(numbers) if len(row["minima"]) > 1]
    deeper = sum(row["minima"][-1] < row["minima"][0] for row in rows)
    change = trend([np.log(row["minima"]) for row in rows])
    return Finding(
        {1: False, -1: True, None: None}[change.sign()],
        "The minima of the training loss get deeper from period to period (paper, learning rate "
        "0.01: 2.7e-3 to 1.5e-4).",
        f"From one period to the next ln(lowest mini-batch loss) changes by {spelt(change)}; the last fall reached a "
        f"lower loss than the first one in {deeper} of {len(rows)} configurations with two or more destabilisations.",
    )


def _plateaus(numbers: Numbers) -> Finding:
    """Whether the test error of later periods is lower."""
    rows = [row for row in _all(numbers) if len(row["plateaus"]) > 1]
    change = trend([100 * np.array(row["plateaus"]) for row in rows])
    pairs = "; ".join(f"{percent(row['plateaus'][0])} to {percent(row['plateaus'][-1])}" for row in rows)
    return Finding(
        {1: False, -1: True, None: None}[change.sign()],
        "The test error of the plateaus falls from period to period (paper, learning rate 0.03: 21 to 15.6 %).",
        f"From one period to the next the lowest test error changes by {spelt(change)} points. First and last whole "
        f"period: {pairs or 'none has two'}.",
    )


def _equilibrium(numbers: Numbers) -> Finding:
    """Whether the equilibrium is where the gradients put it."""
    rows = [row for row in _all(numbers) if row["regime"] == "equilibrium"]
    ratios = [row["measured_norm"] / row["equilibrium_norm"] for row in rows]
    return Finding(
        max(abs(ratio - 1) for ratio in ratios) < 0.05 if ratios else None,
        "In equilibrium the norm is that at which gradients and decay balance, ρ⁴ = ηG²/(λ(2-ηλ)).",
        f"Measured over predicted norm: {', '.join(f'{ratio:.3f}' for ratio in ratios) or 'no equilibrium'}.",
    )


def tables(numbers: Numbers) -> str:
    """A table for each axis; where the rates are the paper's, one beside its figure."""
    parts = []
    header = [
        "learning rate", "decay", "seed", "product", "regime", "jumps", "mean period [steps]", "ELR at onset (median)",
        "lowest loss, first fall", "last fall", "test error, first period", "last period",
        "training loss at the end", "test error at the end", "norm (median)",
    ]  # fmt: skip
    titles = {name: f"Against the {NAMES[axis]}" for name, axis in SWEPT.items()} | {UNFITTED: "On all 50,000 images"}
    for name, title in titles.items():
        if numbers.get(name):
            rows = [
                [
                    f"{row['lr']:g}", f"{row['weight_decay']:g}", f"{row['seed']:g}", f"{row['product']:g}",
                    row["regime"], row["jumps"], row["mean_period"], row["onset_elr"], *_ends(row["minima"]),
                    *map(percent, _ends(row["plateaus"])), row["final_train_loss"],
                    percent(row["final_test_error"]), row["weight_norm"],
                ]
                for row in numbers[name]
            ]  # fmt: skip
            parts += [f"### {title}", table(header, rows)]
    if all(row["lr"] in PAPER and row["weight_decay"] == 1e-3 for row in numbers["rates"]):
        parts += ["### Beside the paper's figure", _beside(numbers["rates"])]
    return "\n\n".join(parts)


def _ends(values: list[float]) -> tuple[float | None, float | None]:
    return (values[0], values[-1]) if len(values) else (None, None)


def _beside(rows: list[dict[str, Any]]) -> str:
    """What the paper's figure shows of each learning rate, here and there."""
    lines = []
    for row in rows:
        errors = [f"{100 * error:.1f}" for error in row["plateaus"]] or [f"{100 * row['final_test_error']:.1f}"]
        here = {
            "epochs": f"{row['steps'] / EPOCH:,g}",
            "jumps": str(row["jumps"]),
            "mean gap [epochs]": cell(row["mean_period"] / EPOCH),
            "lowest loss": _range(row["minima"]) if len(row["minima"]) else cell(row["lowest_train_loss"]),
            "test error": ", ".join(errors if len(errors) < 7 else [*errors[:3], "...", *errors[-2:]]),
            "ELR at onset": f"{min(row['onset_elrs']):.2g} to {max(row['onset_elrs']):.2g}"
            if len(row["onset_elrs"]) else "-",
            "norm": cell(row["weight_norm"]),
        }  # fmt: skip
        there = {"epochs": "1,000", **PAPER[row["lr"]]}
        lines += [[f"{row['lr']:g}", "here", *here.values()], ["", "paper", *(there.get(key, "-") for key in here)]]
    names = ("epochs", "jumps", "mean gap [epochs]", "lowest loss, first and last period",
             "test error of the periods, or at the end [%]", "ELR at onset", "norm")  # fmt: skip
    return table(("learning rate", "", *names), lines)


def _range(values: list[float]) -> str:
    return f"{values[0]:.1e} to {values[-1]:.1e}"


def draw(flat: Runs, _: Runs) -> Iterator[tuple[str, Figure]]:
    """Four panels for each run."""
    for parts, axis in zip(PARTS.values(), SWEPT.values(), strict=True):
        for run in parts:
            if run in flat:
                yield run, four_panels(flat[run], axis, NAMES[axis])
    if UNFITTED in flat:
        yield UNFITTED, four_panels(flat[UNFITTED], "lr", NAMES["lr"])


EXPERIMENT = Experiment(
    name="rate_and_decay",
    title="Periods against the learning rate and against the decay",
    claim="at a fixed decay, training with a small learning rate is one slow descent, with a larger "
    "one it is periodic, "
    "the more often the larger, and with a very large one it stays in an equilibrium; so it is with "
    "the decay at a fixed "
    "learning rate.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "rates": "Learning rates at one decay: loss on the training set, test error, weight norm, and the phase "
        "diagram.",
        "high_rate": "The highest learning rate.",
        "low_rate": "The lowest learning rate.",
        "decays": "Decays at one learning rate.",
        UNFITTED: "All 50,000 images, which are too many for the network.",
    },
    limits={
        "laptop": (
            "2,000 images at 8x8 pixels and a network of width 8: the periods are there, the paper's errors are not to "
            "be expected.",
            "One seed.",
        ),
        "desktop": (
            SIXTEENTH,
            "The record of `rates` names no commit; the code was that of commit fbe693c1d9.",
        ),
        "paper": (
            "One seed, and only 60 epochs at learning rate 1: the paper's figure has its equilibrium from epoch 50 on.",
            "The records name no commit; the code was that of commit 8b63db3d1c.",
        ),
    },
    optional=frozenset({"low_rate", "decays", UNFITTED}),
)

if __name__ == "__main__":
    main(EXPERIMENT)
