"""What config.json tells of a run as sessions go on with it and one ends it."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from periodic_jax import analysis, results, tables
from periodic_jax.config import RunConfig, check_images, planned_steps, to_record
from periodic_jax.provenance import peak_rss_mb, provenance

if TYPE_CHECKING:
    from periodic_jax.session import Outcome
    from periodic_jax.sweep import Sweep


def next_record(config: RunConfig, record: dict[str, Any] | None, sweep: "Sweep") -> dict[str, Any]:
    """What config.json is to hold while a session runs.

    Args:
        config: that of the run, checked.
        record: what it holds; None, or without ``config``, for a new run.
        sweep: that of the session.

    Raises:
        ConfigError: the images are not those that the run began with.
    """
    data = json.loads(json.dumps(config.data.described()))
    held = {"config": to_record(config, sweep.layout), "data": data}
    if record is None or "config" not in record:
        return {"format": results.FORMAT, **(record or {}), **held, **provenance(sweep)}
    check_images(config, record)
    ends = list(record.get("ends", ()))
    if "summary" in record and planned_steps(config) > record["config"]["steps"]:
        ends.append(record["config"]["steps"])
    sessions = [*record.get("sessions", ()), provenance(sweep)]
    kept = {name: value for name, value in record.items() if name != "summary"}
    return {**kept, **held, "ends": ends, "sessions": sessions}


def summarise(path: Path, record: dict[str, Any], sweep: "Sweep", outcome: "Outcome", started: float) -> xr.Dataset:
    """Write the table, and that the run has ended.

    Args:
        path: the run directory.
        record: what config.json holds.
        sweep: that of the session.
        outcome: of the session.
        started: when it began, by `time.perf_counter`.

    Returns:
        The analysis.
    """
    found = analysis.analyze(results.open_run(path, flat=True))
    tables.to_csv(found, path / results.SUMMARY_FILE)
    configs, pace = len(sweep.grid), None
    if outcome.steps:
        pace = round(outcome.seconds / outcome.steps / configs * 1e3, 4)
    summary = {
        "config_steps": (outcome.step - results.first_step(record)) * configs,
        # All that follows is of this session alone.
        "session_config_steps": (outcome.step - outcome.begun) * configs, "ms_per_config_step": pace,
        "compilations": sweep.compilations, "seconds": round(time.perf_counter() - started, 3),
        "peak_rss_mb": round(peak_rss_mb(), 1),
    }  # fmt: skip
    results.write_config(path, {**record, "summary": summary})
    return found
