"""What is kept beside a page: the runs' records, their evidence, and the record of the numbers."""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from experiments import evidence
from periodic_jax.core.errors import CorruptedRunError, UsageError
from periodic_jax.storage.run_directory import CONFIG_FILE, read_config

EVIDENCE, RECORD = "evidence.npz", "record.json"


def published(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record without what tells its telemetry, which is not kept, and without places on the machine: of a
    branch's parent, and of files only their names.
    """
    parent = record.get("parent")
    whole = record if parent is None else record | {"parent": {k: v for k, v in parent.items() if k != "path"}}
    return _without_folders({name: value for name, value in whole.items() if name != "telemetry"})


def _without_folders(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def plain(value: Any) -> Any:
    """Numbers as JSON holds them: NumPy's as Python's, None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_record(kept: Path) -> dict[str, Any]:
    """The record of a page.

    Raises:
        UsageError: there is no page.
        CorruptedRunError: its record cannot be read.
    """
    if not kept.exists():
        raise UsageError(kept, "no page yet", "the experiment writes it when its runs are finished")
    try:
        return json.loads((kept / RECORD).read_text())
    except (OSError, ValueError) as error:
        reason = f"no page with its {RECORD}: {type(error).__name__}"
        raise CorruptedRunError(kept, reason, "write it again") from None


def evidence_of(kept: Path) -> dict[str, xr.Dataset]:
    """The evidence of each run, and of what was derived from checkpoints."""
    return {file.parent.name: evidence.load(file) for file in sorted(kept.glob(f"*/{EVIDENCE}"))}


def configs_of(kept: Path, runs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The record of each run."""
    return {run: read_config(kept / run) for run in runs}


def held(path: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None where there is none."""
    with contextlib.suppress(OSError):
        if (path / CONFIG_FILE).exists():
            return read_config(path)
    return None


def digest_of(file: Path) -> str:
    """Of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
