"""What a run directory holds: what ran, how far it came, what diverged, its size, and whether it is as written."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import CorruptedRunError, PeriodicJaxError, RunNotFoundError
from periodic_jax.core.files import used_bytes
from periodic_jax.core.formatting import counted, format_bytes
from periodic_jax.core.grid import AXES
from periodic_jax.runs.verify import corruptions
from periodic_jax.storage.locks import is_locked
from periodic_jax.storage.minima_files import saved_minima
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import (
    CONFIG_FILE,
    MINIMA,
    RESTORE,
    TELEMETRY,
    checkpoint_steps,
    first_step,
    reached,
    read_config,
)
from periodic_jax.storage.shards import Shards, read_shards
from periodic_jax.storage.verified_store import MISSING


class RunDescription(NamedTuple):
    """What there is to say of a run directory."""

    lines: list[str]
    faults: list[str]  # what is not as it should be; empty for a sound run


def describe_run(path: str | os.PathLike[str], *, verify: bool = False) -> RunDescription:
    """Describe a run directory, without changing anything in it.

    Args:
        path: the run directory, or the folder of a grid in shards.
        verify: read every telemetry chunk, checkpoint and saved minimum, and compare their checksums.

    Returns:
        Lines for the reader, and the faults that were found.

    Raises:
        RunNotFoundError: there is no run.
        CorruptedRunError: its config.json is corrupted.
    """
    path, shards = Path(path), read_shards(path)
    if shards is not None:
        return _describe_shards(shards, verify=verify)
    manifest = read_config(path)
    config, start_step = manifest.get("config", {}), first_step(manifest)
    steps = config.get("steps")
    if not isinstance(steps, int):
        raise CorruptedRunError(path / CONFIG_FILE, "no number of steps", RESTORE)
    done = reached(path, manifest)
    lines = [
        f"{path}: {config.get('model')} of width {config.get('width')} and depth {config.get('depth')} on "
        f"{config.get('dataset')}, periodic_jax {manifest.get('version')}"
    ]
    if "parent" in manifest:
        parent = manifest["parent"]
        lines.append(f"branched from {parent.get('path')} at step {start_step}, changed: {parent.get('changed')}")
    lines += [f"command: {' '.join(map(str, manifest.get('command', ())))}", _progress(path, manifest, done, steps)]
    faults = _describe_telemetry(path, lines, done - start_step)
    telemetry, checkpoints = used_bytes(path / TELEMETRY), used_bytes(path / "checkpoints")
    lines.append(
        f"size: {format_bytes(used_bytes(path))}, of which telemetry {format_bytes(telemetry)} and "
        f"checkpoints {format_bytes(checkpoints)} (at {', '.join(map(str, checkpoint_steps(path))) or 'none'})"
    )
    minima = saved_minima(path)
    if minima:
        unfinished = sum(minimum.ended is None for minimum in minima)
        lines.append(
            f"minima of periods: {len(minima)}, of which {unfinished} unfinished, of "
            f"{len({minimum.config for minimum in minima})} configurations, {format_bytes(used_bytes(path / MINIMA))}"
        )
    if verify:
        verified = list(corruptions(path, manifest))
        # What was seen at first sight has its file and its reason here.
        faults = verified if any(line.startswith(TELEMETRY) for line in verified) else verified + faults
        if not faults:
            checked = (
                f"every telemetry chunk up to step {done} and {counted(len(checkpoint_steps(path)), 'checkpoint')}"
            )
            checked += f", and {counted(len(minima), 'minimum', 'minima')}" if minima else ""
            lines.append(f"verified: {checked}")
    lines += [f"corrupted: {fault}" for fault in faults]
    if any(TELEMETRY in fault or MINIMA in fault for fault in faults):
        lines.append(f"to mend it: periodic-jax resume {path} --truncate")
    if not faults:
        lines.append("consistent" if verify else "consistent as far as seen; --verify reads everything")
    return RunDescription(lines, faults)


def _describe_shards(shards: Shards, *, verify: bool) -> RunDescription:
    """How far each shard of a grid is, and what is wrong with it."""
    config, faults, finished = shards.manifest["config"], list[str](), 0
    lines = [
        f"{shards.path}: {counted(shards.number, 'shard')} of {counted(len(shards.grid), 'configuration')} in all: "
        f"{config.get('model')} of width {config.get('width')} and depth {config.get('depth')} on "
        f"{config.get('dataset')}"
    ]
    for index, members in enumerate(shards.members()):
        path, head = shards.folder(index), f"shard {index}, {counted(len(members), 'configuration')}: "
        try:
            manifest = read_config(path)
            done, steps = reached(path, manifest), config.get("steps", 0)
            finished += "summary" in manifest
            lines.append(head + _progress(path, manifest, done, steps))
            here = describe_run(path, verify=verify).faults
        except RunNotFoundError:
            lines.append(f"{head}not begun")
            continue
        except CorruptedRunError as error:
            here = [f"{error.file}: {error.reason}"]
        faults += [f"shard {index}: {fault}" for fault in here]
    lines.append(f"{finished} of {counted(shards.number, 'shard')} finished")
    lines += [f"corrupted: {fault}" for fault in faults]
    return RunDescription(lines, faults)


def _progress(path: Path, manifest: dict[str, Any], done: int, steps: int) -> str:
    if "summary" in manifest:
        sessions = counted(len(manifest.get("sessions", ())) + 1, "session")
        return f"finished: {counted(steps, 'step')} in {sessions}"
    now = "running now" if is_locked(path) else f"to go on: periodic-jax resume {path}"
    return f"unfinished: {done} of {counted(steps, 'step')}, {steps - done} left; {now}"


def _describe_telemetry(path: Path, lines: list[str], recorded: int) -> list[str]:
    """Add what the telemetry says; returns what is wrong with it at first sight."""
    if not (path / TELEMETRY).exists():
        return [f"{TELEMETRY}: {MISSING}"] if recorded else []
    try:
        dataset = open_run(path, flat=True)
        diverged = dataset.diverged_at.values
    except (PeriodicJaxError, ValueError) as error:
        return [f"{error.file}: {error.reason}" if isinstance(error, CorruptedRunError) else str(error)]
    swept = [name for name in AXES if len(np.unique(dataset[name])) > 1]
    lines.append(counted(dataset.sizes["config"], "configuration") + (f" over {', '.join(swept)}" if swept else ""))
    gone = np.flatnonzero(np.isfinite(diverged))
    for i in gone[:20]:
        where = " ".join(f"{name}={dataset[name].values[i]:.15g}" for name in swept or ("lr", "weight_decay"))
        lines.append(f"diverged: {where} at step {diverged[i]:.0f}")
    if len(gone) > 20:
        lines.append(f"diverged: {len(gone) - 20} more")
    return []
