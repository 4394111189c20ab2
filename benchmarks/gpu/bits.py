"""Does a run give the same bits again in another process; and, with ``--deterministic``, compiled anew and killed?"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import HERE, last_error
from benchmarks.gpu.session import Session

TRIES = 3  # to kill a run before it is done
# What is compared.
PLAIN, AGAIN, ANEW, RESUMED, BOTH = (
    "again, without --deterministic",
    *(
        f"{what}, --deterministic"
        for what in ("again", "compiled anew", "killed and resumed", "killed, resumed and compiled anew")
    ),
)


class Command:
    """A command of ``periodic-jax`` in a process of its own.

    Args:
        session: for its time.
        words: the command.
        run: the run directory.
        cache: name of its folder of compiled programs.
        complaints: file for what it writes.
    """

    def __init__(self, session: Session, words: list[str], run: Path, cache: str, complaints: Path) -> None:
        self._session, self._run, self._complaints = session, run, complaints
        environment = {**os.environ, **session.environment(cache), "MPLBACKEND": "agg"}
        with complaints.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "periodic_jax.cli.main", *words], cwd=HERE.parent, env=environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> str:
        """Its last error, or nothing. It is ended once all is recorded: figures are not needed.

        Raises:
            RuntimeError: the time is over.
        """
        while self.process.poll() is None:
            if is_finished(self._run):
                self.kill()
                return ""
            if self._session.left() < 1:
                self.kill()
                raise RuntimeError("a run took too long")
            time.sleep(0.02)
        status = self.process.returncode
        return last_error(self._complaints.read_text(), f"status {status}: ") if status else ""

    def kill(self) -> None:
        """End it at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def bits(session: Session) -> tuple[Any, str]:
    """A run and one that should be like it; and with ``--deterministic`` a run and four that should be like it."""
    scale, folder = session.scale, session.folder / "runs"
    folder.mkdir(exist_ok=True)
    layout = session.layouts[0].partition("@")[0] if session.layouts else session.about(scale.run_width)["layouts"][0]
    session.end_jax()
    words = ["--dataset", "digits", "--width", str(scale.run_width), "--lr", "0.01", "0.03", "0.1", "0.3"]
    words += ["--steps", str(scale.run_steps), "--eval-every", "50", "--checkpoint-seconds", "0", "--layout", layout]
    commands: list[Command] = []

    def start(command: str, name: str, cache: str) -> Command:
        run = str(folder / name)
        more = [] if name.startswith("plain") else ["--deterministic"]
        full = ["sweep", *words, *more, "--out", run] if command == "sweep" else [command, run]
        commands.append(Command(session, full, Path(run), cache, folder / f"{name}-{command}.txt"))
        return commands[-1]

    found: dict[str, Any] = {"layout": layout, "errors": {}}
    try:
        running = {"first": start("sweep", "first", "cache-1"), "plain": start("sweep", "plain", "cache-1")}
        running[ANEW] = start("sweep", "anew", "cache-2")
        _note(found, running)
        running = {AGAIN: start("sweep", "again", "cache-1"), PLAIN: start("sweep", "plain-again", "cache-1")}
        killed = _kill_one(session, start, folder)
        found["killed_at"] = _steps_of(folder / killed)
        shutil.copytree(folder / killed, folder / "resumed-anew")
        _note(found, running)
        running = {RESUMED: start("resume", killed, "cache-1"), BOTH: start("resume", "resumed-anew", "cache-3")}
        _note(found, running)
    finally:
        for command in commands:
            command.kill()
        pairs = {PLAIN: ("plain", "plain-again"), AGAIN: ("first", "again"), ANEW: ("first", "anew")}
        pairs |= {RESUMED: ("first", killed_name(folder)), BOTH: ("first", "resumed-anew")}
        for what, (expected, actual) in pairs.items():
            try:
                found[what] = compare(folder / expected, folder / actual)
            except Exception as error:
                found["errors"].setdefault(what, f"{type(error).__name__}: {error}"[:300])
        session.results["steps"]["bits"] = found  # also where the time was over
    if all(what in found["errors"] for what in pairs):
        raise RuntimeError("; ".join(found["errors"].values()))
    said = [f"{what}: {verdict(found[what])}" for what in pairs if what in found]
    said += [f"{what}: {error}" for what, error in found["errors"].items()]
    return found, "; ".join(said)


def verdict(comparison: dict[str, Any]) -> str:
    """A comparison in a few words."""
    if comparison["same"]:
        return "same bits"
    differs = comparison["differs"]
    name = "loss" if "loss" in differs else next(iter(differs))
    return f"{len(differs)} of {comparison['arrays']} arrays differ, {name} {differs[name]}"


def killed_name(folder: Path) -> str:
    """The last run that was started to be killed."""
    return max((path.name for path in folder.glob("killed-?")), default="killed-0")


def _note(found: dict[str, Any], running: dict[str, Command]) -> None:
    """Wait for all, and write down their errors."""
    for what, command in running.items():
        if error := command.wait():
            found["errors"][what] = error


def _kill_one(session: Session, start: Any, folder: Path) -> str:
    """The name of a run that was killed after its first checkpoint and before its end."""
    for trial in range(TRIES):
        name = f"killed-{trial}"
        command = start("sweep", name, "cache-1")
        checkpoints = folder / name / "checkpoints"
        while command.process.poll() is None and not any(p.name.isdigit() for p in _entries(checkpoints)):
            if session.left() < 1:
                raise RuntimeError("the time was over before the kill")
            time.sleep(0.001)
        command.kill()
        if _entries(checkpoints) and not is_finished(folder / name):
            return name
    raise RuntimeError("no run could be killed before its end")


def is_finished(run: Path) -> bool:
    """Whether a run has recorded all of its steps."""
    config = run / "config.json"
    return config.exists() and "summary" in json.loads(config.read_text())


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _steps_of(run: Path) -> list[int]:
    """The checkpoints of a run."""
    return sorted(int(path.name) for path in _entries(run / "checkpoints") if path.name.isdigit())


def compare(expected: Path, actual: Path) -> dict[str, Any]:
    """Whether all recorded arrays of two runs are the same to the bit, and where each is not: at the first such step,
    and by how much at most.
    """
    import zarr

    groups = [zarr.open_group(run / "telemetry.zarr", mode="r") for run in (expected, actual)]
    a, b = ({name: np.asarray(array[...]) for name, array in group.arrays()} for group in groups)
    if a.keys() != b.keys():
        raise RuntimeError(f"arrays of one run alone: {sorted(a.keys() ^ b.keys())}")
    if not a or not all(np.isfinite(x["loss"]).all() for x in (a, b)):
        raise RuntimeError("not all steps were recorded")
    differs = {}
    for name, x in a.items():
        y = b[name]
        if x.shape != y.shape or x.dtype != y.dtype:
            differs[name] = f"{x.shape} {x.dtype} and {y.shape} {y.dtype}"
        elif x.tobytes() != y.tobytes():
            unequal = (x != y) & ~((x != x) & (y != y))
            where = np.flatnonzero(unequal.reshape(len(x), -1).any(0)) if x.ndim > 1 else np.flatnonzero(unequal)
            largest = float(np.max(np.abs(x[unequal] - y[unequal]) / np.maximum(np.abs(x[unequal]), 1e-30), initial=0))
            differs[name] = f"from place {where[0] if where.size else '-'} on, by {largest:.1e} at most"
    return {"same": not differs, "arrays": len(a), "differs": differs}
