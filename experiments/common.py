"""Runs an experiment: estimate, train or go on, derive the numbers, draw, write the page; or check what is kept."""

import contextlib
import hashlib
import io
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import tyro
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from experiments import evidence, pages
from experiments.declare import Branch, Experiment, placed
from periodic_jax import plots
from periodic_jax.core.errors import ConfigError, CorruptedRunError, PeriodicJaxError, RunInterrupted
from periodic_jax.core.files import write_json
from periodic_jax.runs.branch import branch_run
from periodic_jax.runs.callbacks import RunCallbacks, Stop
from periodic_jax.runs.config import RunConfig, difference, evaluated_every, planned_steps
from periodic_jax.runs.run import resume_run, run_sweep
from periodic_jax.storage import run_directory
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import CONFIG_FILE, SUMMARY_FILE, read_config
from periodic_jax.training import xla

EVIDENCE, RECORD = "evidence.npz", "record.json"
PAGES = Path(__file__).resolve().parents[1] / "docs" / "experiments"
COLOURS = 96  # of a figure
SAME = 1e-3  # relative, of numbers derived on another machine: fits and thresholds multiply rounding


@dataclass(frozen=True)
class Options:
    """Train the runs of one experiment, draw its figures and write its page; what is there already "
    "is not done again.
    """

    scale: Literal["laptop", "paper"] = "laptop"
    """laptop: minutes on two cores; paper: the paper's own settings, for a GPU. Interrupted at any time, the same
    command goes on."""
    out: Path | None = None
    """Folder of the runs; runs/experiments/NAME-SCALE if not given."""
    data_dir: str | None = None
    """Where CIFAR's files are; see the README."""
    estimate: bool = False
    """Only time a few steps and print how long the runs would take."""
    check: bool = False
    """Derive the numbers anew, from the runs or where there are none from the evidence that is kept, and compare."""
    pages: Path = PAGES
    """Folder of the pages."""


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Command line of an experiment: exits with 2 for unusable input, 1 where a check fails, 143 or "
    "130 when stopped.
    """
    about = f"{experiment.title}. {experiment.claim}"
    options = tyro.cli(Options, prog=f"experiments.{experiment.name}", description=about, args=arguments)
    out = options.out or Path("runs", "experiments", pages.folder_name(experiment.name, options.scale))
    runs = placed(experiment, options.scale, out, options.data_dir)
    try:
        if options.check:
            faults = check(experiment, options.scale, out, options.pages)
            for fault in faults:
                print(f"differs: {fault}")
            sys.exit(1 if faults else 0)
        xla.use_cores_as_devices()
        xla.keep_compiled_programs()
        if options.estimate or options.scale == "paper":
            print_estimate(runs)
        if options.estimate:
            return
        with Stop() as stop:
            for name, run in runs.items():
                train(name, run, out, options.data_dir, stop)
        print(write(experiment, options.scale, out, options.pages))
    except RunInterrupted as stopped:
        print(f"experiments.{experiment.name}: {stopped}; the same command goes on", file=sys.stderr)
        sys.exit(stopped.status)
    except PeriodicJaxError as error:
        print(f"experiments.{experiment.name}: {error}", file=sys.stderr)
        sys.exit(error.status)


def train(name: str, run: RunConfig | Branch, out: Path, data_dir: str | None, stop: Stop) -> None:
    """Run to its end what is not finished.

    Raises:
        ConfigError: the folder holds another run.
        RunInterrupted: a signal asked for it.
    """
    path = out / name
    record = _held(path)
    if record is not None and (other := changed(run, record)):
        raise ConfigError("--out", path, f"a folder that holds no run yet, or this one ({other})")
    if record is not None and "summary" in record:
        print(f"{name}: finished before")
        return
    print(f"{name}: {'going on' if record else 'training'}", flush=True)
    callbacks = RunCallbacks(should_stop=stop)
    if isinstance(run, RunConfig):
        run_sweep(run, callbacks=callbacks)
    elif record is not None:
        resume_run(path, data_dir=data_dir, callbacks=callbacks)
    else:
        branch_run(
            out / run.parent, path, step=run.step, select=run.select, change=run.change, steps=run.steps,
            data_dir=data_dir, callbacks=callbacks,
        )  # fmt: skip


def changed(run: RunConfig | Branch, record: Mapping[str, Any]) -> str:
    """In what a run that is there differs from the declared one; empty where it does not."""
    if isinstance(run, RunConfig):
        return difference(run, record)
    parent = record.get("parent", {})
    plain = {key: {k: list(v) for k, v in getattr(run, key).items()} for key in ("select", "change")}
    held = (parent.get("name"), parent.get("step"), parent.get("selected"), parent.get("changed"))
    same = held == (run.parent, run.step, plain["select"], plain["change"])
    return "" if same else f"another branch of {parent.get('name')}"


def print_estimate(runs: Mapping[str, RunConfig | Branch]) -> None:
    """Time a few steps of each run, and print how long what is left of it will take."""
    total, timed = 0.0, {}
    for name, run in runs.items():
        if isinstance(run, Branch):  # as many steps a second as its parent
            per_step, steps = timed[run.parent]
            left = (run.steps or steps) - run.step
            seconds = per_step * left
        else:
            seconds, per_step, left = estimate(run)
            timed[name] = per_step, planned_steps(run)
        total += seconds
        print(f"{name}: {left:,} steps left at {per_step:.3g} s, about {format_duration(seconds)}", flush=True)
    print(f"all: about {format_duration(total)} on this machine, without compilation", flush=True)


def estimate(config: RunConfig) -> tuple[float, float, int]:
    """How long a run will take: seconds, seconds of one step of all its configurations, steps left.

    The step is timed on the run's own program. An evaluation is a forward pass over all images, a third of a step for
    each mini-batch.
    """
    from periodic_jax.runs.build import build_sweep
    from periodic_jax.runs.config import check as check_config
    from periodic_jax.sweeps.autotune import seconds_per_step

    check_config(config)
    record = _held(config.folder) or {}
    done = max(run_directory.checkpoint_steps(config.folder), default=0) if record else 0
    left = 0 if "summary" in record else planned_steps(config) - done
    with xla.precision(config.precision):
        sweep = build_sweep(config)

        def steps(count: int) -> None:
            for _ in sweep.chunks(count, eval_every=None):
                pass

        per_step = seconds_per_step(steps)
    batches = (len(config.data.images) + len(config.data.test_images)) / config.batch_size
    mini_batches = left * (len(config.data.images) // config.batch_size if config.full_batch else 1)
    each = per_step * left / max(mini_batches, 1) / 3
    return per_step * left + left / evaluated_every(config) * batches * each, per_step, left


def format_duration(seconds: float) -> str:
    """A duration.

    Example:
        >>> [format_duration(s) for s in (50.0, 600.0, 1e5)]
        ['50 s', '10 min', '27.8 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def write(experiment: Experiment, scale: str, out: Path, folder: Path) -> Path:
    """Keep the evidence of finished runs, derive the numbers, draw the figures and write the page.

    Returns:
        The page.
    """
    name = pages.folder_name(experiment.name, scale)
    kept = folder / name
    shutil.rmtree(kept, ignore_errors=True)
    for run in experiment.runs[scale]:
        (kept / run).mkdir(parents=True)
        run_directory.write_config(kept / run, published(read_config(out / run)))
        evidence.save(evidence.gather(out / run, kept / run / SUMMARY_FILE), kept / run / EVIDENCE)
    if experiment.extra:
        for part, found in experiment.extra({run: out / run for run in experiment.runs[scale]}).items():
            (kept / part).mkdir()
            evidence.save(evidence.narrowed(found), kept / part / EVIDENCE)
    found = _evidence(kept)
    numbers = plain(experiment.measure(found))
    drawn = []
    flat = {run: evidence.with_norm(open_run(out / run, flat=True)) for run in experiment.runs[scale]}
    with mpl.rc_context(plots.STYLE):
        for title, figure in experiment.draw(flat, found):
            save_small(figure, kept / f"{title}.png")
            drawn.append(title)
    files = sorted(file for file in kept.rglob("*") if file.is_file())
    record = {
        "experiment": experiment.name, "scale": scale, "numbers": numbers, "figures": drawn,
        "sha256": {file.relative_to(kept).as_posix(): _digest(file) for file in files},
    }  # fmt: skip
    write_json(kept / RECORD, record)
    page = folder / f"{name}.md"
    page.write_text(pages.render(experiment, record | {"runs": _configs(experiment, scale, kept)}))
    return page


def save_small(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG of few colours, a quarter of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


def check(experiment: Experiment, scale: str, out: Path, folder: Path) -> list[str]:
    """Derive everything on a page anew and compare.

    Args:
        experiment: whose page.
        scale: of the page.
        out: where the runs may be.
        folder: of the pages.

    Returns:
        What differs; empty where all is as it should be.

    Raises:
        CorruptedRunError: there is no page, or what is kept beside it cannot be read.
    """
    name = pages.folder_name(experiment.name, scale)
    kept, page = folder / name, folder / f"{name}.md"
    try:
        record, text = json.loads((kept / RECORD).read_text()), page.read_text()
    except (OSError, ValueError) as error:
        raise CorruptedRunError(page, f"no page with its {RECORD}: {type(error).__name__}", "write it again") from None
    faults = [
        f"{kept / file}: {'not as it was written' if (kept / file).exists() else 'missing'}"
        for file, digest in record["sha256"].items() if not (kept / file).exists() or _digest(kept / file) != digest
    ]  # fmt: skip
    found = _evidence(kept)
    faults += [f"number {one}" for one in unequal(record["numbers"], plain(experiment.measure(found)))]
    configs = _configs(experiment, scale, kept)
    if text != pages.render(experiment, record | {"runs": configs}):
        faults.append(f"{page}: not what its record says")
    for run in experiment.runs[scale]:
        held = _held(out / run)
        if held is None:
            print(f"{run}: no run in {out / run}; numbers derived from {kept / run / EVIDENCE}")
            continue
        print(f"{run}: {out / run} read again")
        if published(held) != configs[run]:
            faults.append(f"{out / run / CONFIG_FILE}: of another run than {kept / run / CONFIG_FILE}")
        again = evidence.gather(out / run)
        faults += [f"{run}: {quantity} of its telemetry" for quantity in evidence.differences(found[run], again)]
    there = {run: out / run for run in experiment.runs[scale] if _held(out / run)}
    if experiment.extra and len(there) == len(experiment.runs[scale]):
        for part, again in experiment.extra(there).items():
            faults += [f"{part}: {one}" for one in evidence.differences(found[part], evidence.narrowed(again))]
    if not faults:
        print(f"{page}: {sum(1 for _ in _leaves(record['numbers']))} numbers as derived anew")
    return faults


def published(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record without the place of a branch's parent on the machine."""
    parent = record.get("parent")
    return record if parent is None else record | {"parent": {k: v for k, v in parent.items() if k != "path"}}


def plain(value: Any) -> Any:
    """Numbers as JSON holds them: NumPy's as Python's, None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unequal(recorded: Any, derived: Any) -> list[str]:
    """Where two trees of plain numbers differ by more than `SAME`.

    Example:
        >>> unequal({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]})
        ['a.1: 2.0 recorded, 2.5 derived']
    """
    a, b = dict(_leaves(recorded)), dict(_leaves(derived))
    return [
        f"{key}: {a.get(key)} recorded, {b.get(key)} derived"
        for key in {**a, **b}
        if not _equal(a.get(key), b.get(key))
    ]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        number = isinstance(a, int | float) and isinstance(b, int | float)
        return number and math.isclose(a, b, rel_tol=SAME, abs_tol=1e-12)
    return a == b


def _leaves(tree: Any, name: str = ""):
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        yield name, tree
        return
    for key, value in items:
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def _evidence(kept: Path) -> dict[str, xr.Dataset]:
    return {file.parent.name: evidence.load(file) for file in sorted(kept.glob(f"*/{EVIDENCE}"))}


def _configs(experiment: Experiment, scale: str, kept: Path) -> dict[str, dict[str, Any]]:
    return {run: read_config(kept / run) for run in experiment.runs[scale]}


def _held(path: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None where there is none."""
    with contextlib.suppress(OSError):
        if (path / CONFIG_FILE).exists():
            return read_config(path)
    return None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
