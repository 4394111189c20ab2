"""A results page as Markdown, written from the record of an experiment alone: what does not reproduce comes first."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.declare import Experiment, Finding, runs_of
from experiments.statistics import Estimate
from periodic_jax.runs.config import RunConfig

DEFAULTS = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.name != "out"}
UNTESTED, CANNOT_TELL = "What was not tested", "What the numbers cannot tell"  # headings
ALWAYS = ("lr", "weight_decay")
# CRC-32 of the training images of CIFAR-10 as JPEG files of the default quality: all at 32x32 and 16x16, 3,000 at
# 16x16, 10,000 and 2,000 at 8x8.
JPEG_COPIES = {3603196499, 2836435073, 1954875240, 1746900805, 2840480790}
UNSAID = (
    "data_dir", "download", "layout", "keep", "keep_every", "checkpoint_seconds", "epochs", "schedule_end", "dataset",
    "model", "width", "depth", "batch_size", "steps", "eval_every",
)  # fmt: skip


def render(experiment: Experiment, record: Mapping[str, Any]) -> str:
    """The page.

    Args:
        experiment: whose words it uses.
        record: ``scale``, ``numbers``, ``figures`` and, of each run, its config.json under ``runs``.
    """
    scale, name = record["scale"], folder_name(experiment.name, record["scale"])
    missing = [run for run in runs_of(experiment, scale) if run not in record["runs"]]
    numbers = numeric(record["numbers"])
    found = experiment.findings(numbers)
    open_questions = [f for f in found if f.holds is None]
    where = " --data-dir FOLDER" if any(c["config"]["dataset"] != "digits" for c in record["runs"].values()) else ""
    parts = [
        f"# {experiment.title}" + {"desktop": ": desktop scale", "paper": ": the paper's scale"}.get(scale, ""),
        f"The claim: {experiment.claim}",
        "## What does not reproduce",
        _listed([f for f in found if f.holds is False]) or _nothing_failed(bool(open_questions)),
        f"## {UNTESTED}",
        "\n".join(f"- {words}" for words in (*_untested(experiment, scale, missing), *_limits(experiment, scale))),
        f"## {CANNOT_TELL}" if open_questions else "",
        _listed(open_questions),
        "## What agrees",
        _listed([f for f in found if f.holds]) or "Nothing.",
    ]
    for figure, caption in experiment.captions.items():
        if figure in record["figures"]:
            parts += [f"![{figure.replace('_', ' ')}]({name}/{figure}.png)", f"*{caption}*"]
    parts += ["## Numbers", experiment.tables(numbers).strip()]
    parts += ["## Settings", "\n".join(_settings(name, run, c) for run, c in record["runs"].items())]
    parts += ["## Hardware and versions", "\n".join(_made(run, c) for run, c in record["runs"].items())]
    parts += [
        "## Again",
        f"    python -m experiments.{experiment.name} --scale {scale}{where}\n"
        f"    python -m experiments.{experiment.name} --scale {scale} --check",
        f"The first trains and writes this page; the second derives every number anew, from the runs where they are on "
        f"the machine, otherwise from `{name}/RUN/evidence.npz`, and compares `{name}/record.json` and this page with "
        f"them. The page is written from these files alone.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def folder_name(name: str, scale: str) -> str:
    """Of the page, without its ending, and of what is kept beside it."""
    return name if scale == "laptop" else f"{name}-{scale}"


def numeric(value: Any) -> Any:
    """What a record holds, with NaN for None, so that nothing that is missing compares as true.

    Example:
        >>> numeric({"a": [None, 1]})
        {'a': [nan, 1]}
    """
    if isinstance(value, Mapping):
        return {key: numeric(one) for key, one in value.items()}
    if isinstance(value, list):
        return [numeric(one) for one in value]
    return math.nan if value is None else value


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three digits, a dash for None."""
    lines = [[cell(c) for c in row] for row in (header, *rows)]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(header), *text[1:]])


def cell(value: Any) -> str:
    """A number with three digits, a dash for None and NaN, words as they are.

    Example:
        >>> [cell(value) for value in (None, 0.012345, 1234567, 83241.0, "x")]
        ['-', '0.0123', '1,234,567', '83,241', 'x']
    """
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percent(value: float | None) -> str:
    """A share in per cent."""
    return "-" if value is None or value != value else f"{100 * value:.1f} %"


def spelt(estimate: Estimate) -> str:
    """A number with its interval.

    Example:
        >>> spelt(Estimate(-0.51234, -0.9, -0.1))
        '-0.512 [-0.9, -0.1]'
    """
    if math.isnan(estimate.low):
        return f"{cell(estimate.value)} (no interval)"
    return f"{cell(estimate.value)} [{cell(estimate.low)}, {cell(estimate.high)}]"


def _nothing_failed(is_open: bool) -> str:
    """What stands in place of the findings that do not reproduce, where there are none."""
    if is_open:
        return f'No finding failed. "{UNTESTED}" and "{CANNOT_TELL}" list the limits.'
    return f'No finding failed. "{UNTESTED}" lists the limits.'


def _listed(found: Sequence[Finding]) -> str:
    return "\n".join(f"- *{f.claim}* {f.measured}" for f in found)


def _untested(experiment: Experiment, scale: str, missing: Sequence[str]) -> tuple[str, ...]:
    others = [f"`--scale {other}`" for other in experiment.runs if other != scale]
    words = (
        f"Other scales ({', '.join(others)}) have pages of their own where they were run; no number here is of them."
    )
    if missing:
        return words, f"Not run yet: {', '.join(f'`{run}`' for run in missing)}."
    return (words,)


def _limits(experiment: Experiment, scale: str) -> tuple[str, ...]:
    return (*experiment.limits.get("all", ()), *experiment.limits.get(scale, ()))


def _settings(name: str, run: str, record: Mapping[str, Any]) -> str:
    """The settings of one run in a line, from its config.json: all that is not the default."""
    c, data = record["config"], record["data"]
    words = [
        f"{c['model']} of width {c['width']} and depth {c['depth']} on {data['train_images']:,} "
        f"images of {c['dataset']}" + (" (JPEG copy)" if data.get("crc32") in JPEG_COPIES else ""),
        f"batch {c['batch_size']}", f"{c['steps']:,} steps", f"evaluated every {c['eval_every']:,}",
    ]  # fmt: skip
    for setting, usual in DEFAULTS.items():
        if setting not in c:  # of a run that is older than the setting
            continue
        value = tuple(c[setting]) if isinstance(c[setting], list) else c[setting]
        if setting in UNSAID or (value == usual and setting not in ALWAYS):
            continue
        words.append(f"{setting} {_spelt(value)}")
    if "parent" in record:
        parent = record["parent"]
        words.append(f"branched from {parent['name']} at step {parent['step']:,}")
    files = f"[config.json]({name}/{run}/config.json), [summary.csv]({name}/{run}/summary.csv)"
    return f"- `{run}` ({files}): {'; '.join(words)}"


def _made(run: str, record: Mapping[str, Any]) -> str:
    hardware, summary, versions = record["hardware"], record["summary"], record["versions"]
    sessions = len(record.get("sessions", ())) + 1
    took = f"{summary['seconds']:.0f} s"
    if sessions > 1:
        took = f"{sessions} sessions, the last of which took {took}"
    shared = ", shared with other work" if hardware["device"] == "cpu" else ""
    return (
        f"- `{run}`: {hardware['devices']} x {hardware['device']} ({hardware['machine']}, {hardware['cpus']} cores"
        f"{shared}), {record['config']['precision']}, {summary['config_steps']:,} config-steps in "
        f"{took}; jax {versions['jax']}, commit {(record['git_commit'] or 'unknown')[:10]}"
    )


def _spelt(value: Any) -> str:
    return " ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else str(value)
