"""What checkpoints cost: the same steps with one after every chunk and with the last one only, in turn.

    python -m benchmarks.checkpoint_cost [--width 4] [--configs 10] [--steps 1500]

The difference of the two, divided by the number of checkpoints, is what one costs, with the telemetry that must be on
disk before it: in wall time, for which the machine must be quiet, and in processor time of all threads, which other
processes disturb least. At the default interval a run pays that once in so many seconds. About a minute on two cores.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save, summary, table
from periodic_jax import RunCallbacks, RunConfig
from periodic_jax.runs.build import build_sweep
from periodic_jax.runs.session import SessionPlan, train_session
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training import xla


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4, help="channels of the first layer")
    parser.add_argument("--configs", type=int, default=10, help="learning rates")
    parser.add_argument("--steps", type=int, default=1500, help="in one timing")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()

    xla.use_cores_as_devices()
    lr = tuple(float(rate) for rate in np.geomspace(0.01, 1, options.configs))
    config = RunConfig(out="unused", lr=lr, width=options.width, steps=options.steps)
    sweep = build_sweep(config)
    initial = sweep.placement.fetch(sweep.states)
    timed(sweep, initial, options.steps, 1e9)  # compiles
    clocks = ("wall", "cpu")
    costs: dict[str, list[float]] = {clock: [] for clock in clocks}
    for _ in range(options.rounds):
        few, many = timed(sweep, initial, options.steps, 1e9), timed(sweep, initial, options.steps, 0.0)
        for clock in clocks:
            costs[clock].append(1e3 * (many[clock] - few[clock]) / (many["checkpoints"] - few["checkpoints"]))
    interval = RunConfig.checkpoint_seconds
    cost = {clock: summary(costs[clock]) for clock in clocks}
    share = {clock: {name: value / 1e3 / interval for name, value in cost[clock].items()} for clock in clocks}
    result: dict[str, Any] = {
        "width": options.width, "configs": options.configs, "state_mb": sum(a.nbytes for a in initial.values()) / 1e6,
        "steps": options.steps, "seconds": few, "checkpoints": many["checkpoints"], "default_seconds": interval,
        "cost_ms": {clock: {**cost[clock], "rounds": costs[clock]} for clock in clocks}, "share_at_default": share,
    }  # fmt: skip
    header = ["clock", "state, MB", "one checkpoint, ms", "min", "max", f"% at one in {interval:g} s", "min", "max"]
    names = ("median", "min", "max")
    rows = [
        [clock, result["state_mb"], *(cost[clock][n] for n in names), *(100 * share[clock][n] for n in names)]
        for clock in clocks
    ]
    print(table(header, rows))
    print(f"under 2 % of run time: {'yes' if share['wall']['median'] < 0.02 else 'no'}")
    print(save("checkpoint-cost", result, options.out))


def timed(sweep: Sweep, initial: dict[str, np.ndarray], steps: int, seconds: float) -> dict[str, float]:
    """One run in a folder of its own: how long it took by both clocks, and how many checkpoints it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        sweep.restore(initial, 0)
        plan = SessionPlan(Path(folder), steps, eval_every=steps, seconds=seconds, keep=10**6)
        started, busy = time.perf_counter(), time.process_time()
        train_session(sweep, plan, RunCallbacks())
        elapsed = {"wall": time.perf_counter() - started, "cpu": time.process_time() - busy}
        return {**elapsed, "checkpoints": len(list((Path(folder) / "checkpoints").iterdir()))}


if __name__ == "__main__":
    main()
