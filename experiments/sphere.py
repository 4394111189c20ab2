"""A fixed effective learning rate on the sphere: three regimes, and how normal training meets them."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, desktop, paper, small_images
from experiments.pages import cell, percent, spelt, table
from experiments.statistics import mean, slope
from periodic_jax import plots
from periodic_jax.core.segments import extremes
from periodic_jax.plots.style import legend

ORDER = ("converging", "equilibrium", "diverged")
GREYS = ("#d9d9d9", "#b0b0b0", "#808080", "#404040")
MARKERS = {"converging": "o", "equilibrium": "D", "diverged": "X", "periodic": "s"}
# As read off the sequel's figures, by effective learning rate: loss, test error, effective gradient norm.
PAPER = {
    1e-5: (7e-3, 0.28, 7.6), 1e-4: (9e-4, 0.217, 0.85), 5e-4: (1.9e-4, 0.175, 0.16), 1e-3: (0.49, 0.35, 53.0),
    2e-3: (0.9, 0.5, 35.0), 5e-3: (1.6, 0.64, 25.0), 0.05: (11.0, 0.9, None), 0.1: (11.0, 0.9, None),
}  # fmt: skip

RUNS = {
    "laptop": {
        "sphere": small_images(
            lr=(1.0,), weight_decay=(0.0,), fixed_norm=(-1.0,), steps=5000, eval_every=250,
            elr=(1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 0.05, 0.1, 0.3),
        ),
        "normal": small_images(lr=(0.1, 0.3, 1.0, 3.0), weight_decay=(1e-2,), steps=8000, eval_every=160),
    },
    "desktop": {
        "sphere": desktop(
            lr=(1.0,), weight_decay=(0.0,), fixed_norm=(-1.0,),
            elr=(1e-5, 1e-4, 3e-4, 1e-3, 2e-3, 5e-3, 1e-2, 0.05, 0.1),
        ),
        "normal": desktop(lr=(0.1, 0.3, 1.0, 3.0), weight_decay=(1e-2,), epochs=350),
    },
    "paper": {
        "sphere": paper(
            lr=(1.0,), weight_decay=(0.0,), fixed_norm=(-1.0,), elr=(1e-5, 1e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.05, 0.1)
        ),
        "normal": paper(lr=(0.01, 0.03, 1.0), weight_decay=(1e-3,)),
    },
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Regimes on the sphere, and of normal training where its onsets and equilibria lie among those of the same
    seed.
    """
    found = runs["sphere"]
    sphere = [
        row
        | {
            "strength": float(found.late_rms_effective_grad_norm.values[i]),
            "bursts": int(found.loss_bursts.values[i]),
        }
        for i, row in reading.configurations(found)
    ]
    sphere.sort(key=lambda row: (row["elr"], row["seed"]))
    normal = []
    for i, row in reading.configurations(runs["normal"]):
        onsets = reading.of(runs["normal"], "onset_effective_lr", i)
        row |= {
            "first_onset": onsets.min() if len(onsets) else None,
            "last_onset": onsets.max() if len(onsets) else None,
            "measured_elr": float(runs["normal"].measured_effective_lr.values[i]),
            "equilibrium_elr": float(runs["normal"].equilibrium_effective_lr.values[i]),
            "elr_from_sphere": crossing([one for one in sphere if one["seed"] == row["seed"]], row["product"]),
        }
        normal.append(row)
    normal.sort(key=lambda row: (row["lr"], row["seed"]))
    return {"sphere": sphere, "normal": normal}


def crossing(sphere: list[dict[str, Any]], product: float) -> float | None:
    """The effective learning rate at which the sphere's gradients keep pace with a decay: η̃ g̃(η̃) = √(ηλ(2-ηλ)).

    Args:
        sphere: rows with ``elr``, ``strength`` (root mean square of g̃ there) and ``regime``, ascending.
        product: ηλ.

    Returns:
        By straight lines through the logarithms, among the chaotic equilibria; None where none keeps that pace.

    Example:
        >>> rows = [{"elr": e, "strength": 1.0, "regime": "equilibrium"} for e in (0.01, 0.1)]
        >>> crossing(rows, 5e-4).__round__(4)
        0.0316
    """
    rows = [row for row in sphere if row["regime"] == "equilibrium"]
    if len(rows) < 2:
        return None
    x = np.log([row["elr"] for row in rows])
    y = np.log([row["elr"] * row["strength"] for row in rows])
    wanted = 0.5 * np.log(product * (2 - product))
    if not (np.all(np.diff(y) > 0) and y[0] <= wanted <= y[-1]):
        return None
    return float(np.exp(np.interp(wanted, y, x)))


def findings(numbers: Numbers) -> list[Finding]:
    """Of the regimes, of losses and errors in them, and of normal training."""
    sphere, normal = numbers["sphere"], numbers["normal"]
    settled = [row for row in normal if row["regime"] == "equilibrium"]
    return [
        _regimes(sphere),
        _losses([row for row in sphere if row["regime"] == "equilibrium"]),
        _errors([row for row in sphere if row["regime"] == "converging"]),
        _ratios(
            [row["measured_elr"] / row["equilibrium_elr"] for row in settled], 0.05,
            "Normal training in equilibrium has the effective learning rate that its own gradients predict, "
            "√(ηλ(2-ηλ))/G.",
        ),
        _ratios(
            [row["measured_elr"] / row["elr_from_sphere"] for row in settled], 0.1,
            "That equilibrium is the sphere's: the rate at which the sphere's gradients keep pace with the decay.",
        ),
        _onsets(sphere, [row for row in normal if row["regime"] == "periodic"]),
    ]  # fmt: skip


def _regimes(rows: list[dict[str, Any]]) -> Finding:
    """Whether the three regimes follow each other, for every seed."""
    seeds = [[row["regime"] for row in rows if row["seed"] == seed] for seed in {row["seed"] for row in rows}]
    place = [[ORDER.index(regime) if regime in ORDER else 99 for regime in regimes] for regimes in seeds]
    elrs = {regime: [row["elr"] for row in rows if row["regime"] == regime] for regime in ORDER}
    spans = "; ".join(f"{regime} at {values[0]:g} to {values[-1]:g}" for regime, values in elrs.items() if values)
    return Finding(
        all(one == sorted(one) and {0, 1, 2} <= set(one) for one in place),
        "With the effective learning rate come three regimes: convergence, chaotic equilibrium, divergence.",
        f"On this grid: {spans}.",
    )


def _losses(rows: list[dict[str, Any]]) -> Finding:
    """Whether losses in equilibrium grow with the rate."""
    losses = [row["final_train_loss"] for row in rows]
    grows = slope(np.log([row["elr"] for row in rows]), np.log(losses))
    ends = f" Losses of {cell(min(losses))} to {cell(max(losses))}." if losses else ""
    return Finding(
        {1: True, -1: False, None: None}[grows.sign()],
        "In the chaotic equilibrium the loss is the higher the larger the rate (sequel: 0.49, 0.9, 1.6).",
        f"ln(training loss at the end) on ln(rate) has the slope {spelt(grows)}, over {len(rows)} networks.{ends}",
    )


def _errors(rows: list[dict[str, Any]]) -> Finding:
    """Whether test errors of those that converge fall with the rate."""
    falls = slope(np.log([row["elr"] for row in rows]), [100 * row["lowest_test_error"] for row in rows])
    by_rate: dict[float, list[float]] = {}
    for row in rows:
        by_rate.setdefault(row["elr"], []).append(row["lowest_test_error"])
    listed = ", ".join(f"{percent(float(np.mean(errors)))} at {elr:g}" for elr, errors in by_rate.items())
    return Finding(
        {1: False, -1: True, None: None}[falls.sign()],
        "Among those that converge the larger the rate the lower the test error (sequel: 28, 21.7, 17.5 %).",
        f"By a factor of e in the rate the lowest test error changes by {spelt(falls)} points. "
        f"Means over seeds: {listed or 'none converges'}.",
    )


def _ratios(ratios: list[float], tolerance: float, claim: str) -> Finding:
    """Whether measured over predicted is 1, of the networks whose prediction is known."""
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    found = mean(known)
    listed = f"Measured over predicted: {', '.join(f'{ratio:.3f}' for ratio in known)}; mean {spelt(found)}."
    return Finding(found.near(1.0, tolerance), claim, listed if known else "No equilibrium in the run to compare.")


def _onsets(sphere: list[dict[str, Any]], periodic: list[dict[str, Any]]) -> Finding:
    """Whether normal training destabilises only above the rates at which the sphere of the same seed converges."""
    highest = {row["seed"]: row["elr"] for row in sphere if row["regime"] == "converging"}  # ascending
    known = [row for row in periodic if row["seed"] in highest]
    onsets = [f"{row['first_onset']:.2g} to {row['last_onset']:.2g} (learning rate {row['lr']:g})" for row in known]
    ends = ", ".join(f"{elr:g}" for elr in sorted(set(highest.values())))
    words = f"The sphere converges up to {ends}; the periods of normal training begin at {'; '.join(onsets)}."
    return Finding(
        all(row["first_onset"] > highest[row["seed"]] for row in known) if known else None,
        "Periods of normal training begin where the sphere's convergence ends.",
        words if known else "No periods to compare.",
    )


def tables(numbers: Numbers) -> str:
    """The sphere, at the paper's scale with the sequel's numbers beside; and normal training."""
    rows = [
        [
            f"{row['elr']:g}", f"{row['seed']:g}", row["regime"], row["final_train_loss"],
            percent(row["final_test_error"]), percent(row["lowest_test_error"]), row["bursts"],
            row["effective_grad_norm"], row["strength"],
        ]
        for row in numbers["sphere"]
    ]  # fmt: skip
    header = [
        "effective learning rate", "seed", "regime", "training loss", "test error", "lowest", "bursts",
        "g̃ (median)", "g̃ (r.m.s.)",
    ]  # fmt: skip
    if all(row["elr"] in PAPER for row in numbers["sphere"]):
        header += ["sequel: loss", "sequel: test error", "sequel: g̃"]
        rows = [[*cells, *PAPER[row["elr"]]] for cells, row in zip(rows, numbers["sphere"], strict=True)]
    normal = [
        [
            f"{row['lr']:g}", f"{row['weight_decay']:g}", f"{row['seed']:g}", row["regime"], row["jumps"],
            row["first_onset"], row["last_onset"], row["measured_elr"], row["equilibrium_elr"], row["elr_from_sphere"],
        ]
        for row in numbers["normal"]
    ]  # fmt: skip
    head = (
        "learning rate", "decay", "seed", "regime", "jumps", "lowest ELR at an onset", "highest", "ELR measured",
        "predicted by own gradients", "predicted by the sphere's",
    )  # fmt: skip
    return "\n\n".join(["### On the sphere", table(header, rows), "### Normal training", table(head, normal)])


def draw(flat: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """Losses on the sphere; and its regimes with the trajectories of normal training over them."""
    figure = Figure(figsize=(9.6, 4))
    left, right = figure.subplots(1, 2)
    sphere = flat["sphere"][["train_loss"]].load()
    scale = plots.colours(sphere.elr.values)
    plots.curves(left, sphere, "train_loss", "elr", scale)
    left.set_title("on the sphere")
    normal = flat["normal"][["effective_lr", "effective_grad_norm"]].load()
    greys = dict(zip(np.unique(normal.lr).tolist(), GREYS, strict=False))
    for i in range(normal.sizes["config"]):
        both = np.stack([normal.effective_lr.values[i], normal.effective_grad_norm.values[i]])
        right.plot(*both[:, extremes(both, 1000)], color=greys[float(normal.lr.values[i])], lw=0.4, rasterized=True)
    for k, regime in enumerate(found["sphere"].regime.values):
        elr = float(found["sphere"].elr.values[k])
        strength = float(found["sphere"].late_rms_effective_grad_norm.values[k])
        right.plot(elr, strength, MARKERS[regime], color=scale[elr], mec="black", ms=7, zorder=3)
    right.set(xscale="log", yscale="log", title="normal training over the sphere's regimes")
    right.set_xlabel("effective learning rate")
    right.set_ylabel("effective gradient norm")
    present = [regime for regime in ORDER if (found["sphere"].regime == regime).any()]
    handles = [Line2D([], [], marker=MARKERS[r], color="white", mec="black", label=f"sphere: {r}") for r in present]
    handles += [Line2D([], [], color=shade, label=f"normal, lr {lr:g}") for lr, shade in greys.items()]
    right.legend(handles=handles, fontsize=7, loc="upper left")
    legend(figure, scale, "effective learning rate")
    yield "regimes", figure


EXPERIMENT = Experiment(
    name="sphere",
    title="A fixed effective learning rate on the sphere",
    claim="on the sphere, at a fixed effective learning rate and without decay, training converges "
    "at small rates, stays "
    "in a chaotic equilibrium at larger ones and diverges at very large ones; normal training moves through these "
    "regimes as its norm decays.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "regimes": "Left: training loss at each fixed effective learning rate. Right: root mean "
        "square of the effective "
        "gradient norm in each of these runs, over the paths of normal training (grey, darker for larger learning "
        "rates).",
    },
    limits={
        "all": (reading.BURST,),
        "laptop": ("2,000 images at 8x8 pixels, a network of width 8, one seed.",),
        "desktop": (SIXTEENTH,),
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
