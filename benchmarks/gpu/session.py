"""The time that is left, what was found so far, and the one process of JAX at a time."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import Contender, Worker, WorkerError, save, summary

BUILD_SECONDS = 150.0  # the most that one program may take to be compiled
RESERVE = 6.0  # for the tables, and for the end of processes


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    size: int = 32
    channels: int = 3
    batch: int = 128
    widths: tuple[int, ...] = (8, 32)
    configs: int = 16
    precisions: tuple[str, ...] = ("tf32", "bf16")
    grids: tuple[int, ...] = (64, 4, 1)
    steps: int = 20  # compared with float64
    seconds: float = 0.4  # of one measurement
    rounds: int = 3
    matrix: int = 8192
    copied: int = 2**28  # numbers
    run_width: int = 8
    run_steps: int = 300  # of runs compared to the bit
    is_smoke: bool = False

    def network(self, width: int) -> dict[str, Any]:
        """Options of a worker."""
        return {"size": self.size, "channels": self.channels, "batch": self.batch, "width": width}


SMOKE = Scale(
    size=8, batch=16, widths=(2,), configs=2, grids=(4, 1), steps=3, seconds=0.05, rounds=2,
    matrix=256, copied=2**18, run_width=2, run_steps=100, is_smoke=True,
)  # fmt: skip


class Session:
    """Steps of the benchmark, until the time is over.

    Args:
        scale: how large everything is.
        minutes: in all.
        folder: for compiled programs and runs.
        out: folder of the JSON file.
        layouts: to be timed, each ``LAYOUT`` or ``LAYOUT@STORAGE``; the candidates of `sweeps.autotune`, if empty.

    Attributes:
        results: of the steps by name.
        best: options of the fastest way here by width, as far as they are known.
        file: of the results.
        reserve: seconds to leave for other steps.
    """

    def __init__(self, scale: Scale, minutes: float, folder: Path, out: Path | None, layouts: list[str]) -> None:
        self.scale, self.folder, self.layouts = scale, folder, layouts
        self.results: dict[str, Any] = {"minutes": minutes, "steps": {}, "errors": {}, "not_reached": []}
        self.best: dict[int, dict[str, Any]] = {}
        self.generation = 1  # of the process of JAX
        self._end, self._out = time.monotonic() + 60 * minutes - RESERVE, out
        self._started = time.monotonic()
        self.file: Path | None = None
        self.reserve = 0.0
        self._jax: Worker | None = None
        self._about: dict[int, dict[str, Any]] = {}

    def left(self) -> float:
        """Seconds until the end."""
        return self._end - time.monotonic()

    def at_most(self, seconds: float) -> float:
        """That many, or those that are left."""
        return min(seconds, self.left())

    def attempt(self, name: str, step: Callable[["Session"], tuple[Any, str]], reserve: float = 0) -> None:
        """Make a step and write down what comes of it, an error included.

        Args:
            name: of the step.
            step: gives what it found, and that in one line.
            reserve: seconds to leave for what comes after it.
        """
        self.reserve = 0.0 if self.scale.is_smoke else reserve
        if self.left() < (1 if self.scale.is_smoke else 15):
            self.results["not_reached"].append(name)
            print(f"{name}: not reached", flush=True)
            self.write()
            return
        began = time.monotonic()
        try:
            found, line = step(self)
            self.results["steps"][name] = found
        except Exception as error:
            line = self.results["errors"][name] = short(error)
        took = f"[{time.monotonic() - began:.0f} s, at {time.monotonic() - self._started:.0f} s]"
        print(f"{name}: {line} {took}", flush=True)
        self.write()

    def write(self) -> None:
        """Bring the JSON file up to date; one that cannot be written is said, and is no end."""
        try:
            self.file = save("gpu-smoke" if self.scale.is_smoke else "gpu", self.results, self._out)
        except OSError as error:
            print(f"results not written: {short(error)}", flush=True)

    def environment(self, cache: str = "compiled") -> dict[str, str]:
        """Of a process of JAX: it shares the card, and compiles no program twice."""
        flags = {}
        if self.scale.is_smoke:  # most of whose time goes into compiling
            flags["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
        return {
            **flags,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }

    def about(self, width: int) -> dict[str, Any]:
        """Platform, and candidates for the layout of a grid, as the process of JAX has them."""
        if width not in self._about:
            self._about[width] = self.ask({"do": "about", "configs": self.scale.configs, "width": width})
        return self._about[width]

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer of the process of JAX, which is started where there is none."""
        self.send(request)
        return self.receive()

    def send(self, request: Mapping[str, Any]) -> None:
        """Ask without waiting."""
        if self._jax is None:
            self._jax = Worker(
                "gpu.jax_worker", [], environment=self.environment(),
                patience=lambda: self.at_most(BUILD_SECONDS),
            )  # fmt: skip
        try:
            self._jax.write(json.dumps(request))
        except RuntimeError:
            self.end_jax()
            raise

    def receive(self) -> dict[str, Any]:
        """The next answer; a process that gives none is ended."""
        if self._jax is None:
            raise RuntimeError("the process of JAX has ended")
        try:
            answer = self._jax.read()
        except RuntimeError:
            self.end_jax()
            raise
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def end_jax(self) -> None:
        """End the process of JAX; the next question starts another one."""
        if self._jax:
            self._jax.close()
            self._jax = None
            self.generation += 1


class Lane:
    """A sweep in the process of JAX, asked as a `Worker` is.

    Args:
        session: whose process it is.
        options: of `benchmarks.train_jax`.
    """

    def __init__(self, session: Session, **options: Any) -> None:
        self._session, self.options, self.generation = session, options, 0
        self._name = json.dumps(options, sort_keys=True)

    def ready(self) -> dict[str, Any]:
        """Compile it, or do it again after the process was lost."""
        said = self._session.ask({"do": "build", "name": self._name, "options": self.options})
        self.generation = self._session.generation
        return said

    def start(self, steps: int) -> None:
        """Ask for some steps."""
        if self.generation != self._session.generation:
            self.ready()
        self._session.send({"do": "train", "name": self._name, "steps": steps})

    def seconds(self) -> float:
        """How long they took."""
        return self._session.receive()["seconds"]

    def close(self) -> None:
        """Free its memory."""
        if self.generation and self.generation == self._session.generation:
            with contextlib.suppress(RuntimeError):
                self._session.ask({"do": "drop", "name": self._name})
        self.generation = 0


def race(session: Session, ways: Mapping[str, tuple[Any, int]]) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all in turn, as `common.take_turns` does; whoever fails is left out.

    Args:
        session: for its time and scale.
        ways: name -> `Worker` or `Lane`, and the configurations that it trains.

    Returns:
        The figures in milliseconds per configuration and step, and the errors, by name.
    """
    contenders: dict[str, Contender] = {}
    errors: dict[str, str] = {}
    try:
        for name, (worker, configs) in ways.items():
            if contenders and isinstance(worker, Lane) and session.left() < session.reserve:
                errors[name] = "left out for want of time"
                continue
            try:
                workers: Any = [worker]
                contenders[name] = Contender(workers, configs, session.scale.seconds)
            except RuntimeError as error:
                errors[name] = short(error)
                worker.close()
        for _ in range(session.scale.rounds):
            for name in [name for name in contenders if name not in errors]:
                if session.left() < 2 and contenders[name].figures:
                    break
                try:
                    contenders[name].measure()
                except RuntimeError as error:
                    errors[name] = short(error)
    finally:
        for worker, _ in ways.values():
            worker.close()
    figures = {
        name: {**summary(c.figures), "rounds": c.figures, **c.said} for name, c in contenders.items() if c.figures
    }
    return figures, errors


def fastest(figures: Mapping[str, Any]) -> str:
    """The name of the least median.

    Raises:
        RuntimeError: there is none.
    """
    if not figures:
        raise RuntimeError("nothing could be timed")
    return min(figures, key=lambda name: figures[name]["median"])


def short(error: BaseException) -> str:
    """An error in one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, WorkerError) else f"{type(error).__name__}: {text}")[:300]
