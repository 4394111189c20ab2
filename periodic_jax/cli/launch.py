"""What the commands that train share: the claim on a folder, the progress, the end."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax.core.errors import ConfigError
from periodic_jax.storage.locks import FREE, is_locked
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.runs.run import RunConfig, RunResult
    from periodic_jax.sweeps.chunks import Chunk


def log_line(line: str) -> None:
    """Print a line on stderr, where it does not mix with results."""
    print(f"periodic-jax: {line}", file=sys.stderr)


def print_plan(config: "RunConfig") -> None:
    """Tell what a sweep would take; writes nothing."""
    from periodic_jax.runs import planning
    from periodic_jax.runs.run import check

    config, said = planning.fitting_part(config)
    check(config)
    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    if said:
        print(said)
    for line in planning.describe_plan(planning.plan(config), config, planning.device_memory()):
        print(line)


def claim_folder(config: "RunConfig") -> bool:
    """Refuse what cannot run before anything is printed, compiled or written.

    Returns:
        Whether there is something to train; a finished run is told.
    """
    from periodic_jax.runs.run import check, resumable_manifest
    from periodic_jax.runs.shards import enter_shard
    from periodic_jax.storage.run_directory import claim_directory

    config = enter_shard(config)
    check(config)
    manifest = resumable_manifest(config)
    if manifest is None:
        claim_directory(Path(config.out))
    elif is_locked(Path(config.out)):
        raise ConfigError("run directory", config.out, FREE)
    elif "summary" in manifest:
        log_line(f"{config.out} holds this run, finished: nothing is left to train")
        return False
    else:
        log_line(f"{config.out} holds this run, unfinished: going on with it")
    return True


def train_with_progress(start: Callable[..., "RunResult"], *arguments: Any, **options: Any) -> "RunResult":
    """Run with a progress bar."""
    from periodic_jax.runs.callbacks import RunCallbacks, Stop

    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    with Stop() as stop, _progress() as (show, move):
        return start(*arguments, **options, callbacks=RunCallbacks(show, move, stop, log_line))


def show_results(run: "RunResult") -> list[Path]:
    """Draw the figures, and print the table and the summary."""
    from periodic_jax import plots
    from periodic_jax.reporting import tables
    from periodic_jax.storage.reader import open_run
    from periodic_jax.storage.run_directory import read_config

    files = plots.save_all(open_run(run, flat=True), run.analysis, run / "figures")
    print(tables.as_text(run.analysis), end="")
    summary = read_config(run.path)["summary"]
    pace = summary["ms_per_config_step"]  # None: not more than one chunk was trained
    steps, here = summary["config_steps"], summary["session_config_steps"]
    print(
        (f"{steps}" if here == steps else f"{here} of {steps}")
        + f" config-steps in {summary['seconds']:.1f} s with compilation, "
        + (f"{pace:.3g} ms each after it; " if pace else "")
        + f"peak memory {summary['peak_rss_mb']:.0f} MB; in {run}"
    )
    return files


def print_figures(files: list[Path]) -> None:
    """Name the figures in one line."""
    print(f"figures: {', '.join(file.name for file in files)} in {files[0].parent}")


@contextlib.contextmanager
def _progress():
    """A bar in config-steps, from when all is accepted, moved once a chunk; in a log file, where each state is a line,
    twice a minute.

    Yields:
        What shows it, and what moves it: `RunCallbacks.on_start` and ``on_chunk``.
    """
    from tqdm import tqdm

    pause = 0 if sys.stderr.isatty() else 30
    with contextlib.ExitStack() as shown:
        bar: Any = None

        def show(configs: int, first_step: int, steps: int) -> None:
            nonlocal bar
            bar = tqdm(
                total=steps * configs, initial=first_step * configs, unit="config-step", unit_scale=True,
                desc="compiling", mininterval=pause, dynamic_ncols=True,
            )  # fmt: skip
            shown.callback(bar.close)

        def move(chunk: "Chunk") -> None:
            if chunk.steps:
                bar.set_description("training", refresh=False)
                bar.update(chunk.steps * len(chunk.diverged_at))

        yield show, move
