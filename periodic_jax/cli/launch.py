"""What the commands that train share: a free folder, the progress, the end."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import periodic_jax as pj
from periodic_jax.core.files import shown_path
from periodic_jax.storage.run_directory import read_config
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.runs.run import RunResult

Result = TypeVar("Result")  # a run, or several


def log_line(line: str) -> None:
    """Print a line on stderr, where it does not mix with results. A terminal that was closed ends nothing."""
    with contextlib.suppress(OSError):
        print(f"periodic-jax: {line}", file=sys.stderr)


def train_and_report(start: Callable[..., "RunResult"], *arguments: Any, **options: Any) -> None:
    """Train with a progress bar, draw the figures, and print the table, the summary and the figures' names; of a run
    that was finished before, draw the figures that are missing.
    """
    run = train_with_progress(start, *arguments, **options)
    files = draw_figures(run) if run.is_new else complete_figures(run)
    if run.is_new:
        print_results(run)
    if files:
        print(f"figures: {', '.join(file.name for file in files)} in {shown_path(files[0].parent)}")


def train_with_progress(start: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Train with a progress bar, until a signal asks for an end."""
    from periodic_jax.runs.callbacks import Stop

    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    with Stop(is_idle=True) as stop:
        callbacks = pj.RunCallbacks(on_chunk=lambda chunk: stop.begin(), should_stop=stop, log=log_line)
        return start(*arguments, **options, callbacks=callbacks)


def draw_figures(run: "RunResult") -> list[Path]:
    """Draw a run's figures; returns their files."""
    return pj.plots.save_all(pj.open_run(run, flat=True), run.analysis, run / "figures")


def complete_figures(run: "RunResult") -> list[Path]:
    """Draw those figures of a finished run that are missing; returns their files."""
    return pj.plots.save_missing(pj.open_run(run, flat=True), run.analysis, run / "figures")


def print_results(run: "RunResult") -> None:
    """Print the table and the summary."""
    print(pj.tables.as_text(run.analysis) + pj.tables.leak_as_text(run.analysis), end="")
    summary = read_config(run.path)["summary"]
    pace = summary["ms_per_config_step"]  # None: not more than one chunk was trained
    steps, here = summary["config_steps"], summary["session_config_steps"]
    print(
        (f"{steps}" if here == steps else f"{here} of {steps}")
        + f" config-steps in {summary['seconds']:.1f} s with compilation, "
        + (f"{pace:.3g} ms each after it; " if pace else "")
        + (f"peak memory {summary['peak_rss_mb']:.0f} MB; " if summary["peak_rss_mb"] else "")
        + f"in {shown_path(run.path)}"
    )
