"""What config.json holds: the configuration, versions, command, code and hardware of its sessions, and the summary."""

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
import typing
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax._version import __version__
from periodic_jax.core.errors import ConfigError, CorruptedRunError, UsageError
from periodic_jax.core.files import shown_path
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import LATER_AXES, RUN_AXES
from periodic_jax.runs import settings
from periodic_jax.runs.config import RunConfig, evaluated_every, planned_steps
from periodic_jax.storage import run_directory, schema
from periodic_jax.storage.run_directory import CONFIG_FILE, RESTORE

try:
    import resource
except ImportError:  # on Windows
    resource = None

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionResult
    from periodic_jax.sweeps.sweep import Sweep


NOT_FOLLOWED = ("out", "data_dir", "download")  # of config.json: what leads out of the run directory
FREE = ("keep", "keep_every", "checkpoint_seconds")  # what may change while a run is under way
# What the first run directories have not, and did not do.
LATER = (
    "track_sharpness", "keep_period_minima", "shards", "shard", "storage", "deterministic", "model_args", "optimizer",
    "points", "sampling", "eval_at", "track_eigenvalue", *LATER_AXES,
)  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and of the packages that have a part in the results."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xarray", "zarr")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def provenance(sweep: "Sweep") -> dict[str, Any]:
    """Versions, command, code commit and hardware, for config.json."""
    return {
        "version": __version__,
        "versions": versions(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_commit": _git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "backend": sweep.placement.devices[0].platform,
            "device": sweep.placement.devices[0].device_kind,
            "devices": len(sweep.placement.devices),
        },
    }


def peak_rss_mb() -> float | None:
    """Largest resident memory of this process so far, in MB; None where the system does not tell, as Windows."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)


def _git_commit() -> str | None:
    """The commit of the package's own checkout, None where it is installed otherwise."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=checkout, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def former_ends(config: RunConfig, manifest: Mapping[str, Any]) -> list[int]:
    """The ends of former plans of a run, after which evaluations were made.

    Args:
        config: that of the session.
        manifest: the content of config.json before it.
    """
    ends = list(manifest.get("ends", ()))
    if "summary" in manifest and planned_steps(config) > manifest["config"]["steps"]:
        ends.append(manifest["config"]["steps"])
    return ends


def next_manifest(config: RunConfig, manifest: dict[str, Any], sweep: "Sweep") -> dict[str, Any]:
    """What config.json is to hold while a session runs.

    Args:
        config: that of the run, checked.
        manifest: what it holds; without ``config``, for a new run.
        sweep: that of the session, compiled.

    Raises:
        ConfigError: the images are not those that the run began with.
    """
    data = json.loads(json.dumps(config.data.described()))
    resolved = {"config": to_manifest(config, sweep.layout), "data": data}
    if "config" not in manifest:
        new = {**manifest, **resolved}
        return {"format": schema.FORMAT, "id": run_id(new), **new, **provenance(sweep)}
    check_images(config, manifest)
    sessions = [*manifest.get("sessions", ()), provenance(sweep)]
    unfinished = {name: value for name, value in manifest.items() if name not in ("summary", "telemetry")}
    return {**unfinished, **resolved, "ends": former_ends(config, manifest), "sessions": sessions}


def run_id(manifest: Mapping[str, Any]) -> str:
    """By which a file of another run is told: the same for runs that begin with the same steps, on the same images.

    Args:
        manifest: the content of a new run's config.json.
    """
    later = (*NOT_FOLLOWED, *FREE, "steps", "eval_every", "eval_at", "schedule_end", "layout")
    config = {name: value for name, value in manifest["config"].items() if name not in later}
    origin = {name: value for name, value in manifest.get("parent", {}).items() if name not in ("name", "path")}
    data = {name: value for name, value in manifest["data"].items() if name != "source"}
    content = json.dumps([config, data, origin], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def finished_manifest(
    manifest: dict[str, Any], sweep: "Sweep", outcome: "SessionResult", started: float
) -> dict[str, Any]:
    """What config.json is to hold when the run has ended.

    Args:
        manifest: what it held in the session.
        sweep: that of the session.
        outcome: of the session.
        started: when it began, by `time.perf_counter`.
    """
    configs, timed = len(sweep.grid), outcome.timed_steps
    pace = round(outcome.seconds / timed / configs * 1e3, 4) if timed else None
    summary = {
        "config_steps": (outcome.step - run_directory.first_step(manifest)) * configs,
        # All that follows is of this session alone.
        "session_config_steps": (outcome.step - outcome.start_step) * configs, "ms_per_config_step": pace,
        "compilations": sweep.compilations, "seconds": round(time.perf_counter() - started, 3),
        "peak_rss_mb": peak_rss_mb(),
    }  # fmt: skip
    return {**manifest, "summary": summary, "telemetry": outcome.checksums.as_json()}


def to_manifest(config: RunConfig, layout: str) -> dict[str, Any]:
    """The configuration as config.json holds it, with all that was left open decided.

    Args:
        config: what to run.
        layout: what ``auto`` stands for.
    """
    steps = planned_steps(config)
    config = dataclasses.replace(config, steps=steps, epochs=None, eval_every=evaluated_every(config), layout=layout)
    coords, values = config.whole_grid().coords, dataclasses.asdict(config)
    values["out"] = None if config.out is None else str(shown_path(Path(config.out)))
    rest = {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if name not in RUN_AXES}
    columns = {name: coords[name].tolist() for name in RUN_AXES}
    return rest | {name: all_ if name in config.points else list(dict.fromkeys(all_)) for name, all_ in columns.items()}


def from_manifest(
    manifest: Mapping[str, Any],
    path: Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    model: str | None = None,
) -> RunConfig:
    """The configuration that config.json holds.

    A run directory may be a stranger's: no path in it is followed, nothing is imported and nothing is downloaded
    because of it.

    Args:
        manifest: the content of config.json.
        path: the run directory.
        dataset: the npz file, where the run's data set is one.
        data_dir: where the data set's files are, before the usual folders.
        model: the import path of the network, where the run has one of the user's own.

    Raises:
        CorruptedRunError: it is not a complete configuration.
        ConfigError: it names a file as its data set and ``dataset`` is None, or the same of a network to import.
    """
    from periodic_jax.data import DATASETS

    recorded, hints = manifest.get("config", {}), typing.get_type_hints(RunConfig)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(RunConfig):
        name = field.name
        if name in NOT_FOLLOWED or (name in LATER and name not in recorded):
            continue
        value = recorded.get(name)
        values[name] = tuple(value) if isinstance(value, list) else value
        if name not in recorded or not settings.is_of(values[name], hints[name]):
            given = repr(values[name])[:50] if name in recorded else "no value"
            raise CorruptedRunError(path / CONFIG_FILE, f"{given} for {name}", RESTORE)
    if dataset is not None:
        values["dataset"] = dataset
    elif values["dataset"] not in DATASETS:
        wanted = "give the npz file: paths in config.json are not followed"
        raise UsageError("--dataset", f"not given, and this run's data set is {values['dataset']}", wanted)
    if model is not None and model != values["model"]:
        raise ConfigError("--model", model, f"{values['model']}, as before")
    if model is None and ":" in values["model"]:
        wanted = "give its import path: nothing that config.json names is imported"
        raise UsageError("--model", f"not given, and this run's network is {values['model']}", wanted)
    return RunConfig(out=path, data_dir=data_dir, **values)


def check_images(config: RunConfig, manifest: Mapping[str, Any]) -> None:
    """Refuse other images than those that the run began with.

    Raises:
        ConfigError: what differs.
    """
    data, before = json.loads(json.dumps(config.data.described())), manifest.get("data", {})
    for name, value in data.items():
        if name != "source" and value != before.get(name):
            raise ConfigError("--dataset", f"{config.dataset} with {name} {value}", f"{before.get(name)}, as before")


def difference(config: RunConfig, manifest: Mapping[str, Any]) -> str:
    """What a configuration wants otherwise than a run has it, in one line; empty where they are the same."""
    later = {field.name: field.default for field in dataclasses.fields(RunConfig) if field.name in LATER}
    recorded = json.loads(json.dumps({**later, **manifest.get("config", {})}))
    layout = str(recorded.get("layout")) if config.layout == "auto" else config.layout
    wanted = json.loads(json.dumps(to_manifest(config, layout)))
    names = [n for n in wanted if n not in (*FREE, *NOT_FOLLOWED) and wanted[n] != recorded.get(n)]
    if "steps" in names:  # from which these follow where they are not given
        follows = {"eval_every": config.eval_every is None, "schedule_end": not any(config.schedule_end)}
        names = [n for n in names if not follows.get(n)]
    return "; ".join(f"{flag_of(n)} {_shown(recorded.get(n))} there, {_shown(wanted[n])} here" for n in names)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
