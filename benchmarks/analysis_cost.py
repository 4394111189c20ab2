"""How long `periodic-jax analyze` takes, and how much memory, on a large run.

    python -m benchmarks.analysis_cost --configs 1000 --steps 100000

Writes the telemetry of a synthetic run (sawtooth periods, equilibria, slow descents, with noise; float32, as a sweep
would write it) into a temporary folder, which is deleted afterwards, and analyses it in a process of its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import save
from periodic_jax.core.grid import SweepGrid
from periodic_jax.storage import run_directory, schema
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter

NAMES = ("loss", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step")
DECAY = 1e-3


def write_run(path: Path, grid: SweepGrid, steps: int, chunk: int = 1000) -> None:
    """A run of plain SGD whose effective gradient norm is quiet, in equilibrium, or bursts every few hundred steps.

    Weight decays are labels only: all configurations decay at `DECAY`. Evaluations, one a chunk, are the loss.
    """
    rng = np.random.default_rng(0)
    lr, configs = grid.coords["lr"], len(grid)
    a, kind = 1 - lr * DECAY, np.arange(configs) % 4  # two of four periodic, one in equilibrium, one falls to its own
    period = rng.integers(400, 4000, configs)
    run_directory.claim_directory(path)
    run_directory.write_config(path, {"format": schema.FORMAT, "config": {"model": "synthetic"}})
    empty = {name: np.zeros((configs, 0), np.float32) for name in NAMES}
    evaluations = ("train_loss", "train_error", "test_loss", "test_error")
    eval_steps = sorted({*range(0, steps, chunk), steps})
    writer = TelemetryWriter(path, TelemetryLayout(grid, steps, eval_steps, empty, evaluations))
    norm = np.full(configs, 5.0)
    for first in range(0, steps, chunk):
        length = min(chunk, steps - first)
        block = {name: np.empty((configs, length), np.float32) for name in NAMES}
        noise = np.exp(0.25 * rng.normal(size=(2, configs, length)))
        for t in range(length):
            elr = lr / norm**2
            phase = (first + t) % period
            burst = (kind < 2) & (phase >= period - 5)
            gradient = np.where(kind == 2, 25 * np.sqrt(2 * DECAY), 1e-3) * noise[0, :, t]
            gradient = np.where(burst, np.sqrt(np.exp(0.4 * period * lr * DECAY) - a**2) / elr, gradient)
            loss = np.where(burst, 3.0, np.where(kind == 2, 0.5, 0.3 / (1 + phase))) * noise[1, :, t]
            tangent = elr * gradient / a
            for name, values in zip(NAMES, (loss, norm, elr, gradient, np.arctan(tangent)), strict=True):
                block[name][:, t] = values
            norm = norm * a * np.sqrt(1 + tangent**2)
        writer.write_evaluation(first, dict.fromkeys(evaluations, block["loss"][:, 0]))
        writer.write(first, block)
    writer.write_diverged(np.full(configs, -1))


def measure(path: str) -> dict[str, float]:
    """Analyse a run; seconds and peak memory of this process."""
    started = time.perf_counter()
    from periodic_jax import analysis
    from periodic_jax.reporting import tables
    from periodic_jax.storage.reader import open_run

    found = analysis.analyze(open_run(path, flat=True), predict=True)
    analysed = time.perf_counter()
    tables.as_text(found)
    tables.save(found, Path(path))
    saved = time.perf_counter()
    regimes, counts = np.unique(found.regime.values, return_counts=True)
    return {
        "analyze_s": round(analysed - started, 2),
        "save_s": round(saved - analysed, 2),
        "total_s": round(saved - started, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "destabilisations": int(found.destabilisations.sum()),
        "violations": int(found.violations.sum()),
        **{str(name): int(count) for name, count in zip(regimes, counts, strict=True)},
    }


def main() -> None:
    """Write a run, analyse it, print and save what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--out", help="folder for the JSON file")
    parser.add_argument("--measure", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        started = time.perf_counter()
        grid = SweepGrid.product(lr=np.geomspace(0.5, 2, options.configs).tolist(), weight_decay=DECAY)
        write_run(path, grid, options.steps)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        print(f"{size:.0f} MB of telemetry written in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        command = [sys.executable, "-m", "benchmarks.analysis_cost", "--measure", str(path)]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    report = {"configs": options.configs, "steps": options.steps, "store_mb": round(size), **measured}
    for name, value in report.items():
        print(f"{name:18s} {value}")
    print(save("analysis-cost", report, options.out))


if __name__ == "__main__":
    main()
