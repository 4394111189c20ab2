"""The shards of a grid as tasks of Ray, on this machine or on a cluster."""

import contextlib
import importlib
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from periodic_jax.core.errors import ConfigError, MissingDependencyError, RunInterrupted
from periodic_jax.runs.callbacks import Stop
from periodic_jax.training import xla

POLL = 2.0  # seconds between looks at how far the shards are
GRACE = 60.0  # seconds in which tasks that are asked to end write their checkpoints


@dataclass(frozen=True)
class RayResources:
    """What a shard takes of the cluster, and how often it is tried."""

    num_cpus: float = 1
    num_gpus: float = 0
    max_retries: int = 10

    def check(self) -> None:
        """Refuse what Ray does not accept.

        Raises:
            ConfigError: a number that is too small.
        """
        for flag, value, least in (
            ("--num-cpus", self.num_cpus, 0),
            ("--num-gpus", self.num_gpus, 0),
            ("--max-retries", self.max_retries, -1),
        ):
            if not value >= least:
                raise ConfigError(flag, value, f"a number from {least}")


def run_shards(
    train: Callable[[Sequence[str]], object],
    command: Sequence[str],
    shards: Iterable[int],
    out: Path,
    *,
    resources: RayResources,
    address: str | None = None,
    report: Callable[[], None] = lambda: None,
) -> dict[int, int | str]:
    """Train shards as tasks of Ray. One that fails does not touch the others.

    Args:
        train: carries out a command; it may end by `SystemExit`. It is called in a process of its own for each shard.
        command: a sweep's, without ``--shard``.
        shards: the shards to train.
        out: the folder of the grid. The logs go to ``logs/K.log`` in it.
        resources: of each shard.
        address: of the cluster. None: what RAY_ADDRESS says, or the cluster that runs on this machine, or a new one.
        report: called every few seconds while shards are trained.

    Returns:
        For each shard its exit status, or why it has none.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no cluster of that address.
        RunInterrupted: a signal asked for the end. The shards that ran have written checkpoints.
    """
    ray = _connected(address)
    out, statuses = out.absolute(), dict[int, int | str]()
    options = {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus, "max_retries": resources.max_retries}
    # A new process for each shard: JAX keeps its devices as long as its process lives.
    task = ray.remote(max_calls=1, **options)(_train_shard)
    devices = max(1, int(resources.num_cpus))
    try:
        with Stop() as stop:
            pending = {
                task.remote(train, [*command, "--shard", str(k)], out / "logs" / f"{k}.log", Path.cwd(), devices): k
                for k in shards
            }
            while pending and not stop():
                for done in ray.wait(list(pending), timeout=POLL)[0]:
                    statuses[pending.pop(done)] = _status(ray, done)
                report()
            if pending:
                for reference in pending:
                    ray.cancel(reference)  # as SIGINT does
                ray.wait(list(pending), num_returns=len(pending), timeout=GRACE)
                raise RunInterrupted("interrupted; the same command goes on", stop())
    finally:
        ray.shutdown()
    return statuses


def find_ray() -> Any:
    """The module ray.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise MissingDependencyError("launch ray", "ray", "periodic_jax[ray]") from None


def _connected(address: str | None) -> Any:
    """The module ray, connected to a cluster."""
    ray = find_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError("--address", address or "none", f"a Ray cluster that answers ({reason})") from None
    return ray


def _status(ray: Any, reference: Any) -> int | str:
    """The exit status of a task that has ended, or why it has none."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def _train_shard(
    train: Callable[[Sequence[str]], object], command: list[str], log: Path, folder: Path, devices: int
) -> int:
    """The task: carry out a command, with its output in a file; returns its exit status.

    Args:
        train: see `run_shards`.
        command: what to carry out.
        log: the file, which is appended to.
        folder: to which relative paths refer, where this machine has it.
        devices: CPU cores to use. Ray counts them, and leaves it to the task to take no more.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.open("a", buffering=1)
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdout = sys.stderr = file
    with contextlib.suppress(OSError):
        os.chdir(folder)
    print(f"process {os.getpid()} on {socket.gethostname()}")
    xla.add_xla_flag(f"--xla_force_host_platform_device_count={devices}")
    sys.argv = ["periodic-jax", *command]
    try:
        train(command)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0
