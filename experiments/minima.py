"""Minima of different periods: their quality, how far apart they are, and what ensembles of them gain."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import SIXTEENTH, Experiment, Finding, Numbers, Runs, desktop, paper, small_images
from experiments.pages import percent, spelt, table
from experiments.statistics import trend
from periodic_jax import analysis
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import checkpoint_steps

AT_ONCE = 2**40  # pixels: all training images are normalised together
POINTS = 11  # of a path
MOST = 10  # minima of a seed in an ensemble, the last ones
NOISE = 0.01  # two standard deviations of a test error near a half on 10,000 images
SAME_MINIMUM = 0.9  # cosine above which two minima would be called one
CONNECTED = 0.1  # nats: a lower barrier would be called none

RUNS = {
    "laptop": {
        "run": small_images(
            lr=(0.1,), weight_decay=(1e-2,), seed=(0, 1), steps=8000, eval_every=160, keep_every=100
        ),
    },
    "desktop": {"run": desktop(lr=(0.1,), weight_decay=(1e-2,), keep_every=115)},
    "paper": {"run": paper(lr=(0.03,), weight_decay=(1e-3,), seed=(0, 1), keep_every=1950)},
}  # fmt: skip

MINIMA_ARE = "The minima are the last checkpoints before a destabilisation, at most {:,} steps off."
COLUMNS = {
    "minimum": ("minimum_seed", "minimum_step", "train_loss", "test_error"),
    "pair": ("pair_seed", "step_a", "step_b", "cosine", "barrier", "disagreement"),
    "ensemble": ("ensemble_seed", "members", "ensemble_error"),
}


def compare(paths: Mapping[str, Path]) -> dict[str, xr.Dataset]:
    """From the checkpoints: the last before each destabilisation of each seed, alone, in pairs and in ensembles."""
    import jax

    from periodic_jax.inspection.load import abstract_state, load_states
    from periodic_jax.landscape.connectivity import barrier, cosine, disagreement, on_sphere, straight
    from periodic_jax.landscape.networks import Networks

    path = paths["run"]
    run, found = reading.loaded(path), analysis.analyze(open_run(path, flat=True))
    task = abstract_state(run).task
    networks = Networks(task, run.config.data, most_pixels=AT_ONCE)

    def weights_at(step: int, i: int) -> tuple[Any, Any]:
        states = load_states(run, step, [i])
        params, statistics = (
            jax.tree.map(lambda leaf: np.asarray(leaf[0]), tree) for tree in (states.params, states.batch_stats)
        )
        return on_sphere(params, task.labels, each=True), statistics

    def barrier_between(a: Any, b: Any, statistics: Any) -> float:
        at = [straight(a, b, t, task.labels) for t in np.linspace(0, 1, POINTS)]
        return barrier(np.array([networks.trained(params, statistics)[0] for params in at]))

    steps = np.array(checkpoint_steps(path))
    minima, pairs, ensembles, last = [], [], [], []
    for i in range(found.sizes["config"]):
        onsets = found.onset_step.values[i]
        before = [steps[steps <= onset].max() for onset in onsets[np.isfinite(onsets)] if (steps <= onset).any()]
        chosen = list(dict.fromkeys(before))
        if not chosen:
            continue
        seed = float(found.seed.values[i])
        loaded = [weights_at(int(step), i) for step in chosen]
        weights, statistics = [params for params, _ in loaded], loaded[0][1]
        qualities = [networks.quality(one, statistics) for one in weights]
        told = [one.test_outputs for one in qualities]
        for step, one in zip(chosen, qualities, strict=True):
            minima.append((seed, step, one.train_loss, one.test_error))
        for k in range(len(chosen) - 1):
            a, b = weights[k : k + 2]
            differ = disagreement(told[k], told[k + 1])
            rises = barrier_between(a, b, statistics)
            pairs.append((seed, chosen[k], chosen[k + 1], cosine(a, b, task.labels), rises, differ))
        for k in range(1, min(len(chosen), MOST) + 1):
            ensembles.append((seed, k, networks.together(told[-k:])[1]))
        last.append((weights[-1], told[-1], statistics))
    seeds = [np.nan] * 4
    if len(last) > 1:
        (a, told_a, statistics), (b, told_b, _) = last[:2]
        differ, both = disagreement(told_a, told_b), networks.together([told_a, told_b])[1]
        seeds = [cosine(a, b, task.labels), barrier_between(a, b, statistics), differ, both]
    tables = {"minimum": minima, "pair": pairs, "ensemble": ensembles}
    columns: dict[str, tuple[str, np.ndarray]] = {"seeds": ("between", np.array(seeds))}
    for (part, names), rows in zip(COLUMNS.items(), tables.values(), strict=True):
        values = np.array(rows, np.float64).reshape(-1, len(names))
        columns |= {name: (part, values[:, k]) for k, name in enumerate(names)}
    return {"networks": xr.Dataset(columns)}


def measure(runs: Runs) -> Numbers:
    """The comparisons as rows."""
    kept = runs["networks"]
    numbers: Numbers = {
        part: [[float(kept[name].values[i]) for name in names] for i in range(kept.sizes[part])]
        for part, names in COLUMNS.items()
    }
    numbers["seeds"] = kept.seeds.values
    return numbers


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    minima, pairs = numbers["minimum"], numbers["pair"]
    if not pairs:
        return [Finding(False, "There are several minima to compare.", "No seed has two.")]
    seeds = sorted({row[0] for row in minima})
    of = {seed: [row for row in minima if row[0] == seed] for seed in seeds}
    better = {seed: (rows[0][3], rows[-1][3]) for seed, rows in of.items()}
    whole = {seed: [row for row in numbers["ensemble"] if row[0] == seed][-1] for seed in seeds}
    single = {seed: min(row[3] for row in rows[-MOST:]) for seed, rows in of.items()}
    cosines, barriers, differ = ([row[k] for row in pairs] for k in (3, 4, 5))
    cosine, barrier, disagreement, both = numbers["seeds"]
    low, alike = sum(b <= CONNECTED for b in barriers), sum(c > SAME_MINIMUM for c in cosines)
    near = [c for c, b in zip(cosines, barriers, strict=True) if b <= CONNECTED]
    far = [c for c, b in zip(cosines, barriers, strict=True) if b > CONNECTED]
    where = f", of cosines from {min(near):.2f} (the others: to {max(far):.2f})" if near and far else ""
    gains = "; ".join(
        f"the last {whole[seed][1]:.0f} minima {percent(whole[seed][2])}, the best of these alone "
        f"{percent(single[seed])}"
        for seed in seeds
    )
    change = trend([[100 * row[3] for row in rows] for rows in of.values()])
    lower = all(last < first - NOISE for first, last in better.values())
    return [
        Finding(
            lower if math.isnan(change.low) else {1: False, -1: True, None: None}[change.sign()],
            "Minima of later periods generalise better.",
            f"From one minimum to the next the test error changes by {spelt(change)} points. First and last minimum, "
            "by seed: "
            + "; ".join(f"{percent(first)}, {percent(last)}" for first, last in better.values())
            + f". Differences below {percent(NOISE)} are taken for chance.",
        ),
        Finding(
            alike == 0,
            "A destabilisation leads to another minimum.",
            f"Cosine between the weights of successive minima: {min(cosines):.2f} to {max(cosines):.2f} (of different "
            f"seeds: {cosine:.2f}), above {SAME_MINIMUM} in {alike} of {len(cosines)} pairs; they "
            f"disagree on {percent(min(differ))} to {percent(max(differ))} "
            "of the test images "
            f"(different seeds: {percent(disagreement)}).",
        ),
        Finding(
            min(barriers) > CONNECTED,
            "On the straight path between successive minima the training loss rises.",
            f"By {min(barriers):.2g} to {max(barriers):.2g} nats above its ends, with statistics re-estimated at each "
            f"point (different seeds: {barrier:.2g}); {low} of {len(barriers)} pairs are below "
            f"{CONNECTED}{where}.",
        ),
        Finding(
            all(whole[seed][2] < single[seed] - NOISE for seed in seeds),
            "Ensembles of a run's minima are better than each alone.",
            f"Test errors by seed: {gains}.",
        ),
        Finding(
            all(_two(numbers, seed) > both + NOISE for seed in seeds),
            "Two networks of different seeds make a better ensemble than two successive minima of one run.",
            f"Test error of the last two minima of a seed: "
            f"{', '.join(percent(_two(numbers, seed)) for seed in seeds)}; of the last ones of two "
            f"seeds: {percent(both)}.",
        ),
    ]


def _two(numbers: Numbers, seed: float) -> float:
    """Test error of the ensemble of a seed's last two minima."""
    return next((row[2] for row in numbers["ensemble"] if row[0] == seed and row[1] == 2), float("nan"))


def tables(numbers: Numbers) -> str:
    """Minima, pairs, ensembles."""

    def whole(row: Sequence[float], count: int) -> list[str]:
        return [f"{value:.0f}" for value in row[:count]]

    minima = [[*whole(row, 2), row[2], percent(row[3])] for row in numbers["minimum"]]
    pairs = [[*whole(row, 3), row[3], row[4], percent(row[5])] for row in numbers["pair"]]
    ensembles = [[*whole(row, 2), percent(row[2])] for row in numbers["ensemble"]]
    return "\n\n".join(
        [
            table(("seed", "step of the minimum", "training loss", "test error"), minima),
            table(("seed", "from step", "to step", "cosine", "barrier [nats]", "disagreement"), pairs),
            table(("seed", "last minima in the ensemble", "test error"), ensembles),
        ]
    )


def draw(flat: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """The minima on the curves, barriers and cosines, ensembles."""
    kept, run = found["networks"], flat["run"]
    figure = Figure(figsize=(9.6, 3.4))
    left, middle, right = figure.subplots(1, 3)
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    loss = run.loss.isel(config=0).load()
    stretch = max(len(loss) // 800, 1)
    whole = len(loss) // stretch * stretch
    left.plot(
        loss.step.values[:whole:stretch],
        np.median(loss.values[:whole].reshape(-1, stretch), 1),
        color="#999999",
        lw=0.8,
    )
    for i, seed in enumerate(np.unique(kept.minimum_seed)):
        own, pair = kept.minimum_seed.values == seed, kept.pair_seed.values == seed
        part = kept.ensemble_seed.values == seed
        colour, label = colours[i % len(colours)], f"seed {seed:.0f}"
        if i == 0:
            left.plot(kept.minimum_step.values[own], kept.train_loss.values[own], "o", color=colour)
        middle.plot(kept.cosine.values[pair], kept.barrier.values[pair], "o", color=colour, label=label)
        right.plot(kept.members.values[part], 100 * kept.ensemble_error.values[part], "o-", color=colour, label=label)
        right.axhline(100 * kept.test_error.values[own][-MOST:].min(), color=colour, ls=":", lw=1)
    middle.plot(*kept.seeds.values[:2], "kx", label="two seeds")
    left.set(yscale="log", xlabel="step", ylabel="loss (seed 0)", title="the minima that are compared")
    middle.set(xlabel="cosine", ylabel="barrier [nats]", title="successive minima")
    middle.legend()
    right.set(xlabel="last minima in the ensemble", ylabel="test error [%]", title="ensembles (dotted: best alone)")
    right.legend()
    yield "minima", figure


EXPERIMENT = Experiment(
    name="minima",
    title="Minima of different periods",
    claim="each period ends in a minimum of its own: the weights and predictions differ from one to "
    "the next, no straight "
    "path connects them, their quality changes, and ensembles of them are better than one.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "minima": "Left: the checkpoints that are compared, the last before each destabilisation. Middle: cosine and "
        "barrier between successive ones, and between the last ones of two seeds. Right: ensembles of the last minima."
    },
    limits={
        "all": (
            "Paths are straight ones between weights whose layers are scaled to norm 1; curved ones were not tried.",
        ),
        **{
            scale: (MINIMA_ARE.format(runs["run"].keep_every), *([SIXTEENTH] if scale == "desktop" else []))
            for scale, runs in RUNS.items()
        },
    },
    extra=compare,
)

if __name__ == "__main__":
    main(EXPERIMENT)
