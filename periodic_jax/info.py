"""What a run directory holds: what ran, how far it came, what diverged, its size, and whether it is as written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax import integrity
from periodic_jax.config import from_record
from periodic_jax.declared import used
from periodic_jax.disk import in_words
from periodic_jax.errors import ConfigError
from periodic_jax.grid import AXES, counted
from periodic_jax.locks import is_locked
from periodic_jax.period_minima import PREFIX, WEIGHTS, kept_minima, miscounted, read_minimum
from periodic_jax.results import (
    MINIMA,
    TELEMETRY,
    checkpoint_steps,
    first_step,
    lengths,
    open_run,
    reached,
    read,
    read_config,
)

MOST_PIXELS = 2**16  # along a side, and classes
BLOCK = 4000  # steps read at a time


class Report(NamedTuple):
    """What there is to say of a run directory."""

    lines: list[str]
    faults: list[str]  # what is not as it should be; empty for a sound run


def describe(path: str | Path, *, verify: bool = False) -> Report:
    """Describe a run directory, without changing anything in it.

    Args:
        path: the run directory.
        verify: read every telemetry chunk, checkpoint and kept minimum, and compare their checksums.

    Returns:
        Lines for the reader, and the faults that were found.

    Raises:
        ConfigError: no run, or one whose config.json is damaged.
    """
    path = Path(path)
    record = read_config(path)
    held, begun = record.get("config", {}), first_step(record)
    steps = held.get("steps")
    if not isinstance(steps, int):
        raise ConfigError("run directory", path, "a run whose config.json tells the number of steps")
    done = reached(path, record)
    lines = [
        f"{path}: {held.get('model')} of width {held.get('width')} and depth {held.get('depth')} on "
        f"{held.get('dataset')}, periodic_jax {record.get('version')}"
    ]
    if "parent" in record:
        parent = record["parent"]
        lines.append(f"branched from {parent.get('path')} at step {begun}, changed: {parent.get('changed')}")
    lines += [f"command: {' '.join(map(str, record.get('command', ())))}", _progress(path, record, done, steps)]
    faults = _look(path, lines, done - begun)
    telemetry, checkpoints = used(path / TELEMETRY), used(path / "checkpoints")
    lines.append(
        f"size: {in_words(used(path))}, of which telemetry {in_words(telemetry)} and "
        f"checkpoints {in_words(checkpoints)} (at {', '.join(map(str, checkpoint_steps(path))) or 'none'})"
    )
    minima = kept_minima(path)
    if minima:
        unfinished = sum(one.ended is None for one in minima)
        lines.append(
            f"minima of periods: {len(minima)}, of which {unfinished} unfinished, of "
            f"{len({one.config for one in minima})} configurations, {in_words(used(path / MINIMA))}"
        )
    if verify:
        found = list(_verify(path, record, done))
        # What was seen at first sight has its file and its reason here.
        faults = found + [fault for fault in faults if not any(one.startswith(TELEMETRY) for one in found)]
        if not faults:
            checked = (
                f"every telemetry chunk up to step {done} and {counted(len(checkpoint_steps(path)), 'checkpoint')}"
            )
            checked += f", and {counted(len(minima), 'minimum', 'minima')}" if minima else ""
            lines.append(f"verified: {checked}")
    lines += [f"damaged: {fault}" for fault in faults]
    if any(TELEMETRY in fault or MINIMA in fault for fault in faults):
        lines.append(f"to mend it: periodic-jax resume {path} --truncate")
    if not faults:
        lines.append("consistent" if verify else "consistent as far as seen; --verify reads everything")
    return Report(lines, faults)


def _progress(path: Path, record: dict[str, Any], done: int, steps: int) -> str:
    if "summary" in record:
        sessions = counted(len(record.get("sessions", ())) + 1, "session")
        return f"finished: {counted(steps, 'step')} in {sessions}"
    now = "running now" if is_locked(path) else f"to go on: periodic-jax resume {path}"
    return f"unfinished: {done} of {counted(steps, 'step')}, {steps - done} left; {now}"


def _look(path: Path, lines: list[str], recorded: int) -> list[str]:
    """Add what the telemetry says; returns what is wrong with it at first sight."""
    if not (path / TELEMETRY).exists():
        return [f"{TELEMETRY}: {integrity.MISSING}"] if recorded else []
    try:
        dataset = open_run(path, flat=True)
        diverged = dataset.diverged_at.values
    except (ConfigError, ValueError) as error:
        return [str(error)]
    swept = [name for name in AXES if len(np.unique(dataset[name])) > 1]
    lines.append(counted(dataset.sizes["config"], "configuration") + (f" over {', '.join(swept)}" if swept else ""))
    gone = np.flatnonzero(np.isfinite(diverged))
    for i in gone[:20]:
        where = " ".join(f"{name}={dataset[name].values[i]:.15g}" for name in swept or ("lr", "weight_decay"))
        lines.append(f"diverged: {where} at step {diverged[i]:.0f}")
    if len(gone) > 20:
        lines.append(f"diverged: {len(gone) - 20} more")
    return []


def _verify(path: Path, record: dict[str, Any], done: int) -> Iterator[str]:
    """All that is not as written."""
    from periodic_jax.checkpoints import DamagedCheckpoint, load

    store = path / TELEMETRY
    if not store.exists():
        if done > first_step(record):
            yield f"{TELEMETRY}: {integrity.MISSING}"
    else:
        damaged = list(integrity.damage(store, first_step(record), done, lengths(record)))
        yield from (f"{TELEMETRY}/{one}" for one in damaged)
        if not damaged:
            yield from _missing_steps(path, first_step(record), done)
    steps = checkpoint_steps(path)
    minima = kept_minima(path)
    like = _states(path, record) if steps or minima else {}
    newest: dict[str, np.ndarray] = {}
    for step in steps:
        try:
            newest = load(path, step, like)
        except DamagedCheckpoint as error:
            newest = {}
            yield f"checkpoints/{step}: {error}"
    if f"{PREFIX}found" in newest:
        yield from miscounted(path, newest, steps[-1], finished="summary" in record).values()
    weights = {name: array[0] for name, array in like.items() if name.startswith(WEIGHTS)}
    for one in minima:
        try:
            read_minimum(one, weights)
        except ConfigError as error:
            yield str(error)


def _states(path: Path, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """What a checkpoint must hold, as config.json tells.

    Raises:
        ConfigError: it does not tell.
    """
    from periodic_jax import runtime
    from periodic_jax.outline import states_of

    config = from_record(record, path, dataset="any")
    shape, classes = (record.get("data", {}).get(name) for name in ("image_shape", "classes"))
    sizes = [*shape, classes] if isinstance(shape, list) else []
    if len(sizes) != 4 or not all(type(size) is int and 1 <= size <= MOST_PIXELS for size in sizes):
        raise ConfigError("run directory", path, "a config.json that tells the size of the images")
    with runtime.precision(config.precision):
        return states_of(config, shape, classes)


def _missing_steps(path: Path, begun: int, done: int) -> Iterator[str]:
    """Steps without a loss, of configurations that had not diverged by then."""
    dataset = open_run(path, flat=True)
    steps = dataset.step.values
    ends = np.where(np.isnan(dataset.diverged_at.values), done, dataset.diverged_at.values)
    if not np.array_equal(steps, np.arange(begun, begun + len(steps))):
        yield f"{TELEMETRY}/step: steps are missing or out of order"
    for first in range(0, done - begun, BLOCK):
        part = slice(first, min(first + BLOCK, done - begun))
        absent = np.isnan(read(dataset, "loss", step=part)) & (steps[part] < ends[:, None])
        for i in np.flatnonzero(absent.any(1)):
            yield f"{TELEMETRY}/loss: no step {steps[part][absent[i].argmax()]} of configuration {i}"
