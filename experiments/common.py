"""Runs an experiment: estimate, train or go on, derive the numbers, draw, write the page; or check what is kept."""

import io
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from experiments import evidence, pages
from experiments.checking import check
from experiments.declare import Branch, Experiment, placed, runs_of
from experiments.kept import EVIDENCE, RECORD, configs_of, digest_of, evidence_of, held, plain, published, read_record
from periodic_jax import plots
from periodic_jax.cli.options import IF_GIVEN, arg, parse_options, refuse_unknown
from periodic_jax.core.errors import ConfigError, PeriodicJaxError, RunInterrupted
from periodic_jax.core.files import write_json
from periodic_jax.runs.branch import branch_run
from periodic_jax.runs.callbacks import RunCallbacks, Stop
from periodic_jax.runs.config import RunConfig, evaluated_every, planned_steps
from periodic_jax.runs.manifest import difference
from periodic_jax.runs.run import resume_run, run_sweep
from periodic_jax.storage import run_directory
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import SUMMARY_FILE, read_config
from periodic_jax.training import xla

PAGES = Path(__file__).resolve().parents[1] / "docs" / "experiments"
COLOURS = 96  # of a figure


@dataclass(frozen=True)
class Options:
    """Train the runs of one experiment, draw its figures and write its page. What is there is not done again."""

    scale: Annotated[str, arg("NAME")] = "laptop"
    """laptop: minutes on two cores; desktop: CIFAR-10 at 16x16 pixels with three seeds, hours on two cores or minutes
    on a GPU; paper: the paper's own settings, for a GPU. Interrupted at any time, the same command
    goes on."""
    runs: Annotated[tuple[str, ...], arg("NAME ..."), IF_GIVEN] = ()
    """Train these runs only; the page is written once all are there that it cannot do without."""
    out: Annotated[Path | None, arg("DIR"), IF_GIVEN] = None
    """Folder of the runs; runs/experiments/NAME-SCALE if not given."""
    data_dir: Annotated[str | None, arg("DIR"), IF_GIVEN] = None
    """Where CIFAR's files are; see the README."""
    estimate: Annotated[bool, IF_GIVEN] = False
    """Only time a few steps and print how long the runs would take."""
    check: Annotated[bool, IF_GIVEN] = False
    """Derive the numbers anew, from the runs or where there are none from the evidence that is kept, and compare."""
    rewrite: Annotated[bool, IF_GIVEN] = False
    """Derive the numbers anew from the evidence that is kept, and write the page again with the figures that it has."""
    pages: Annotated[Path, arg("DIR"), IF_GIVEN] = PAGES
    """Folder of the pages; docs/experiments of the checkout if not given."""


def main(experiment: Experiment, arguments: Sequence[str] | None = None) -> None:
    """Command line of an experiment: exits with 2 for unusable input, 1 if a check fails, 143 or 130 when stopped."""
    about = f"{experiment.title}. The claim: {experiment.claim}"
    command = f"experiments.{experiment.name}"
    given = sys.argv[1:] if arguments is None else arguments
    try:
        options, unknown = parse_options(Options, given, command, about)
        refuse_unknown(unknown, command, Options)
        perform(experiment, options)
    except RunInterrupted as stopped:
        print(f"{command}: {stopped}; the same command goes on", file=sys.stderr)
        sys.exit(stopped.status)
    except PeriodicJaxError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(error.status)


def perform(experiment: Experiment, options: Options) -> None:
    """Check, write again, estimate or train, as the options ask for.

    Raises:
        PeriodicJaxError: unusable input, or a run that stopped.
        SystemExit: after a check, with 1 where something differs.
    """
    out = options.out or Path("runs", "experiments", pages.folder_name(experiment.name, options.scale))
    runs = placed(experiment, options.scale, out, options.data_dir)
    for name in options.runs:
        if name not in runs:
            raise ConfigError("--runs", name, "one of " + ", ".join(runs))
    if options.check:
        faults = check(experiment, options.scale, out, options.pages)
        for fault in faults:
            print(f"differs: {fault}")
        sys.exit(1 if faults else 0)
    if options.rewrite:
        print(rewrite(experiment, options.scale, options.pages))
        return
    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    chosen = {name: run for name, run in runs.items() if name in options.runs or not options.runs}
    if options.estimate or options.scale != "laptop":
        print_estimate(chosen)
    if options.estimate:
        return
    with Stop() as stop:
        for name, run in chosen.items():
            train(name, run, out, options.data_dir, stop)
    missing = [name for name in runs if name not in experiment.optional and not is_finished(out / name)]
    if missing:
        print(f"no page yet: {', '.join(missing)} not finished")
        return
    print(write(experiment, options.scale, out, options.pages))


def is_finished(path: Path) -> bool:
    """Whether a folder holds a run that came to its end."""
    return "summary" in (held(path) or {})


def train(name: str, run: RunConfig | Branch, out: Path, data_dir: str | None, stop: Stop) -> None:
    """Run to its end what is not finished.

    Raises:
        ConfigError: the folder holds another run.
        RunInterrupted: a signal asked for it.
    """
    path = out / name
    record = held(path)
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
    record = held(config.folder) or {}
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
    every = evaluated_every(config)
    evaluations = left / every if every else sum(at > done for at in config.eval_at)
    return per_step * left + evaluations * batches * each, per_step, left


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

    Runs that the page can do without are left out where they are not finished.

    Returns:
        The page.
    """
    name = pages.folder_name(experiment.name, scale)
    kept = folder / name
    shutil.rmtree(kept, ignore_errors=True)
    runs = [run for run in runs_of(experiment, scale) if run not in experiment.optional or is_finished(out / run)]
    for run in runs:
        (kept / run).mkdir(parents=True)
        run_directory.write_config(kept / run, published(read_config(out / run)))
        evidence.save(evidence.gather(out / run, kept / run / SUMMARY_FILE), kept / run / EVIDENCE)
    if experiment.extra:
        for part, found in experiment.extra({run: out / run for run in runs}).items():
            (kept / part).mkdir()
            evidence.save(evidence.narrowed(found), kept / part / EVIDENCE)
    found = evidence_of(kept)
    numbers = plain(experiment.measure(found))
    drawn = []
    flat = {run: evidence.with_norm(open_run(out / run, flat=True)) for run in runs}
    with mpl.rc_context(plots.STYLE):
        for title, figure in experiment.draw(flat, found):
            save_small(figure, kept / f"{title}.png")
            drawn.append(title)
    return _write_record(experiment, scale, folder, runs, numbers, drawn)


def rewrite(experiment: Experiment, scale: str, folder: Path) -> Path:
    """Derive the numbers anew from the evidence that is kept, and write the page; the figures stay.

    Raises:
        UsageError: there is no page.
        CorruptedRunError: what is kept beside it cannot be read.
    """
    kept = folder / pages.folder_name(experiment.name, scale)
    record = read_record(kept)
    runs = [run for run in runs_of(experiment, scale) if run not in experiment.optional or (kept / run).exists()]
    numbers = plain(experiment.measure(evidence_of(kept)))
    return _write_record(experiment, scale, folder, runs, numbers, record["figures"])


def _write_record(
    experiment: Experiment, scale: str, folder: Path, runs: Sequence[str], numbers: Any, figures: Sequence[str]
) -> Path:
    """Of the numbers, and of all files that are kept; and the page."""
    name = pages.folder_name(experiment.name, scale)
    kept, page = folder / name, folder / f"{name}.md"
    files = sorted(file for file in kept.rglob("*") if file.is_file() and file != kept / RECORD)
    record = {
        "experiment": experiment.name, "scale": scale, "numbers": numbers, "figures": list(figures),
        "sha256": {file.relative_to(kept).as_posix(): digest_of(file) for file in files},
    }  # fmt: skip
    write_json(kept / RECORD, record)
    page.write_text(pages.render(experiment, record | {"runs": configs_of(kept, runs)}))
    return page


def save_small(figure: Figure, file: Path) -> None:
    """Write a figure as a PNG of few colours, a quarter of the size."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=100)
    Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
