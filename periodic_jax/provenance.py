"""With what a run was made: versions, command, code and hardware."""

import os
import platform
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax._version import __version__

if TYPE_CHECKING:
    from periodic_jax.sweep import Sweep


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


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


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
