"""One period close up, at every step: phase A, in which decay alone shrinks the norm, and phase B, the burst."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from experiments import reading
from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, decided, laptop, paper
from experiments.pages import percent, table
from periodic_jax import plots

NEAR = 0.1  # relative, to which a fall is said to take the time of decay alone

RUNS = {
    "laptop": {"run": laptop(lr=(0.1,), weight_decay=(1e-2,), seed=(0, 1), steps=8000, eval_every=20, per_layer=True)},
    "paper": {"run": paper(lr=(0.03,), weight_decay=(1e-3,), eval_every=390, per_layer=True)},
}


def rank_correlation(values: np.ndarray) -> float:
    """Spearman's, of values with their order.

    Example:
        >>> rank_correlation(np.array([1.0, 3.0, 9.0]))
        1.0
    """
    order: Any = stats.spearmanr(np.arange(len(values)), values) if len(values) > 2 else (float("nan"),)
    return float(order[0])


def middle(values: np.ndarray) -> float:
    """The median; NaN without any."""
    return float(np.median(values)) if len(values) else float("nan")


def measure(runs: Runs) -> Numbers:
    """Of all whole periods of all seeds: their phases, and what happens at their borders."""
    found, rows = runs["run"], []
    for i, row in reading.configurations(found):
        onset, end = reading.of(found, "onset_step", i), reading.of(found, "end_step", i)
        burst = end - onset
        rows.append(
            row
            | {
                "fall_over_decay": middle(
                    reading.of(found, "fall_steps", i) / reading.of(found, "predicted_fall_steps", i)
                ),
                "burst_steps": middle(burst),
                "burst_steps_share": float(burst.sum() / float(found.steps.values[i])),
                "burst_rotation_share": float(found.burst_share.values[i]),
                "loss_rise": middle(reading.of(found, "peak_loss", i) / reading.of(found, "loss_before", i)),
                "norm_rise": middle(
                    reading.of(found, "peak_weight_norm", i) / reading.of(found, "onset_weight_norm", i)
                ),
                "onset_trend": rank_correlation(reading.of(found, "onset_effective_lr", i)),
                "onset_elrs": reading.of(found, "onset_effective_lr", i),
                "recursion_violations": float(
                    found.check_violations.sel(check="norm_recursion").values[i]
                ),
            }
        )  # fmt: skip
    return {"rows": rows}


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    rows = numbers["rows"]
    off = max(abs(row["fall_over_decay"] - 1) for row in rows)
    steps, share = (max(row[n] for row in rows) for n in ("burst_steps_share", "burst_steps"))
    rotation = min(row["burst_rotation_share"] for row in rows)
    rise, norm = (min(row[n] for row in rows) for n in ("loss_rise", "norm_rise"))
    elrs = np.array([elr for row in rows for elr in row["onset_elrs"]])
    between = f"{elrs.min(initial=np.inf):.2g} and {elrs.max(initial=-np.inf):.2g}"
    trends = " and ".join(f"{row['onset_trend']:.2f}" for row in rows)
    rising = all(row["onset_trend"] > 0.5 for row in rows)
    wrong = sum(row["recursion_violations"] for row in rows)
    return [
        Finding(
            decided(off < NEAR, off),
            "In phase A the norm only decays.",
            f"Its falls take {1 + off:.2f} times the steps that they would take without any gradient (median, worse "
            f"seed; within {NEAR:.0%} is called the same).",
        ),
        Finding(
            decided(steps < 0.25, share),
            "Phase B is short.",
            f"From the lowest to the highest norm it takes {share:.0f} steps (median), in all {percent(steps)} of the "
            "training.",
        ),
        Finding(
            decided(rotation > 0.5, rotation, share),
            "The weights move in phase B.",
            f"It holds at least {percent(rotation)} of all rotation after the first third of the training.",
        ),
        Finding(
            decided(rise > 10 and norm > 1.5, rise, norm),
            "Training destabilises: the loss jumps and the norm is thrown up.",
            f"The loss rises {rise:,.0f}-fold and the norm {norm:.1f}-fold (medians, lower seed).",
        ),
        Finding(
            decided(rising, *(row["onset_trend"] for row in rows)),
            "The effective learning rate at which periods end rises from one to the next (in the paper from 2.1e-4 to "
            "3.3e-3 at learning rate 0.01, decay 0.001).",
            f"The onsets lie between {between}; rank correlation with their order: {trends} by seed "
            "(above 0.5 in all would be called rising).",
        ),
        Finding(
            wrong == 0,
            "In both phases ρ₊² = a²ρ² + η²g̃²/ρ² holds at every step, with a = 1 - ηλ.",
            f"{wrong:.0f} steps are off by more than 1e-4.",
        ),
    ]


def tables(numbers: Numbers) -> str:
    """Of the seeds, and of their onsets."""
    rows = [
        [
            f"{row['seed']:.0f}", row["jumps"], row["mean_period"], row["fall_over_decay"], row["burst_steps"],
            percent(row["burst_rotation_share"]), row["loss_rise"], row["norm_rise"],
        ]
        for row in numbers["rows"]
    ]  # fmt: skip
    header = (
        "seed", "jumps", "mean period [steps]", "fall / fall by decay alone", "phase B [steps]", "rotation in phase B",
        "loss rises by", "norm rises by",
    )  # fmt: skip
    onsets = [[f"{row['seed']:.0f}", ", ".join(f"{elr:.2g}" for elr in row["onset_elrs"])] for row in numbers["rows"]]
    return table(header, rows) + "\n\n" + table(("seed", "effective learning rate at the onsets"), onsets)


def draw(flat: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """The clearest period against the step, its loop, and the layers' norms."""
    for name, figure in (
        ("steps", plots.one_period(flat["run"], found["run"])),
        ("phases", plots.phases_of_clearest(flat["run"], found["run"])),
    ):
        if figure:
            yield name, figure
    yield "layers", plots.layers(flat["run"].isel(config=[0]))


EXPERIMENT = Experiment(
    name="one_period",
    title="One period, step by step",
    claim="between destabilisations the weight norm only decays and the effective learning rate grows (phase A), until "
    "training destabilises: the loss jumps, large gradients throw the norm up, and the effective learning rate falls "
    "(phase B).",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "steps": "The clearest period at every step. Blue: phase A; orange: phase B.",
        "phases": "The same run in the plane of effective learning rate and effective gradient norm: to the right and "
        "down in phase A, up and back to the left in phase B.",
        "layers": "The norms of the four convolutions: all jump together and fall in parallel.",
    },
    limits={"laptop": ("Only plain SGD on one small network; other practice is another page's.",)},
)

if __name__ == "__main__":
    main(EXPERIMENT)
