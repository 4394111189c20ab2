"""What config.json holds: the configuration, versions, command, code and hardware of its sessions, and the summary."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax._version import __version__
from periodic_jax.runs.config import RunConfig, check_images, planned_steps, to_manifest
from periodic_jax.storage import run_directory, schema

try:
    import resource
except ImportError:  # on Windows
    resource = None

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionResult
    from periodic_jax.sweeps.sweep import Sweep


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
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5
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
        return {"format": schema.FORMAT, **manifest, **resolved, **provenance(sweep)}
    check_images(config, manifest)
    sessions = [*manifest.get("sessions", ()), provenance(sweep)]
    unfinished = {name: value for name, value in manifest.items() if name != "summary"}
    return {**unfinished, **resolved, "ends": former_ends(config, manifest), "sessions": sessions}


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
    return {**manifest, "summary": summary}
