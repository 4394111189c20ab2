"""Are there periods with other optimisers than SGD, and do their weights turn as the rotational equilibrium has it?"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, decided, desktop, laptop, paper
from experiments.drawing import loss_and_norm
from experiments.pages import cell, percent, spelt, table
from experiments.statistics import Estimate, mean, slope
from periodic_jax.plots.style import fit_scale
from periodic_jax.runs.config import RunConfig

WORDS = {
    "sgd": "SGD",
    "nesterov": "Nesterov's momentum",
    "sgdw": "SGD with momentum and decoupled decay",
    "adamw": "AdamW",
    "lion": "Lion",
}
DECOUPLED = ("sgdw", "adamw", "lion")
NOISY = "_noisy"  # ending of the runs in small mini-batches, which settle in an equilibrium
FIXED: dict[str, dict[str, Any]] = {
    "sgd": {},
    "nesterov": {"momentum": (0.9,)},
    "sgdw": {"momentum": (0.9,)},
    "adamw": {},
    "lion": {"beta2": (0.99,)},
}
Grids = dict[str, tuple[tuple[float, ...], tuple[float, ...]]]  # learning rates and decays
PERIODIC: Grids = {
    "sgd": ((0.1, 0.3, 1.0), (0.0, 1e-3, 1e-2)),
    "nesterov": ((0.01, 0.03, 0.1), (0.0, 1e-3, 1e-2)),
    "sgdw": ((0.03, 0.1, 0.3), (0.0, 1e-2, 3e-2)),
    "adamw": ((0.01, 0.03, 0.1), (0.0, 0.03, 0.3)),
    "lion": ((0.003, 0.01, 0.03), (0.0, 1.0, 3.0)),
}
SETTLED: Grids = {
    "sgd": ((0.1, 0.3), (0.01, 0.03)),
    "nesterov": ((0.1, 0.3), (0.01, 0.03)),
    "sgdw": ((0.1, 0.3), (0.01, 0.03)),
    "adamw": ((0.01, 0.03), (0.3, 1.0)),
    "lion": ((0.01, 0.03), (0.3, 1.0)),
}
ONE_RATE: Grids = {
    "sgd": ((1.0,), (0.0, 3e-4, 1e-3, 3e-3)),
    "nesterov": ((0.1,), (0.0, 3e-4, 1e-3, 3e-3)),
    "sgdw": ((0.1,), (0.0, 3e-3, 1e-2, 3e-2)),
    "adamw": ((0.01,), (0.0, 0.03, 0.1, 0.3)),
    "lion": ((0.003,), (0.0, 0.1, 0.3, 1.0)),
}
LARGE: Grids = {
    "sgd": ((0.1, 1.0), (0.0, 1e-3)),
    "nesterov": ((0.01, 0.1), (0.0, 1e-3)),
    "sgdw": ((0.01, 0.1), (0.0, 1e-2)),
    "adamw": ((0.003, 0.03), (0.0, 0.1)),
    "lion": ((0.001, 0.01), (0.0, 1.0)),
}


def _grids(start: Callable[..., RunConfig], grids: Grids, ending: str = "", **settings: Any) -> dict[str, RunConfig]:
    return {
        name + ending: start(optimizer=name, lr=rates, weight_decay=decays, **FIXED[name], **settings)
        for name, (rates, decays) in grids.items()
    }


RUNS = {
    "laptop": {
        **_grids(laptop, PERIODIC, seed=(0, 1, 2), steps=6000),
        **_grids(laptop, SETTLED, NOISY, seed=(0, 1, 2), steps=4000, batch_size=32),
    },
    "desktop": {
        **_grids(desktop, ONE_RATE, epochs=350),
        **_grids(desktop, SETTLED, NOISY, batch_size=32, epochs=50, eval_every=930),
    },
    "paper": {**_grids(paper, LARGE), **_grids(paper, SETTLED, NOISY, batch_size=32, epochs=30)},
}


def measure(runs: Runs) -> Numbers:
    """Of each configuration its periods, and of those in small mini-batches how they settle."""
    periods, settled = {}, {}
    for name in WORDS:
        periods[name] = [
            row | {"pace": pace(name, row), "bursts": int(runs[name].loss_bursts.values[i])}
            for i, row in reading.configurations(runs[name])
        ]
        found = runs[name + NOISY]
        settled[name] = [
            row
            | {
                "angle": float(found.measured_angular_step.values[i] / found.equilibrium_angular_step.values[i]),
                "norm": float(found.measured_weight_norm.values[i] / found.equilibrium_weight_norm.values[i]),
            }
            for i, row in reading.configurations(found)
        ]
    return {"periods": periods, "settled": settled}


def pace(optimizer: str, row: dict[str, Any]) -> float:
    """The share of the norm that the decay takes in a step, in the long run.

    Example:
        >>> row = {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}
        >>> [pace(name, row).__round__(9) for name in ("nesterov", "sgdw")]
        [0.01, 0.001]
    """
    share = row["lr"] * row["weight_decay"]
    return share if optimizer in DECOUPLED else share / (1 - row["momentum"])


def findings(numbers: Numbers) -> list[Finding]:
    """Of each optimiser: whether there are periods, how long they are, and how the weights turn in equilibrium."""
    return [finding(name, numbers) for finding in (_periods, _lengths, _angle) for name in WORDS]


def _periods(name: str, numbers: Numbers) -> Finding:
    rows = numbers["periods"][name]
    groups = {(row["lr"], row["weight_decay"]): [] for row in rows}
    for row in rows:
        groups[row["lr"], row["weight_decay"]].append(row["jumps"])
    periodic = [key for key, jumps in groups.items() if key[1] and min(jumps) > 1]
    free = [reading.most_often(row) for row in rows if row["weight_decay"] == 0]
    most = max((max(jumps) for key, jumps in groups.items() if key[1]), default=0)
    with_decay, loose = sum(1 for key in groups if key[1]), sum(count > 0 for count in free)
    return Finding(
        bool(periodic) and max(free) <= 1,
        f"{WORDS[name]}: periods with decay, and none without.",
        f"{len(periodic)} of {with_decay} pairs of learning rate and decay destabilise at least twice with each seed, "
        f"up to {most} times. Without decay {loose} of {len(free)} networks destabilise, by the norm or by bursts of "
        f"the loss; the largest count is {max(free)}.",
    )


def lengths(rows: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Paces and mean periods of the periodic configurations with at least two destabilisations."""
    periodic = [row for row in rows if row["regime"] == "periodic" and row["jumps"] > 1]
    known = [(row["pace"], row["mean_period"]) for row in periodic if np.isfinite(row["mean_period"])]
    paces, periods = zip(*known, strict=True) if known else ((), ())
    return np.asarray(paces), np.asarray(periods)


def _lengths(name: str, numbers: Numbers) -> Finding:
    paces, periods = lengths(numbers["periods"][name])
    several = len(set(paces.tolist())) > 2  # a slope over two is no trend
    found = slope(np.log(paces), np.log(periods)) if several else Estimate(np.nan, np.nan, np.nan)
    return Finding(
        decided(found.low <= -1 <= found.high, found.low, found.high),
        f"{WORDS[name]}: periods are the longer the slower the decay, in inverse proportion.",
        f"ln(mean period) on ln(decay of the norm in a step) has the slope {spelt(found)}, over {len(paces)} networks; "
        f"a norm that falls by the decay alone gives -1.",
    )


def _angle(name: str, numbers: Numbers) -> Finding:
    rows = [row for row in numbers["settled"][name] if row["regime"] == "equilibrium"]
    found = mean([row["angle"] for row in rows])
    norm = mean([row["norm"] for row in rows])
    return Finding(
        found.near(1.0, 0.05),
        f"{WORDS[name]}: in equilibrium the weights turn in a step by the angle of the rotational equilibrium, within "
        f"5 %.",
        f"Measured over predicted angle {spelt(found)}, norm {spelt(norm)}, over {len(rows)} of "
        f"{len(numbers['settled'][name])} networks.",
    )


def tables(numbers: Numbers) -> str:
    """A line for each learning rate and decay, over the seeds."""
    periods = [
        [
            name, *_rate_and_decay(group), cell(group[0]["pace"]), ", ".join(row["regime"] for row in group),
            ", ".join(str(row["jumps"]) for row in group), ", ".join(str(row["bursts"]) for row in group),
            _mean(group, "mean_period"), percent(_mean(group, "lowest_test_error")),
            percent(_mean(group, "final_test_error")),
        ]
        for name in WORDS for group in _by_rate_and_decay(numbers["periods"][name])
    ]  # fmt: skip
    settled = [
        [
            name, *_rate_and_decay(group), ", ".join(row["regime"] for row in group),
            ", ".join(f"{row['angle']:.3f}" for row in group), ", ".join(f"{row['norm']:.3f}" for row in group),
        ]
        for name in WORDS for group in _by_rate_and_decay(numbers["settled"][name])
    ]  # fmt: skip
    head = (
        "optimiser", "learning rate", "decay", "decay of the norm in a step", "regimes, by seed", "jumps",
        "bursts", "mean period", "lowest test error", "at the end",
    )  # fmt: skip
    other = ("optimiser", "learning rate", "decay", "regimes, by seed", "angle / predicted", "norm / predicted")
    return "\n\n".join(["### Periods", table(head, periods), "### In small mini-batches", table(other, settled)])


def _by_rate_and_decay(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    keys = dict.fromkeys((row["lr"], row["weight_decay"]) for row in rows)
    return [[row for row in rows if (row["lr"], row["weight_decay"]) == key] for key in keys]


def _rate_and_decay(group: list[dict[str, Any]]) -> tuple[str, str]:
    return f"{group[0]['lr']:g}", f"{group[0]['weight_decay']:g}"


def _mean(group: list[dict[str, Any]], name: str) -> float:
    known = [row[name] for row in group if np.isfinite(row[name])]
    return float(np.mean(known)) if known else float("nan")


def draw(flat: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """A periodic configuration of each optimiser; lengths and angles of all."""
    panels = {}
    for name in WORDS:
        jumps, decays = found[name].destabilisations.values, found[name].weight_decay.values
        many = np.lexsort((decays == 0, np.abs(jumps - 6)))[0]  # a few periods show best
        rate, decay = (float(found[name][axis].values[many]) for axis in ("lr", "weight_decay"))
        panels[f"{name}, lr {rate:g}, decay {decay:g}"] = flat[name].isel(config=[many])
    yield "runs", loss_and_norm(panels, columns=3, norms=(0.2, 500))
    numbers = measure(found)
    figure = Figure(figsize=(9.6, 3.8))
    left, right = figure.subplots(1, 2)
    angles = []
    for name, words in WORDS.items():
        left.plot(*lengths(numbers["periods"][name]), "o", ms=4, alpha=0.7, label=words)
        rows = [i for i, row in enumerate(numbers["settled"][name]) if row["regime"] == "equilibrium"]
        settled = found[name + NOISY]
        angles.append([settled[of].values[rows] for of in ("equilibrium_angular_step", "measured_angular_step")])
        right.plot(*angles[-1], "o", ms=4, alpha=0.7)
    paces, periods = lengths([row for name in WORDS for row in numbers["periods"][name]])
    if len(paces):
        ends = np.array([paces.min(), paces.max()])
        left.plot(ends, np.exp(np.mean(np.log(paces * periods))) / ends, color="black", lw=0.8, label="slope -1")
    fit_scale(left, True, x=paces, y=periods)
    left.set(xlabel="decay of the norm in a step", ylabel="mean period [steps]")
    left.legend(fontsize=7)
    right.axline((0.1, 0.1), slope=1, color="black", lw=0.8)
    predicted, measured = np.concatenate(angles, axis=1)
    fit_scale(right, True, x=predicted, y=measured)
    right.set(xlabel="predicted angle of a step [rad]", ylabel="measured [rad]")
    yield "lengths_and_angles", figure


EXPERIMENT = Experiment(
    name="optimizers",
    title="Other optimisers: periods and rotational equilibrium",
    claim="periods need decay and scale-invariant weights, and no particular optimiser; where noise keeps training in "
    "an equilibrium, each step turns the weights by the angle that Kosson, Messmer and Jaggi (ICML 2024) derive.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "runs": "Mini-batch loss (grey, medians of short stretches) and weight norm (black) of a network with each "
        "optimiser.",
        "lengths_and_angles": "Left: mean periods of all periodic networks with at least two destabilisations, "
        "against the share of the norm that the decay takes in a step. Right: the angle of a step, measured against "
        "that of the rotational equilibrium, of all networks in equilibrium; on the line they are the same.",
    },
    limits={
        "all": (reading.BURSTS,),
        "laptop": (
            "1,500 images of digits and a network of width 4. Equilibria come from mini-batches of 32, periods from "
            "128.",
        ),
        "desktop": (
            SIXTEENTH,
            "Equilibria come from mini-batches of 32, periods from 128.",
            "One learning rate of each optimiser in the search for periods. A step of Lion is as long however small "
            "the gradient is, so that its weights turn on where those of the others rest; lower rates of Lion were not "
            "tried. Why the loss bursts with AdamW without decay was not looked into.",
        ),
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
