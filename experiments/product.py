"""The product of learning rate and decay sets the period: the same product at different learning rates."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, decided, desktop, laptop, paper
from experiments.pages import spelt, table
from experiments.statistics import Estimate, slope
from periodic_jax import plots

LEAST = 4  # destabilisations of a configuration whose periods are compared
ALIKE = 1.5  # largest ratio of mean periods that is called the same
FLAT = 0.1  # largest slope on the learning rate that is called none

RUNS = {
    "laptop": {
        "run": laptop(
            lr=(0.0316, 0.1, 0.316, 1.0, 3.16), weight_decay=(0.001, 0.00316, 0.01, 0.0316, 0.1), steps=10_000,
            eval_every=250,
        ),
    },
    "desktop": {"run": desktop(lr=(0.1, 0.316, 1.0), weight_decay=(1e-3, 3.16e-3, 1e-2))},
    "paper": {"run": paper(lr=(0.003, 0.01, 0.03, 0.1, 0.3), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))},
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Groups of one product, how far their periods differ, and the fits of all periods to the product."""
    found = runs["run"]
    rows = sorted((row for _, row in reading.configurations(found)), key=lambda row: row["product"])
    groups: dict[str, list] = {}
    for row in rows:
        groups.setdefault(f"{row['product']:.1g}", []).append(row)
    for group in groups.values():
        group.sort(key=lambda row: (row["lr"], row["seed"]))
    slopes = {
        fit: [float(found[f"slope{end}"].sel(fit=fit)) for end in ("", "_low", "_high")]
        for fit in ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected", "period_length")
    }
    return {"groups": groups, "slopes": slopes, "ratios": {name: _ratio(group) for name, group in groups.items()}}


def _compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["jumps"] >= LEAST]


def _ratio(rows: list[dict[str, Any]]) -> float:
    """Longest over shortest period of the learning rates of one product, each the geometric mean over its seeds; NaN
    with fewer than two to compare.
    """
    logs: dict[float, list[float]] = {}
    for row in _compared(rows):
        logs.setdefault(row["lr"], []).append(math.log(row["mean_period"]))
    means = [float(np.mean(one)) for one in logs.values()]
    return math.exp(max(means) - min(means)) if len(means) > 1 else math.nan


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    compared = [row | {"group": name} for name, group in numbers["groups"].items() for row in _compared(group)]
    products, rates, periods = (np.log([row[name] for row in compared]) for name in ("product", "lr", "mean_period"))
    of_rate = slope(rates, periods, [row["group"] for row in compared])
    of_means = slope(products, periods)
    ratios = {name: ratio for name, ratio in numbers["ratios"].items() if math.isfinite(ratio)}
    of_product, low, high = numbers["slopes"]["period_length"]
    exact, quiet, all_falls = (
        numbers["slopes"][fit] for fit in ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected")
    )
    listed = ", ".join(f"{ratio:.2f} at {name}" for name, ratio in ratios.items()) or "-"
    return [
        Finding(
            decided(max(ratios.values(), default=0) < ALIKE, *ratios.values()),
            "Configurations of one product have periods of one length, whatever the learning rate.",
            f"Longest over shortest mean period of one product, by learning rate: {listed} (below {ALIKE} would be "
            f"called the same; configurations with {LEAST} destabilisations or more).",
        ),
        Finding(
            of_rate.near(0.0, FLAT),
            "At a given product the learning rate itself does not matter.",
            f"Among configurations of one product ln(mean period) on ln(learning rate) has the slope {spelt(of_rate)}, "
            f"over {len(compared)} networks (within {FLAT} of 0 would be called none).",
        ),
        Finding(
            decided(low <= -1 <= high, low, high),
            "The period is inversely proportional to the product.",
            f"Slope of ln(period) against ln(product): {of_product:.2f} [{low:.2f}, {high:.2f}] over all periods, most "
            f"of which are short; {spelt(of_means)} over the mean periods of {len(compared)} networks.",
        ),
        Finding(
            Estimate(*exact).near(-1.0, 0.02),
            "Falling edges are inversely proportional to the product, for a given ratio of the norms "
            "and a given rotation.",
            f"Slope {exact[0]:.3f} [{exact[1]:.3f}, {exact[2]:.3f}] of falls over ln(norm ratio) + "
            "rotation; without the "
            f"rotation {quiet[0]:.3f} [{quiet[1]:.3f}, {quiet[2]:.3f}] where gradients are quiet and "
            f"{all_falls[0]:.3f} "
            f"[{all_falls[1]:.3f}, {all_falls[2]:.3f}] over all.",
        ),
        _regimes(numbers["groups"]),
    ]


def _regimes(groups: dict[str, list[dict[str, Any]]]) -> Finding:
    """Whether learning rates of one product have one regime. Where seeds of one learning rate differ, they cannot tell
    of that product.
    """
    one, other, seeds = 0, 0, 0
    for group in groups.values():
        by_rate: dict[float, set[str]] = {}
        for row in group:
            by_rate.setdefault(row["lr"], set()).add(row["regime"])
        if len(by_rate) > 1:
            one += len(set.union(*by_rate.values())) == 1
            seeds += any(len(kinds) > 1 for kinds in by_rate.values())
            other += len(set.union(*by_rate.values())) > 1 and all(len(kinds) == 1 for kinds in by_rate.values())
    words = f"; in {seeds} the regimes differ between the seeds of one learning rate" if seeds else ""
    return Finding(
        False if other else None if seeds or not one else True,
        "The product decides the regime.",
        f"One regime in {one} of {one + other + seeds} products of two or more learning rates{words}.",
    )


def tables(numbers: Numbers) -> str:
    """Groups of one product, and the configurations in them."""
    rows = [
        [
            name, f"{row['lr']:g}", f"{row['weight_decay']:g}", f"{row['seed']:g}", row["regime"], row["jumps"],
            row["mean_period"], row["onset_elr"], row["lowest_train_loss"],
        ]
        for name, group in numbers["groups"].items()
        for row in group
    ]  # fmt: skip
    header = (
        "product", "learning rate", "decay", "seed", "regime", "jumps", "mean period [steps]",
        "ELR at onset (median)", "lowest training loss",
    )  # fmt: skip
    return table(header, rows)


def draw(flat: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """Period lengths against the product, and the regime map, in which a product is a diagonal."""
    yield "periods", plots.periods(found["run"])
    yield "regimes", plots.regimes(found["run"])


EXPERIMENT = Experiment(
    name="product",
    title="The product of learning rate and decay",
    claim="configurations with the same product of learning rate and decay behave alike, and the "
    "larger the product the "
    "shorter the period.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "periods": "The length of every period against the product, coloured by the learning rate. "
        "Bars: what decay alone "
        "predicts for its falling edge.",
        "regimes": "Regimes and numbers of destabilisations. Configurations of one product lie on a "
        "diagonal from the upper "
        "left to the lower right.",
    },
    limits={
        "all": (
            "All configurations of a seed start from the same weights, so from other effective learning rates: c²η and "
            "λ/c² would be the same path exactly only from weights c times as large.",
        ),
        "desktop": (SIXTEENTH,),
    },
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
