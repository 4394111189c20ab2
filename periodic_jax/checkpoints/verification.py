"""Whether a run directory is complete and as it was written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.storage import run_directory, verification
from periodic_jax.storage.minima_files import PREFIX, WEIGHTS, find_missing_minima, read_minimum, saved_minima
from periodic_jax.storage.reader import open_run, read
from periodic_jax.storage.verified_store import MISSING

BLOCK = 4000  # steps read at a time


def corruptions(
    path: Path, manifest: dict[str, Any], recorded_states: Callable[[Path, dict[str, Any]], dict[str, np.ndarray]]
) -> Iterator[str]:
    """Read every telemetry chunk, checkpoint and saved minimum, and give what is not as it was written.

    Args:
        path: the run directory.
        manifest: the content of its config.json.
        recorded_states: `runs.build.recorded_states`: what a checkpoint must hold, of both.
    """
    start, done = run_directory.first_step(manifest), run_directory.reached(path, manifest)
    store = path / run_directory.TELEMETRY
    if not store.exists():
        if done > start:
            yield f"{run_directory.TELEMETRY}: {MISSING}"
    else:
        recorded = run_directory.recorded_checksums(path, manifest, done)
        errors = list(verification.find_corruptions(store, start, done, verification.lengths(manifest), recorded))
        yield from (f"{run_directory.TELEMETRY}/{corruption}" for corruption in errors)
        if not errors:
            yield from _missing_steps(path, start, done)
    steps = run_directory.checkpoint_steps(path)
    minima = saved_minima(path)
    like = recorded_states(path, manifest) if steps or minima else {}
    newest: dict[str, np.ndarray] = {}
    for step in steps:
        try:
            newest = load_checkpoint(path, step, like)
        except CorruptedRunError as error:
            newest = {}
            yield f"checkpoints/{step}: {error.reason}"
    if f"{PREFIX}found" in newest:
        yield from find_missing_minima(path, newest, steps[-1], finished="summary" in manifest).values()
    weights = {name: array[0] for name, array in like.items() if name.startswith(WEIGHTS)}
    for minimum in minima:
        try:
            read_minimum(minimum, weights, manifest.get("id"))
        except CorruptedRunError as error:
            yield f"{minimum.file.relative_to(path)}: {error.reason}"


def _missing_steps(path: Path, start_step: int, done: int) -> Iterator[str]:
    """Steps without a loss, of configurations that had not diverged by then."""
    dataset = open_run(path, flat=True)
    steps = dataset.step.values
    diverged = read(dataset, "diverged_at")
    ends = np.where(np.isnan(diverged), done, diverged)
    if not np.array_equal(steps, np.arange(start_step, start_step + len(steps))):
        yield f"{run_directory.TELEMETRY}/step: steps are missing or out of order"
    for first in range(0, done - start_step, BLOCK):
        part = slice(first, min(first + BLOCK, done - start_step))
        absent = np.isnan(read(dataset, "loss", step=part)) & (steps[part] < ends[:, None])
        for i in np.flatnonzero(absent.any(1)):
            yield f"{run_directory.TELEMETRY}/loss: no step {steps[part][absent[i].argmax()]} of configuration {i}"
