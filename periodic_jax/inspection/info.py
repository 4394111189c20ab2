"""What a run directory holds: what ran, how far it came, what diverged, its size, and whether it is as written."""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.checkpoints.verification import corruptions
from periodic_jax.core.errors import CorruptedRunError, PeriodicJaxError, RunNotFoundError, UnreadableError
from periodic_jax.core.files import used_bytes
from periodic_jax.core.formatting import counted, format_bytes
from periodic_jax.core.grid import AXES
from periodic_jax.models.imported import is_import_path
from periodic_jax.runs.build import recorded_states
from periodic_jax.storage import run_directory
from periodic_jax.storage.locks import is_locked
from periodic_jax.storage.minima_files import saved_minima
from periodic_jax.storage.reader import open_run, read
from periodic_jax.storage.run_directory import CHECKPOINTS, MINIMA, TELEMETRY
from periodic_jax.storage.shards import Shards, read_shards
from periodic_jax.storage.verified_store import MISSING, is_rebuildable

REMEDY = "to mend it: "
CONSISTENT = {True: "consistent", False: "consistent as far as seen; --verify reads everything"}


class RunDescription(NamedTuple):
    """A run directory, in words."""

    lines: list[str]
    errors: list[str]  # what is corrupted or missing; empty for a verified run


def describe_run(path: str | os.PathLike[str], *, verify: bool = False, model: str | None = None) -> RunDescription:
    """Describe a run directory, without changing anything in it.

    Args:
        path: the run directory, or the folder of a grid in shards.
        verify: read every telemetry chunk, checkpoint and saved minimum, and compare their checksums.
        model: with ``verify``, as for `resume_run`.

    Returns:
        Lines for the reader, and the errors among them.

    Raises:
        RunNotFoundError: there is no run.
        CorruptedRunError: its config.json is corrupted.
        UnreadableError: a file cannot be read now, which says nothing about what it holds.
    """
    path, shards = Path(path), read_shards(path)
    if shards is not None:
        return _describe_shards(shards, verify=verify, model=model)
    manifest = run_directory.read_config(path)
    config, start_step = manifest.get("config", {}), run_directory.first_step(manifest)
    steps = config.get("steps")
    if not isinstance(steps, int):
        raise CorruptedRunError(path / run_directory.CONFIG_FILE, "no number of steps", run_directory.RESTORE)
    done, checkpoints = run_directory.reached(path, manifest), run_directory.checkpoint_steps(path)
    about = f"{_network(config)}, layout {config.get('layout')}, periodic_jax {manifest.get('version')}"
    lines = [f"{path}: {about}"]
    if "parent" in manifest:
        parent = manifest["parent"]
        lines.append(f"branched from {parent.get('path')} at step {start_step}, changed: {parent.get('changed')}")
    lines += [f"command: {' '.join(map(str, manifest.get('command', ())))}", _progress(path, manifest, done, steps)]
    errors = _describe_telemetry(path, lines, done - start_step)
    whole, telemetry, states = (format_bytes(used_bytes(path / name)) for name in ("", TELEMETRY, CHECKPOINTS))
    at = ", ".join(map(str, checkpoints)) or "none"
    if "summary" in manifest and steps not in checkpoints:
        at += f"; none at {steps}, its end, from which it could be extended"
    lines.append(f"size: {whole}, of which telemetry {telemetry} and checkpoints {states} (at {at})")
    minima = saved_minima(path)
    if minima:
        unfinished = sum(minimum.ended is None for minimum in minima)
        configs, size = len({minimum.config for minimum in minima}), format_bytes(used_bytes(path / MINIMA))
        lines.append(
            f"minima of periods: {len(minima)}, of which {unfinished} unfinished, of {configs} configurations, {size}"
        )
    if verify:
        verified = list(corruptions(path, manifest, partial(recorded_states, model=model)))
        # What was seen at first sight has its file and its reason here.
        errors = verified if any(line.startswith(TELEMETRY) for line in verified) else verified + errors
        if not errors:
            checked = f"every telemetry chunk up to step {done} and {counted(len(checkpoints), 'checkpoint')}"
            checked += f", and {counted(len(minima), 'minimum', 'minima')}" if minima else ""
            lines.append(f"verified: {checked}")
    lines += [f"corrupted: {error}" for error in errors]
    if mendable := [error for error in errors if error.startswith((TELEMETRY, MINIMA, CHECKPOINTS))]:
        files = (error.partition(":")[0].removeprefix(f"{TELEMETRY}/") for error in mendable)
        lines.append(f"{REMEDY}periodic-jax resume {path}" + ("" if all(map(is_rebuildable, files)) else " --truncate"))
    if not errors:
        lines.append(CONSISTENT[verify])
    return RunDescription(lines, errors)


def _describe_shards(shards: Shards, *, verify: bool, model: str | None) -> RunDescription:
    """How far each shard of a grid is, and what is wrong with it."""
    config, errors, remedies, finished = shards.manifest["config"], list[str](), list[str](), 0
    number, configs = counted(shards.number, "shard"), counted(len(shards.grid), "configuration")
    lines = [f"{shards.path}: {number} of {configs} in all: {_network(config)}"]
    for index, members in enumerate(shards.members()):
        path, head = shards.folder(index), f"shard {index}, {counted(len(members), 'configuration')}: "
        try:
            manifest = run_directory.read_config(path)
            described = describe_run(path, verify=verify, model=model)
            here = described.errors
            remedies += [line for line in described.lines if line.startswith(REMEDY)]
            done, steps = run_directory.reached(path, manifest), manifest["config"]["steps"]
            finished += "summary" in manifest
            lines.append(head + _progress(path, manifest, done, steps))
        except RunNotFoundError:
            lines.append(f"{head}not begun")
            continue
        except CorruptedRunError as error:
            here = [f"{error.file}: {error.reason}"]
        errors += [f"shard {index}: {error}" for error in here]
    lines += [f"{finished} of {number} finished", f"size: {format_bytes(used_bytes(shards.path))}"]
    lines += [*(f"corrupted: {error}" for error in errors), *remedies, *([] if errors else [CONSISTENT[verify]])]
    return RunDescription(lines, errors)


def _network(config: dict[str, Any]) -> str:
    model, width, depth, dataset = (config.get(name) for name in ("model", "width", "depth", "dataset"))
    given = " ".join(map(str, config.get("model_args") or ()))
    own = f" with {given}" if given else ""
    return f"{model}{own if is_import_path(str(model)) else f' of width {width} and depth {depth}'} on {dataset}"


def _progress(path: Path, manifest: dict[str, Any], done: int, steps: int) -> str:
    if "summary" in manifest:
        sessions = counted(len(manifest.get("sessions", ())) + 1, "session")
        return f"finished: {counted(steps, 'step')} in {sessions}"
    now = "running now" if is_locked(path) else f"to go on: periodic-jax resume {path}"
    return f"unfinished: {done} of {counted(steps, 'step')}, {steps - done} left; {now}"


def _describe_telemetry(path: Path, lines: list[str], recorded: int) -> list[str]:
    """Add what the telemetry holds; returns what is wrong with it at first sight."""
    if not (path / TELEMETRY).exists():
        return [f"{TELEMETRY}: {MISSING}"] if recorded else []
    try:
        dataset = open_run(path, flat=True)
        diverged = read(dataset, "diverged_at")
    except UnreadableError:
        raise
    except (PeriodicJaxError, ValueError) as error:
        if isinstance(error, CorruptedRunError):
            return [f"{os.path.relpath(str(error.file), path)}: {error.reason}"]
        return [str(error)]
    swept = [name for name in AXES if len(np.unique(dataset[name])) > 1]
    lines.append(counted(dataset.sizes["config"], "configuration") + (f" over {', '.join(swept)}" if swept else ""))
    diverging = np.flatnonzero(np.isfinite(diverged))
    for i in diverging[:20]:
        where = " ".join(f"{name}={dataset[name].values[i]:.15g}" for name in swept or ("lr", "weight_decay"))
        lines.append(f"diverged: {where} at step {diverged[i]:.0f}")
    if len(diverging) > 20:
        lines.append(f"diverged: {len(diverging) - 20} more")
    return []
