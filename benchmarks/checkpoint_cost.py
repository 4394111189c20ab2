"""What checkpoints cost: the same steps with many of them and with the last one only, in turn.

    python -m benchmarks.checkpoint_cost [--width 4] [--configs 10] [--steps 1500]

The difference of the two, divided by the number of checkpoints, is what one costs, with the telemetry that must be on
disk before it. Processor time of all threads, which other processes on the machine disturb least. At the default
interval a run pays that once in so many seconds.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save, summary, table
from periodic_jax import RunConfig, runtime
from periodic_jax.run import build_sweep
from periodic_jax.session import Plan, train
from periodic_jax.sweep import Sweep


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=4, help="channels of the first layer")
    parser.add_argument("--configs", type=int, default=10, help="learning rates")
    parser.add_argument("--steps", type=int, default=1500, help="in one timing")
    parser.add_argument("--seconds", type=float, default=0.5, help="between checkpoints, where there are many")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()

    runtime.use_cores_as_devices()
    lr = tuple(float(rate) for rate in np.geomspace(0.01, 1, options.configs))
    config = RunConfig(out="unused", lr=lr, width=options.width, steps=options.steps)
    sweep = build_sweep(config)
    initial = sweep.export(sweep.states)
    timed(sweep, initial, options.steps, 1e9)  # compiles
    costs: list[float] = []
    for _ in range(options.rounds):
        few, many = timed(sweep, initial, options.steps, 1e9), timed(sweep, initial, options.steps, options.seconds)
        costs.append((many["seconds"] - few["seconds"]) / (many["checkpoints"] - few["checkpoints"]))
    interval = RunConfig.checkpoint_seconds
    result: dict[str, Any] = {
        "width": options.width, "configs": options.configs, "state_mb": sum(a.nbytes for a in initial.values()) / 1e6,
        "steps": options.steps, "seconds": few["seconds"], "checkpoints": many["checkpoints"],
        "cost_ms": {**summary([1e3 * cost for cost in costs]), "rounds": costs},
        "share_at_default": {k: v / interval for k, v in summary(costs).items()}, "default_seconds": interval,
    }  # fmt: skip
    header = ["state, MB", "one checkpoint, CPU ms", "min", "max", f"% at one in {interval:g} s", "min", "max"]
    row = [result["state_mb"], *(result["cost_ms"][k] for k in ("median", "min", "max"))]
    row += [100 * result["share_at_default"][k] for k in ("median", "min", "max")]
    print(table(header, [row]))
    print(save("checkpoint-cost", result, options.out))


def timed(sweep: Sweep, initial: dict[str, np.ndarray], steps: int, seconds: float) -> dict[str, float]:
    """One run in a folder of its own: the processor time it took, and how many checkpoints it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        sweep.restore(initial, 0)
        plan = Plan(Path(folder), steps, eval_every=steps, seconds=seconds, keep=10**6)
        started = time.process_time()
        train(sweep, plan)
        elapsed = time.process_time() - started
        return {"seconds": elapsed, "checkpoints": len(list((Path(folder) / "checkpoints").iterdir()))}


if __name__ == "__main__":
    main()
