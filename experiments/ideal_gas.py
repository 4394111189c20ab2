"""Stationary training as an ideal gas: weight norms, losses, gradients and directions under three protocols."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, decided, desktop, paper, small_images
from experiments.directions import directions
from experiments.pages import cell, spelt, table
from experiments.statistics import Estimate, mean, slope
from periodic_jax.dynamics.equilibrium import equilibrium_weight_norm
from periodic_jax.runs.config import RunConfig

WORDS = {"sphere": "fixed norm", "fixed_elr": "fixed effective learning rate", "fixed_rate": "fixed learning rate"}
COLOURS = {"sphere": "#0072B2", "fixed_elr": "#D55E00", "fixed_rate": "#009E73"}
DECAY = 1e-2
STEADY = 0.05  # relative change of the training loss within the last half of a run, below which it is called stationary
SAME = 0.05  # relative difference below which two numbers are called the same
TOO_SMALL = (
    "it is too small to fit its images, so that noise never ends. Networks that fit them come to rest at low effective "
    "learning rates, or are periodic: see the other pages."
)


def _runs(
    start: Callable[..., RunConfig], elrs: tuple[float, ...], rates: tuple[float, ...], **settings: Any
) -> dict[str, RunConfig]:
    """The three protocols, with learning rates whose effective ones end among ``elrs``."""
    usual: dict[str, Any] = {"sampling": "iid", "seed": (0, 1, 2)} | settings
    return {
        "sphere": start(lr=(1.0,), weight_decay=(0.0,), elr=elrs, fixed_norm=(-1.0,), **usual),
        "fixed_elr": start(lr=(1.0,), weight_decay=(DECAY,), elr=elrs, **usual),
        "fixed_rate": start(lr=rates, weight_decay=(DECAY,), **usual),
    }


RUNS = {
    "laptop": _runs(
        small_images, (1e-3, 2e-3, 5e-3, 1e-2, 2e-2), (0.03, 0.1, 0.3, 0.7, 1.5), width=4, use_data_size=10_000,
        steps=12_000, eval_every=500, keep_every=40,
    ),
    "desktop": _runs(
        desktop, (1e-3, 2e-3, 5e-3, 1e-2), (0.03, 0.1, 0.3, 1.0), use_data_size=None, epochs=None, steps=12_000,
        eval_every=1000, keep_every=60,
    ),
    "paper": _runs(
        paper, (1e-3, 2e-3, 4e-3, 8e-3), (0.1, 0.3, 1.0, 3.0), epochs=100, keep_every=130, seed=(0,),
    ),
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Of each configuration what it rests at, and what norm its gradients and decay give."""
    numbers: Numbers = {}
    for name in WORDS:
        found, more = runs[name], runs[f"{name}_directions"]
        rows = []
        for i, row in reading.configurations(found):
            strength = float(found.late_rms_effective_grad_norm.values[i])
            early, late = _quarters(found.train_loss.values[i])
            rows.append(
                {key: row[key] for key in ("elr", "lr", "weight_decay", "seed", "effective_lr", "weight_norm")}
                | {
                    "strength": strength,
                    "loss": (early + late) / 2,
                    "drift": late / early - 1,
                    "predicted_norm": resting_norm(name, row, strength),
                    "entropy": float(more.entropy.values[i]),
                    "signal_to_noise": float(more.signal_to_noise.values[i]),
                }
            )
        # A fixed effective rate is measured with the rounding of each seed.
        numbers[name] = sorted(rows, key=lambda row: (row["elr"] or row["effective_lr"], row["seed"]))
    return numbers


def _quarters(evaluated: np.ndarray) -> tuple[float, float]:
    """Means of the third and of the last quarter of the evaluations."""
    count = len(evaluated)
    return float(np.mean(evaluated[count // 2 : 3 * count // 4])), float(np.mean(evaluated[3 * count // 4 :]))


def resting_norm(protocol: str, row: Mapping[str, float], strength: float) -> float:
    """The weight norm at which decay takes what gradients of one strength G give.

    With a fixed learning rate ρ⁴ = ηG²/(λ(2-ηλ)); with a fixed effective one e, where η = eρ², a step gives
    ρ² = (1-√(1-e²G²))/(eλ), about eG²/(2λ): the gas law, ρ² for the volume, λ for the pressure, e for the temperature.

    Example:
        >>> row = {"lr": 1.0, "weight_decay": 0.01, "elr": 0.001}
        >>> resting_norm("fixed_elr", row, 10.0).__round__(3), resting_norm("fixed_rate", row, 10.0).__round__(3)
        (2.236, 8.42)
    """
    if protocol == "sphere":
        return math.nan
    if protocol == "fixed_rate":
        return float(equilibrium_weight_norm(strength, row["lr"], row["weight_decay"]))
    turned = (row["elr"] * strength) ** 2
    return math.sqrt((1 - math.sqrt(1 - turned)) / (row["elr"] * row["weight_decay"])) if turned < 1 else math.nan


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The configurations whose training loss stays in the last half of the run."""
    return [row for row in rows if abs(row["drift"]) < STEADY]


def findings(numbers: Numbers) -> list[Finding]:
    """Of the gas law, of the noise that is the same everywhere, of the protocols, and of entropy and signal."""
    kept = {name: steady(numbers[name]) for name in WORDS}
    together = [row for name in WORDS for row in kept[name]]
    return [
        *(_norm(name, kept[name]) for name in ("fixed_elr", "fixed_rate")),
        _constant_noise(together),
        *(_one_curve(quantity, kept) for quantity in ("loss", "strength", "entropy")),
        _warmer("loss", together),
        _warmer("entropy", together),
        _half(together),
        _noise_rules(together),
    ]


QUANTITIES = {"loss": "training loss", "strength": "effective gradient norm", "entropy": "entropy of the direction"}


def _norm(name: str, rows: list[dict[str, Any]]) -> Finding:
    found = mean([row["weight_norm"] / row["predicted_norm"] for row in rows])
    law = "ρ² = eG²/(2λ), pressure times volume in proportion to temperature"
    if name == "fixed_rate":
        law = "ρ⁴ = ηG²/(λ(2-ηλ))"
    return Finding(
        found.near(1.0, SAME),
        f"With a {WORDS[name]} the norm rests where {law}, G the strength of the gradients there.",
        f"Measured over predicted norm {spelt(found)}, over {len(rows)} networks.",
    )


def _constant_noise(rows: list[dict[str, Any]]) -> Finding:
    found = _trend(rows, [math.log(row["strength"]) for row in rows])
    return Finding(
        decided(found.low <= 0 <= found.high, found.low, found.high),
        "The gradients are as strong at each effective learning rate, as the noise of the ideal gas is.",
        f"ln(effective gradient norm) on ln(effective learning rate) has the slope {spelt(found)}.",
    )


def _trend(rows: list[dict[str, Any]], values: list[float]) -> Estimate:
    return slope(np.log([row["effective_lr"] for row in rows]), values)


def _one_curve(quantity: str, kept: Mapping[str, list[dict[str, Any]]]) -> Finding:
    """Whether the other protocols lie on the curve of the fixed norm, between its ends."""
    off = differences(quantity, kept)
    found = mean(off)
    unit = " nats" if quantity == "entropy" else " of it"
    return Finding(
        found.near(0.0, SAME),
        f"The {QUANTITIES[quantity]} depends on the effective learning rate alone, whichever protocol leads to it.",
        f"The {len(off)} networks of the other two protocols differ from the curve of the fixed norm by "
        f"{spelt(found)}{unit}.",
    )


def differences(quantity: str, kept: Mapping[str, list[dict[str, Any]]]) -> list[float]:
    """How far networks of the other protocols are from those of the fixed norm, interpolated in ln(effective learning
    rate): of the loss and the gradients relatively, of entropies in nats.
    """
    elrs = sorted({row["elr"] for row in kept["sphere"]})
    means = [np.mean([row[quantity] for row in kept["sphere"] if row["elr"] == elr]) for elr in elrs]
    off = []
    for name in ("fixed_elr", "fixed_rate"):
        for row in kept[name]:
            if not elrs or not elrs[0] * (1 - 1e-4) <= row["effective_lr"] <= elrs[-1] * (1 + 1e-4):
                continue
            there = float(np.interp(math.log(row["effective_lr"]), np.log(elrs), means))
            off.append(row[quantity] - there if quantity == "entropy" else row[quantity] / there - 1)
    return off


def _warmer(quantity: str, rows: list[dict[str, Any]]) -> Finding:
    found = _trend(rows, [row[quantity] for row in rows])
    return Finding(
        {1: True, -1: False, None: None}[found.sign()],
        f"The {QUANTITIES[quantity]} grows with the effective learning rate, as energy and entropy with temperature.",
        f"By a factor of e: {spelt(found)} more.",
    )


def _half(rows: list[dict[str, Any]]) -> Finding:
    found = _trend(rows, [row["entropy"] for row in rows])
    return Finding(
        decided(found.low <= 0.5 <= found.high, found.low, found.high),
        "The entropy of a coordinate of the direction grows by half the logarithm of the effective learning rate.",
        f"By a factor of e: {spelt(found)} nats more. The entropies reach from "
        f"{cell(min((row['entropy'] for row in rows), default=math.nan))} to "
        f"{cell(max((row['entropy'] for row in rows), default=math.nan))} nats; that of a direction which is anywhere "
        "on the sphere would be 0.",
    )


def _noise_rules(rows: list[dict[str, Any]]) -> Finding:
    ratios = [row["signal_to_noise"] for row in rows]
    found = _trend(rows, ratios)
    return Finding(
        decided(max(ratios, default=math.nan) < 1, *ratios),
        "Where training is stationary, the noise of a mini-batch's gradient is larger than the gradient of all images.",
        f"Gradient over noise: {cell(min(ratios, default=math.nan))} to {cell(max(ratios, default=math.nan))}; by a "
        f"factor of e in the effective learning rate {spelt(found)} more.",
    )


def tables(numbers: Numbers) -> str:
    """A table for each protocol, a line for each network."""
    header = (
        "effective learning rate", "learning rate", "seed", "training loss", "change within the last half",
        "effective gradient norm", "weight norm", "predicted", "entropy [nats]", "gradient over noise",
    )  # fmt: skip
    parts = []
    for name, words in WORDS.items():
        rows = [
            [
                cell(row["effective_lr"]), "-" if row["elr"] else f"{row['lr']:g}", f"{row['seed']:g}", row["loss"],
                f"{100 * row['drift']:+.1f} %", row["strength"], row["weight_norm"], row["predicted_norm"],
                row["entropy"], row["signal_to_noise"],
            ]
            for row in numbers[name]
        ]  # fmt: skip
        parts += [f"### With a {words}", table(header, rows)]
    return "\n\n".join(parts)


def draw(_: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """What stationary networks have, against their effective learning rate."""
    numbers = measure(found)
    figure = Figure(figsize=(9.6, 6.4))
    axes = figure.subplots(2, 2).ravel()
    shown = {
        "loss": "training loss",
        "entropy": "entropy of a coordinate [nats]",
        "signal_to_noise": "gradient over noise",
    }
    for name, words in WORDS.items():
        rows = steady(numbers[name])
        elrs = [row["effective_lr"] for row in rows]
        for ax, quantity in zip(axes, shown, strict=False):
            ax.plot(elrs, [row[quantity] for row in rows], "o", color=COLOURS[name], ms=4, alpha=0.7, label=words)
        if name != "sphere":
            norms = [[row[of] for row in rows] for of in ("predicted_norm", "weight_norm")]
            axes[3].plot(*norms, "o", color=COLOURS[name], ms=4, alpha=0.7)
    for ax, words in zip(axes, shown.values(), strict=False):
        ax.set(xscale="log", xlabel="effective learning rate", ylabel=words)
    axes[2].set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    axes[3].axline((5, 5), slope=1, color="black", lw=0.8)
    axes[3].set(xlabel="predicted weight norm", ylabel="measured")
    yield "stationary", figure


EXPERIMENT = Experiment(
    name="ideal_gas",
    title="Stationary training as an ideal gas",
    claim="where noise keeps training stationary, the weights of a scale-invariant network behave as an ideal gas "
    "(Sadrtdinov et al., 2025, arXiv 2511.07308): the effective learning rate is the temperature, the decay the "
    "pressure, the squared weight norm the volume; the direction of the weights knows the temperature alone.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "stationary": "Training loss, entropy of the direction, gradient over noise, and the weight norm against that "
        "of the gas law, of all stationary networks."
    },
    limits={
        "all": (
            "Entropies are those of single coordinates of the direction in the last half of a run, from 64 random "
            "projections. A direction that still moves on has not been everywhere that it would go: at the lowest "
            "rates the true ones are higher.",
        ),
        "laptop": (f"10,000 images at 8x8 pixels and a network of width 4: {TOO_SMALL}",),
        "desktop": (f"50,000 images at 16x16 pixels and a network of width 8: {TOO_SMALL}",),
        "paper": ("One seed.",),
    },
    extra=directions,
)

if __name__ == "__main__":
    main(EXPERIMENT)
