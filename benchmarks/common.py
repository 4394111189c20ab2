"""What every benchmark needs: the machine, worker processes that take turns, tables and JSON files."""

import contextlib
import functools
import json
import os
import platform
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
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


@functools.cache
def _gpu_name() -> str | None:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


class WorkerError(RuntimeError):
    """A worker ended, or took too long."""


class Worker:
    """A process of its own that trains as many steps as it is asked for, and says how long they took.

    Args:
        module: of this folder, run with ``python -m``; it calls `serve`, or answers lines of JSON.
        options: its command line.
        threads: for its arithmetic; None: its own choice.
        python: the interpreter.
        environment: beside this process's own.
        patience: seconds to wait for an answer, asked for each time; without end, if None.
    """

    def __init__(
        self, module: str, options: Sequence[str], *, threads: int | None = None, python: str = sys.executable,
        environment: Mapping[str, str] | None = None, patience: Callable[[], float] | None = None,
    ) -> None:  # fmt: skip
        variables = {**os.environ, **(environment or {})}
        if threads:
            variables |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._patience, self._complaints = patience, tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as it lives)
        self._process: Any = subprocess.Popen(
            [python, "-m", f"benchmarks.{module}", *options], cwd=HERE.parent, env=variables, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._complaints, start_new_session=True,
        )  # fmt: skip
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def ready(self) -> dict[str, Any]:
        """Wait until it has compiled, and read what it says of that."""
        return self.read()

    def start(self, steps: int) -> None:
        """Ask for some steps, without waiting."""
        self.write(str(steps))

    def seconds(self) -> float:
        """Wait for the steps that were asked for; how long they took."""
        return self.read()["seconds"]

    def close(self) -> None:
        """End the process, and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._listener.join(10)
        for file in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):  # what could not be sent any more
                file.close()

    def write(self, line: str) -> None:
        """Send one line."""
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def read(self) -> dict[str, Any]:
        """Wait for one line of JSON.

        Raises:
            WorkerError: the process has ended, or no line came in time.
        """
        patience = self._patience() if self._patience else None
        try:
            line = self._lines.get(timeout=None if patience is None else max(patience, 0.001))
        except queue.Empty:
            raise WorkerError(f"no answer in {patience:.0f} s") from None
        if not line:
            self._lines.put("")
            raise self._ended()
        return json.loads(line)

    def _listen(self) -> None:
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print too
                self._lines.put(line)
        self._lines.put("")

    def _ended(self) -> WorkerError:
        status = self._process.wait()
        self._complaints.seek(0)
        return WorkerError(f"worker ended with status {status}{last_error(self._complaints.read(), ': ')}")


def last_error(text: str, before: str = "") -> str:
    """The line of a process's complaints that names its last error, in 300 characters; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return before + (errors or lines)[-1][:300] if lines else ""


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
    partial = path.with_suffix(".partial")  # so that a file is never half written
    partial.write_text(json.dumps({"machine": about, "results": results}, indent=1) + "\n")
    return partial.replace(path)
