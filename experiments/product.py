"""The product of learning rate and decay sets the period: the same product at different learning rates."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, decided, desktop, laptop, paper
from experiments.pages import table
from periodic_jax import plots

LEAST = 4  # destabilisations of a configuration whose periods are compared
ALIKE = 1.5  # largest ratio of mean periods that is called the same

RUNS = {
    "laptop": {
        "run": laptop(
            lr=(0.0316, 0.1, 0.316, 1.0, 3.16), weight_decay=(0.001, 0.00316, 0.01, 0.0316, 0.1), steps=10_000,
            eval_every=250,
        ),
    },
    "desktop": {"run": desktop(lr=(0.03, 0.1, 0.3, 1.0), weight_decay=(3e-4, 1e-3, 3e-3, 1e-2))},
    "paper": {"run": paper(lr=(0.003, 0.01, 0.03, 0.1, 0.3), weight_decay=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))},
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Groups of one product, and the fit of ln(mean period) on ln(product) and ln(learning rate) together."""
    found = runs["run"]
    rows = [row for _, row in reading.configurations(found)]
    groups: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: (row["product"], row["lr"])):
        groups.setdefault(f"{row['product']:.1g}", []).append(row)
    compared = [row for row in rows if row["jumps"] >= LEAST]
    logs = {name: np.log([row[name] for row in compared]) for name in ("product", "lr")}
    fits = {
        fit: [float(found[f"slope{end}"].sel(fit=fit)) for end in ("", "_low", "_high")]
        for fit in ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected", "period_length")
    }
    return {
        "groups": groups,
        "fit": dict.fromkeys(logs, [math.nan] * 2)
        if len(compared) < LEAST
        else reading.fit(logs, np.log([row["mean_period"] for row in compared])),
        "compared": len(compared),
        "slopes": fits,
        "ratios": {name: _ratio(group) for name, group in groups.items()},
    }


def _ratio(rows: list) -> float:
    """Longest over shortest mean period of configurations of one product; NaN with fewer than two to compare."""
    periods = [row["mean_period"] for row in rows if row["jumps"] >= LEAST]
    return max(periods) / min(periods) if len(periods) > 1 else math.nan


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    (on_product, error), (on_lr, lr_error) = numbers["fit"]["product"], numbers["fit"]["lr"]
    ratios = {name: ratio for name, ratio in numbers["ratios"].items() if math.isfinite(ratio)}
    slope, low, high = numbers["slopes"]["period_length"]
    regimes = {name: {row["regime"] for row in group} for name, group in numbers["groups"].items() if len(group) > 1}
    same = sum(len(kinds) == 1 for kinds in regimes.values())
    exact, quiet, all_falls = (
        numbers["slopes"][fit] for fit in ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected")
    )
    listed = ", ".join(f"{ratio:.2f} at {name}" for name, ratio in ratios.items()) or "-"
    return [
        Finding(
            decided(max(ratios.values(), default=0) < ALIKE, *ratios.values()),
            "Configurations of one product have periods of one length, whatever the learning rate.",
            f"Longest over shortest mean period of one product: {listed} (below {ALIKE} would be called the same; "
            f"configurations with {LEAST} destabilisations or more).",
        ),
        Finding(
            decided(abs(on_lr) < 2 * lr_error or abs(on_lr) < 0.1, on_lr, lr_error),
            "At a given product the learning rate itself does not matter.",
            f"Mean period ~ product^{on_product:.2f} (± {error:.2f}) x learning rate^{on_lr:.2f} (± {lr_error:.2f}), "
            f"{numbers['compared']} configurations.",
        ),
        Finding(
            decided(low <= -1 <= high, low, high),
            "The period is inversely proportional to the product.",
            f"Slope of ln(period) against ln(product): {slope:.2f} [{low:.2f}, {high:.2f}].",
        ),
        Finding(
            decided(abs(exact[0] + 1) < 0.02 and abs(quiet[0] + 1) < 0.05, exact[0], quiet[0]),
            "Falling edges are inversely proportional to the product, for a given ratio of the norms "
            "and a given rotation.",
            f"Slope {exact[0]:.3f} [{exact[1]:.3f}, {exact[2]:.3f}] of falls over ln(norm ratio) + "
            "rotation; without the "
            f"rotation {quiet[0]:.3f} [{quiet[1]:.3f}, {quiet[2]:.3f}] where gradients are quiet and "
            f"{all_falls[0]:.3f} "
            f"[{all_falls[1]:.3f}, {all_falls[2]:.3f}] over all.",
        ),
        Finding(
            same == len(regimes),
            "The product decides the regime.",
            f"One regime in {same} of {len(regimes)} groups of two or more configurations of one product.",
        ),
    ]


def tables(numbers: Numbers) -> str:
    """Groups of one product, and the configurations in them."""
    rows = [
        [
            name, f"{row['lr']:g}", f"{row['weight_decay']:g}", row["regime"], row["jumps"], row["mean_period"],
            row["onset_elr"], row["lowest_train_loss"],
        ]
        for name, group in numbers["groups"].items()
        for row in group
    ]  # fmt: skip
    header = (
        "product", "learning rate", "decay", "regime", "jumps", "mean period [steps]", "ELR at onset (median)",
        "lowest training loss",
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
            "All configurations start from the same weights, so from other effective learning rates: c²η and λ/c² "
            "would be the same path exactly only from weights c times as large.",
        )
    },
)  # fmt: skip

if __name__ == "__main__":
    main(EXPERIMENT)
