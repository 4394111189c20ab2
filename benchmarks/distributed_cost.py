"""What sharing a grid costs: two devices against one, and the path of several processes against that of one.

    python -m benchmarks.distributed_cost

One device has all cores of its process; two devices compute on one core each. The path of several processes is measured
twice: with a process that is the only one of ``jax.distributed``, so that nothing but the path differs, and with two
processes of one core each, which is what a user starts, against one process with two devices.
"""

import argparse
import os
import socket
from typing import Any

from benchmarks.common import Contender, Worker, ratio, save, serve, table, take_turns


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=10)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--out", help="folder for the JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    size = ["--configs", str(options.configs), "--width", str(options.width)]

    def workers(count: int, devices: int, together: bool) -> list[Worker]:
        address = f"127.0.0.1:{_free_port()}"
        words = [f"{devices},{count if together else 0},{index},{address}" for index in range(count)]
        return [Worker("distributed_cost", [*size, "--worker", word]) for word in words]

    ways = {
        "one device": workers(1, 1, False), "two devices": workers(1, 2, False),
        "two devices, distributed": workers(1, 2, True), "two processes of one device": workers(2, 1, True),
    }  # fmt: skip
    # Several workers share the grid: each has its part of the configurations.
    contenders = {name: Contender(w, options.configs // len(w), options.seconds) for name, w in ways.items()}
    results = take_turns(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    compared = {
        "two devices / one device": ratio(results["two devices"], results["one device"]),
        "distributed / plain": ratio(results["two devices, distributed"], results["two devices"]),
        "two processes / two devices": ratio(results["two processes of one device"], results["two devices"]),
    }
    rows = [[name, *(figures[k] for k in ("median", "min", "max"))] for name, figures in results.items()]
    print(table(["ms for a configuration and step", "median", "min", "max"], rows))
    print(table(["ratio", "of medians", "min", "max"], [[name, *found.values()] for name, found in compared.items()]))
    about: dict[str, Any] = {"configs": options.configs, "width": options.width, "cores": len(os.sched_getaffinity(0))}
    print(save("distributed-cost", {**about, "ways": results, "ratios": compared}, options.out))


def work(options: argparse.Namespace) -> None:
    """A worker: DEVICES,PROCESSES,INDEX,ADDRESS; no processes: without ``jax.distributed``."""
    from periodic_jax import runtime
    from periodic_jax.distributed import ALONE, joined

    devices, count, index, address = options.worker.split(",")
    if int(count) == 2:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(index)]})
    runtime.add_xla_flag(f"--xla_force_host_platform_device_count={devices}")
    if int(devices) > 1 or int(count) == 2:
        runtime.add_xla_flag("--xla_cpu_multi_thread_eigen=false")
    if int(count):
        with joined(address, int(count), int(index)) as team:
            train(options, team)
    else:
        train(options, ALONE)


def train(options: argparse.Namespace, team: Any) -> None:
    """Serve steps of the sweep, fetched chunk by chunk as a run does."""
    import numpy as np

    from periodic_jax.config import RunConfig
    from periodic_jax.run import build_sweep

    lr = tuple(float(rate) for rate in np.geomspace(0.01, 1, options.configs))
    sweep = build_sweep(RunConfig(out="unused", lr=lr, width=options.width, steps=1000), team)

    def steps(number: int) -> None:
        for _ in sweep.chunks(number, eval_every=None):
            pass

    steps(1)
    serve(steps, layout=sweep.layout)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
