"""Several processes of this machine that train one small sweep together; this file is what each of them runs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SETTINGS = {
    "lr": [0.1, 0.3, 1.0, 1e30], "weight_decay": [0.0], "momentum": [0.9], "seed": [0, 1], "width": 2, "depth": 1,
    "eval_every": 6, "checkpoint_seconds": 0.0, "keep": 100,
}  # fmt: skip
# So few steps have no periods, unless small fluctuations of the norm end some; of `periods_online`.
FICKLE = {"GROWTH": 1.0005, "LOSS_RATIO": 0.01, "LOSS_NOISE": 0.0, "NORM_NOISE": 0.0}


def start(out, count, steps, cache, patience=60, code=None, **changes):
    """Processes that run, or go on with, the sweep in a folder; ``changes`` are those of the process of that number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
    }  # fmt: skip
    # XLA_FLAGS are those of the tests: what is compiled in another way has other bits.
    processes = []
    for index in range(count):
        config = {**SETTINGS, "out": str(out), "steps": steps, **changes.get(f"process{index}", {})}
        words = [json.dumps(config), coordinator, str(count), str(index), str(patience), str((code or {}).get(index))]
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, *words], env=environment, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    return processes


def finish(processes, seconds=150):
    """What each process said at last, and its status."""
    ends = []
    try:
        for process in processes:
            said = process.communicate(timeout=seconds)[0].strip().splitlines()
            ends.append((process.returncode, said[-1] if said else ""))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return ends


def main(config, coordinator, count, index, patience, code):
    from periodic_jax import ConfigError, RunConfig, periods_online, run, run_sweep
    from periodic_jax.distributed import joined, leave
    from periodic_jax.errors import RunStopped
    from periodic_jax.results import CONFIG_FILE, read_config
    from periodic_jax.signals import Stop

    config = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(config).items()}
    for name, value in FICKLE.items():
        setattr(periods_online, name, value)
    if code != "None":  # as if this process had another version of the package
        run.code_digest = lambda: code
    status, said = 0, "finished"
    try:
        with joined(coordinator, int(count), int(index), float(patience)) as team, Stop() as stop:
            held = Path(config["out"], CONFIG_FILE)
            before = team.once(lambda: read_config(held.parent)["config"]["steps"] if held.exists() else None)
            if before is not None and before != config["steps"]:
                run.resume_run(config["out"], steps=config["steps"], team=team, stop=stop)
            else:
                run_sweep(RunConfig(**config), team=team, stop=stop)
    except ConfigError as error:
        status, said = 2, str(error)
    except RunStopped as stopped:
        status, said = stopped.status, str(stopped)
    print(said, flush=True)
    leave(status)


if __name__ == "__main__":
    main(*sys.argv[1:])
