"""Periodic behaviour against the learning rate at a fixed decay, and against the decay at a fixed learning rate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, paper, small_images
from experiments.drawing import four_panels
from experiments.pages import percent, table

ORDER = ("converging", "periodic", "equilibrium")
SWEPT = {"rates": "lr", "decays": "weight_decay"}
# As read off the paper's figure: jumps, equilibrium norm; by learning rate at decay 1e-3.
PAPER = {0.001: (0, None), 0.01: (4, None), 0.03: (15, None), 1.0: (None, 33.5)}

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


def measure(runs: Runs) -> Numbers:
    """Of each configuration what every page tells, its first and last minima, and equilibrium norms."""
    numbers: Numbers = {}
    for run, axis in SWEPT.items():
        rows = []
        for i, row in reading.configurations(runs[run]):
            minima = reading.of(runs[run], "lowest_loss", i)
            plateaus = reading.of(runs[run], "period_lowest_test_error", i)
            row |= {
                "first_minimum": minima[0] if len(minima) else None,
                "last_minimum": minima[-1] if len(minima) else None,
                "first_plateau": plateaus[0] if len(plateaus) else None,
                "last_plateau": plateaus[-1] if len(plateaus) else None,
                "equilibrium_norm": float(runs[run].equilibrium_weight_norm.values[i]),
                "measured_norm": float(runs[run].measured_weight_norm.values[i]),
            }
            rows.append(row)
        numbers[run] = sorted(rows, key=lambda row: row[axis])
    return numbers


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim, for both axes."""
    found = []
    for run, axis in SWEPT.items():
        rows, words = numbers[run], {"lr": "learning rate", "weight_decay": "decay"}[axis]
        regimes = [row["regime"] for row in rows]
        place = [ORDER.index(r) if r in ORDER else 99 for r in regimes]
        found.append(
            Finding(
                place == sorted(place) and set(ORDER) <= set(regimes),
                f"As the {words} grows, one slow descent gives way to periods, and these to an equilibrium.",
                "; ".join(f"{row[axis]:g}: {row['regime']}" for row in rows) + ".",
            )
        )
        periodic = [row for row in rows if row["regime"] == "periodic"]
        jumps = [row["jumps"] for row in periodic]
        found.append(
            Finding(
                len(jumps) > 1 and all(np.diff(jumps) > 0),
                f"The larger the {words}, the more periods.",
                f"Destabilisations at the periodic {words}s, ascending: {', '.join(map(str, jumps))}.",
            )
        )
    found += [_minima(numbers), _plateaus(numbers), _equilibrium(numbers)]
    return found


def _all(numbers: Numbers) -> list[dict[str, Any]]:
    return [row for run in SWEPT for row in numbers[run]]


def _minima(numbers: Numbers) -> Finding:
    """Whether later minima are deeper."""
    rows = [row for row in _all(numbers) if row["jumps"] > 1]
    deeper = sum(row["last_minimum"] < row["first_minimum"] for row in rows)
    return Finding(
        bool(rows) and deeper == len(rows),
        "The minima of the training loss get deeper from period to period (paper, learning rate "
        "0.01: 2.7e-3 to 1.5e-4).",
        f"The last fall reached a lower loss than the first one in {deeper} of {len(rows)} configurations with two or "
        "more destabilisations (mini-batch loss).",
    )


def _plateaus(numbers: Numbers) -> Finding:
    """Whether the test error of later periods is lower."""
    rows = [row for row in _all(numbers) if row["jumps"] > 2]
    lower = sum(row["last_plateau"] < row["first_plateau"] for row in rows)
    pairs = "; ".join(f"{percent(row['first_plateau'])} to {percent(row['last_plateau'])}" for row in rows)
    return Finding(
        bool(rows) and lower == len(rows),
        "The test error of the plateaus falls from period to period (paper, learning rate 0.03: 21 to 15.6 %).",
        f"Lowest test error of the first and of the last whole period: {pairs or 'none has two'}.",
    )


def _equilibrium(numbers: Numbers) -> Finding:
    """Whether the equilibrium is where the gradients put it."""
    rows = [row for row in _all(numbers) if row["regime"] == "equilibrium"]
    ratios = [row["measured_norm"] / row["equilibrium_norm"] for row in rows]
    return Finding(
        bool(ratios) and max(abs(ratio - 1) for ratio in ratios) < 0.05,
        "In equilibrium the norm is that at which gradients and decay balance, ρ⁴ = ηG²/(λ(2-ηλ)).",
        f"Measured over predicted norm: {', '.join(f'{ratio:.3f}' for ratio in ratios) or 'no equilibrium'}.",
    )


def tables(numbers: Numbers) -> str:
    """A table for each axis; at the paper's scale with the paper's numbers beside."""
    parts = []
    for run, axis in SWEPT.items():
        rows = [
            [
                f"{row['lr']:g}", f"{row['weight_decay']:g}", f"{row['product']:g}", row["regime"], row["jumps"],
                row["mean_period"], row["onset_elr"], row["first_minimum"], row["last_minimum"],
                percent(row["first_plateau"]), percent(row["last_plateau"]), row["final_train_loss"],
                percent(row["final_test_error"]), row["weight_norm"],
            ]
            for row in numbers[run]
        ]  # fmt: skip
        header = [
            "learning rate", "decay", "product", "regime", "jumps", "mean period [steps]", "ELR at onset (median)",
            "lowest loss, first fall", "last fall", "test error, first period", "last period",
            "training loss at the end", "test error at the end", "norm (median)",
        ]  # fmt: skip
        if run == "rates" and all(row["lr"] in PAPER and row["weight_decay"] == 1e-3 for row in numbers[run]):
            header += ["paper: jumps", "paper: norm"]
            rows = [[*cells, *PAPER[row["lr"]]] for cells, row in zip(rows, numbers[run], strict=True)]
        parts += [f"### Against the {'learning rate' if axis == 'lr' else 'decay'}", table(header, rows)]
    return "\n\n".join(parts)


def draw(flat: Runs, _: Runs) -> Iterator[tuple[str, Figure]]:
    """Four panels for each axis."""
    for run, axis in SWEPT.items():
        yield run, four_panels(flat[run], axis, "learning rate" if axis == "lr" else "weight decay")


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
        "rates": "Six learning rates at one decay: loss on the training set, test error, weight norm, and the phase "
        "diagram.",
        "decays": "Six decays at one learning rate.",
    },
    limits=(
        "2,000 images at 8x8 pixels and a network of width 8: the periods are there, the paper's errors are not to be "
        "expected.",
        "One seed.",
    ),
)

if __name__ == "__main__":
    main(EXPERIMENT)
