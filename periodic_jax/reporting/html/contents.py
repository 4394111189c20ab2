"""What the page shows of a run, as JSON can hold it."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from periodic_jax.analysis.pipeline import MOST_IN_MEMORY
from periodic_jax.analysis.theory_checks import CHECKS
from periodic_jax.core.formatting import counted, short_numbers
from periodic_jax.core.segments import extremes
from periodic_jax.plots.regime_maps import map_axes
from periodic_jax.plots.single_period import clearest
from periodic_jax.plots.style import FAINT, REGIME_COLOURS, label, named, swept_axes
from periodic_jax.reporting import tables
from periodic_jax.storage.reader import read
from periodic_jax.storage.schema import EVALUATION, STEP, describe, used_by

CURVES, EVALUATIONS = used_by("report", STEP), used_by("report", EVALUATION)
BUDGET = 5_500_000  # bytes of base64 for all curves: with plotly's 4.8 MB and the rest below 12 MB
MOST_BUCKETS = 3000  # of a curve; the page draws fewer at once
MOST_EVALUATIONS = 75  # stretches of them
LEAST_BUCKETS = 20
NUMBERS = (*tables.SHOWN[1:], "steps")
THEORY = ("mean_fall_steps", "mean_predicted_fall_steps", *tables.THEORY)


def report_contents(dataset: xr.Dataset, found: xr.Dataset) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        dataset: a flat run; read block by block of configurations.
        found: its analysis.

    Returns:
        Plain lists, words and numbers; None for what is not known. ``configs`` has for each configuration its place
        on the axes, regime, numbers, and base64 of little-endian arrays: ``steps`` (uint32) with a float32 array for
        each of ``curves``, ``eval_steps`` with those of ``evaluations``, and ``onsets`` and ``ends`` (uint32).
    """
    across, up = map_axes(found)
    axes = [across, up, *(name for name in swept_axes(found) if name not in (across, up))]
    values = {name: np.unique(found[name].values) for name in axes}
    places = np.stack([np.searchsorted(values[name], found[name].values) for name in axes], axis=1)
    curves = [name for name in CURVES if name in dataset]
    evaluations = [name for name in EVALUATIONS if name in dataset]
    columns = {name: tables.column(found, name) for name in (*NUMBERS, *THEORY)}
    parts = buckets(dataset.sizes["config"], len(curves), int(found.destabilisations.sum()))
    configs = [
        {
            "at": places[i].tolist(),
            "regime": str(found.regime.values[i]),
            "because": str(found.because.values[i]),
            "numbers": [_number(columns[name][i]) for name in NUMBERS],
            "theory": [_number(columns[name][i]) for name in THEORY],
            "checks": [_number(v) for v in found.check_violations.values[i]],
            **drawn,
        }
        for i, drawn in enumerate(_drawn(dataset, found, curves, evaluations, parts))
    ]
    return {
        "name": str(dataset.attrs.get("name", "")),
        "headline": headline(found),
        "first": most_telling(found),
        "summary": summary(dataset, found),
        "axes": [
            {"name": name, "title": named(name), "values": values[name].tolist(), "words": short_numbers(values[name])}
            for name in axes
        ],
        "regimes": REGIME_COLOURS,
        "curves": [{"name": name, "title": label(name), "help": describe(name).help} for name in curves],
        "evaluations": [
            {
                "name": name,
                "title": label(name),
                "help": describe(name).help,
                "log": describe(name).log,
                "percent": describe(name).number == "percent",
            }
            for name in evaluations
        ],
        "faint": FAINT,
        "numbers": [describe(name).short or label(name) for name in NUMBERS],
        "theory": [describe(name).short or label(name) for name in THEORY],
        "formats": {"numbers": [describe(n).number for n in NUMBERS], "theory": [describe(n).number for n in THEORY]},
        "help": {"numbers": [describe(n).help for n in NUMBERS], "theory": [describe(n).help for n in THEORY]},
        "checks": [name.replace("_", " ") for name in CHECKS],
        "steps": dataset.sizes["step"],
        "bucket": -(-dataset.sizes["step"] // parts),
        "configs": configs,
    }


def most_telling(found: xr.Dataset) -> int:
    """The configuration that the page opens on: the periodic one with the clearest period, which the close-up of
    `plots.one_period` shows too; of a run without any, the one whose regime is surest.
    """
    periodic = np.flatnonzero(found.regime == "periodic")
    if len(periodic) and (choice := clearest(found.isel(config=periodic))) is not None:
        return int(periodic[choice[0]])
    sure = found.confidence.values
    return int(np.nanargmax(sure)) if np.isfinite(sure).any() else 0


def headline(found: xr.Dataset) -> str:
    """What the run shows, in one sentence."""
    count, regimes = found.sizes["config"], found.regime.values
    periodic = int((regimes == "periodic").sum())
    if not periodic:
        others = ", ".join(f"{n} {name}" for name in REGIME_COLOURS if (n := int((regimes == name).sum())))
        return f"No configuration is periodic: {others}." if count else "There is no configuration."
    i = most_telling(found)
    lengths = found.period_length.values[i]
    lengths = lengths[np.isfinite(lengths)]
    axes = dict.fromkeys(("lr", "weight_decay", *swept_axes(found)))
    where = ", ".join(f"{named(name)} {short_numbers(found[name].values)[i]}" for name in axes)
    first = f"{periodic} of {counted(count, 'configuration')} {'is' if periodic == 1 else 'are'} periodic"
    if not len(lengths):
        return f"{first}; the clearest: {where}."
    mean, spread = lengths.mean(), lengths.std(ddof=1) if len(lengths) > 1 else 0.0
    coarse = 10 ** max(int(np.log10(spread)) - 1, 0) if spread >= 1 else 1  # two digits of the deviation are enough
    mean, spread = (round(value / coarse) * coarse for value in (mean, spread))
    period = f"a period of {mean} steps"
    if len(lengths) > 1:
        period = f"a period of {mean} ± {spread} steps (mean and standard deviation of {len(lengths)} periods)"
    return f"{first}; the clearest: {where}, {period}."


def summary(dataset: xr.Dataset, found: xr.Dataset) -> list[str]:
    """The run in a few sentences."""
    count, planned = found.sizes["config"], dataset.sizes["step"]
    made = int(found.steps.values.max(initial=0))
    model = str(dataset.attrs.get("model", ""))
    first = f"{counted(count, 'configuration')}{' of ' + model if model else ''}, {planned} steps planned"
    first += ", all recorded." if made == planned else f", {made} recorded so far."
    if not count:
        return [first]
    regimes = [(name, int((found.regime == name).sum())) for name in REGIME_COLOURS]
    second = "Regimes: " + ", ".join(f"{n} {name}" for name, n in regimes if n) + "."
    return [first, second, *(line[:1].upper() + line[1:] + "." for line in tables.findings(found).splitlines())]


def buckets(configs: int, curves: int, marks: int) -> int:
    """Stretches into which the steps of each configuration are parted, so that all of them stay within `BUDGET`.

    Args:
        configs: how many.
        curves: recorded for each.
        marks: destabilisations of all of them, which take room too.
    """
    point = 4 * (1 + curves) * 4 / 3  # bytes of a step and its values in base64
    room = max(BUDGET - marks * 8 * 4 / 3, 0) / max(configs, 1)
    return int(np.clip(room / (point * 2 * max(curves, 1)), LEAST_BUCKETS, MOST_BUCKETS))


def _drawn(
    dataset: xr.Dataset, found: xr.Dataset, curves: list[str], evaluations: list[str], parts: int
) -> Iterator[dict[str, Any]]:
    """The arrays of each configuration, read some configurations at a time."""
    configs = dataset.sizes["config"]
    size = max(MOST_IN_MEMORY // max(4 * dataset.sizes["step"] * len(curves), 1), 1)
    for first in range(0, configs, size):
        block = {name: read(dataset, name, config=slice(first, first + size)) for name in (*curves, *evaluations)}
        for k in range(min(size, configs - first)):
            steps, drawn = _decimated(dataset.step.values, [block[name][k] for name in curves], parts)
            values = [block[name][k] for name in evaluations]
            eval_steps, evaluated = _decimated(dataset.eval_step.values, values, MOST_EVALUATIONS)
            onset, end = found.onset_step.values[first + k], found.end_step.values[first + k]
            known = np.isfinite(onset)
            marks = {"onsets": _packed(onset[known], "<u4"), "ends": _packed(end[known], "<u4")}
            yield {"steps": steps, "curves": drawn, "eval_steps": eval_steps, "evaluations": evaluated, **marks}


def _decimated(at: np.ndarray, curves: list[np.ndarray], parts: int) -> tuple[str, list[str]]:
    """Some steps, and the values of each curve there."""
    values = np.reshape(curves, (len(curves), len(at)))
    chosen = extremes(values, parts)
    return _packed(at[chosen], "<u4"), [_packed(row[chosen], "<f4") for row in values]


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def _number(value: Any) -> float | None:
    number = float(value)
    return number if np.isfinite(number) else None
