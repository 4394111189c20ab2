"""What every benchmark needs: the machine, worker processes that take turns, tables and JSON files."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("periodic_jax", "jax", "jaxlib", "torch", "numpy")


def machine() -> dict[str, Any]:
    """Hardware and versions, to stand beside every figure."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "system": platform.system(), "machine": platform.machine(), "cpu": _cpu_name(), "cores": os.cpu_count(),
        "gpu": _gpu_name(), "python": platform.python_version(), **versions, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _gpu_name() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


class Worker:
    """A process of its own that trains as many steps as it is asked for, and says how long they took.

    Args:
        module: of this folder, run with ``python -m``; it calls `serve`.
        options: its command line.
        threads: for its arithmetic; None: its own choice.
        python: the interpreter.
    """

    def __init__(
        self, module: str, options: Sequence[str], *, threads: int | None = None, python: str = sys.executable
    ) -> None:
        environment = dict(os.environ)
        if threads:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *options], cwd=HERE.parent, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ready(self) -> dict[str, Any]:
        """Wait until it has compiled, and read what it says of that."""
        return self._read()

    def start(self, steps: int) -> None:
        """Ask for some steps, without waiting."""
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def seconds(self) -> float:
        """Wait for the steps that were asked for; how long they took."""
        return self._read()["seconds"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended with status {self._process.wait()}")
        return json.loads(line)


def serve(train: Any, **said: Any) -> None:
    """In a worker: say that it is ready, then train as many steps as each line of input asks for."""
    print(json.dumps(said), flush=True)
    for line in sys.stdin:
        started, busy = time.perf_counter(), time.process_time()
        train(int(line))
        elapsed = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - busy}
        print(json.dumps(elapsed), flush=True)


class Contender:
    """One way to train, by one worker or by several at once, timed in milliseconds per configuration and step.

    Args:
        workers: which share the work.
        configs: that each of them trains side by side.
        seconds: about how long one measurement takes.
    """

    def __init__(self, workers: Sequence[Worker], configs: int, seconds: float = 2.0) -> None:
        self._workers, self._configs = workers, configs
        self.said = next(reversed([worker.ready() for worker in workers]))
        self._steps = 1
        self.figures: list[float] = []
        while (once := self._run()) < seconds / 4 and self._steps < 10**6:
            self._steps *= 2
        self._steps = max(1, round(self._steps * seconds / once))

    def measure(self) -> None:
        """One more measurement."""
        elapsed = self._run()
        self.figures.append(elapsed * 1e3 / (self._steps * self._configs * len(self._workers)))

    def close(self) -> None:
        """End its workers."""
        for worker in self._workers:
            worker.close()

    def _run(self) -> float:
        for worker in self._workers:
            worker.start(self._steps)
        return max(worker.seconds() for worker in self._workers)


def take_turns(contenders: Mapping[str, Contender], rounds: int = 5) -> dict[str, dict[str, Any]]:
    """Measure all contenders in turn, round after round, so that a noisy machine is noisy for all of them."""
    for _ in range(rounds):
        for contender in contenders.values():
            contender.measure()
    return {name: {**summary(c.figures), "rounds": c.figures, **c.said} for name, c in contenders.items()}


def summary(figures: Sequence[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(figures), "min": min(figures), "max": max(figures)}


def ratio(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, float]:
    """How much longer ``a`` takes than ``b``: of the medians, and the least and largest of the rounds."""
    rounds = [x / y for x, y in zip(a["rounds"], b["rounds"], strict=True)]
    return {"of_medians": a["median"] / b["median"], "min": min(rounds), "max": max(rounds)}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    text = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [header, *rows]]
    lines = ["| " + " | ".join(row) + " |" for row in text]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def save(name: str, results: Any, folder: str | Path | None = None) -> Path:
    """Write ``NAME-MACHINE.json`` with the machine beside the results."""
    where = Path(folder) if folder else HERE / "results"
    where.mkdir(parents=True, exist_ok=True)
    about = machine()
    kind = (about["gpu"] or f"{about['cores']}-cores").lower().replace(" ", "-")
    path = where / f"{name}-{kind}.json"
    path.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    return path
