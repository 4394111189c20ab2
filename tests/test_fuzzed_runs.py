"""Run directories with random damage: right results or one line, no hang, and nothing lost that was there.

python -m pytest -n 0 -m slow tests/test_fuzzed_runs.py
FUZZ=1000 FUZZ_SEED=1 python -m pytest -n 0 -s -m slow tests/test_fuzzed_runs.py      more cases, other damage
FUZZ_ONLY=swap ...                                                                    of one kind
"""

import contextlib
import io
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from helpers.faults import one_sweep, tree
from helpers.survival import configured, stop_after
from runs.test_faults import QUIET, STEPS, results

from periodic_jax import RunCallbacks, open_run, run_sweep
from periodic_jax.analysis import analyze
from periodic_jax.core.errors import PeriodicJaxError, RunInterrupted
from periodic_jax.inspection.info import describe_run
from periodic_jax.plots import save_all
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.run_directory import checkpoint_steps, read_config
from periodic_jax.storage.verified_store import is_rebuildable

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
CASES = int(os.environ.get("FUZZ", "30"))
COPIES = (" (1)", ".partial", "~")  # what a copy's name ends with; a run that goes on leaves it there
SEED = os.environ.get("FUZZ_SEED", "0")
ONLY = os.environ.get("FUZZ_ONLY", "")
MOST = int(os.environ.get("FUZZ_MOST", "120"))  # seconds of one call


def settings(out, seed):
    return configured(out, lr=(0.1, 1.0), seed=(seed,), keep_period_minima=20)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, one that was stopped, and a finished one of another seed, which gives files to swap."""
    folder = tmp_path_factory.mktemp("runs")
    with one_sweep():
        run_sweep(settings(folder / "other", 1), callbacks=QUIET)
    with one_sweep():
        run_sweep(settings(folder / "finished", 0), callbacks=QUIET)
        with contextlib.suppress(RunInterrupted):
            run_sweep(settings(folder / "stopped", 0), callbacks=stop_after(3))
        yield folder


def files_of(run):
    return sorted(file for file in run.rglob("*") if file.is_file() and file.name != ".lock")


def truncate(rng, run, other):
    file = rng.choice(files_of(run))
    size = file.stat().st_size
    os.truncate(file, rng.choice([0, size // 2, max(size - 1, 0), rng.randrange(size + 1)]))
    return file


def flip(rng, run, other):
    file = rng.choice([file for file in files_of(run) if file.stat().st_size])
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 1, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file


def delete(rng, run, other):
    file = rng.choice([path for path in sorted(run.rglob("*")) if path.name != ".lock"])
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    return file


def duplicate(rng, run, other):
    """A file under another name beside itself."""
    file = rng.choice(files_of(run))
    target = file.with_name(file.name + rng.choice(COPIES))
    shutil.copy(file, target)
    return target


def swap(rng, run, other):
    """A file of this or of another run in the place of its own."""
    source = rng.choice([other, run])
    file = rng.choice([file for file in files_of(source) if (run / file.relative_to(source)).exists()])
    target = run / file.relative_to(source) if source == other else rng.choice(files_of(run))
    if target != file:
        shutil.copy(file, target)
    return target


DAMAGE = [one for one in (truncate, flip, delete, duplicate, swap) if ONLY in ("", one.__name__)]


@contextlib.contextmanager
def limited(name):
    """Fail where a call hangs."""

    def hangs(*_):
        pytest.fail(f"{name} took more than {MOST} s")

    signal.signal(signal.SIGALRM, hangs)
    signal.alarm(MOST)
    try:
        yield
    finally:
        signal.alarm(0)


def said(name, call):
    """What a call returns, or the one line that it raises."""
    with limited(name):
        try:
            return call(), None
        except PeriodicJaxError as error:
            line = str(error)
    assert line.isprintable()
    return None, line


def values(path):
    return open_run(path, flat=True).load().drop_attrs()


def goes_on(run, whole, outcomes):
    """Resume, as the messages advise it, ends in the undisturbed results; a refusal changes nothing."""
    before, finished = tree(run), False
    with contextlib.suppress(PeriodicJaxError):
        finished = "summary" in read_config(run)
    told: list[str] = []
    _, refused = said("resume", lambda: resume_run(run, callbacks=RunCallbacks(log=told.append)))
    if refused or any("still corrupted" in line for line in told):
        assert not refused or tree(run) == before, refused
        if refused and "--truncate" not in refused:
            outcomes["resume refused"] += 1
            return
        before = tree(run)
        _, again = said("resume --truncate", lambda: resume_run(run, truncate=True, callbacks=QUIET))
        if again:
            assert tree(run) == before, again
            outcomes["resume --truncate refused"] += 1
            return
        outcomes["mended by --truncate"] += 1
    else:
        outcomes["rebuilt" if finished else "went on"] += 1
    if finished and STEPS not in checkpoint_steps(run):  # deleted: nothing else needs them, and `info` tells it
        assert values(run).identical(whole[0])
        assert any(f"none at {STEPS}, its end" in line for line in describe_run(run).lines)
        outcomes["cannot be extended"] += 1
        return
    dataset, states, minima = results(run)
    assert dataset.identical(whole[0])
    minima = {name: content for name, content in minima.items() if not name.endswith(COPIES)}
    assert states == whole[1]
    assert {name: arrays(content) for name, content in minima.items()} == {
        name: arrays(content) for name, content in whole[2].items()
    }


def arrays(content):
    """The arrays of a saved minimum; zip keeps dates too, of which nothing is read."""
    with np.load(io.BytesIO(content)) as stored:
        return {name: stored[name].tolist() for name in stored}


class Case(NamedTuple):
    """What was done to which run."""

    base: Path
    changed: list[str]


def one_case(rng, runs, run, whole, outcomes):
    """Damage a copy of a run, and look at it in all ways."""
    base = runs / rng.choice(["finished", "stopped"])
    shutil.copytree(base, run)
    damage = [rng.choice(DAMAGE) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    changed = [f"{one.__name__} {one(rng, run, runs / 'other').relative_to(run)}" for one in damage]
    outcomes["damaged"] += 1
    try:
        look_at(rng, run, Case(base, changed), whole, outcomes)
    except BaseException as error:
        error.add_note(f"{base.name}: {changed}; {dict(outcomes)}")
        raise


def look_at(rng, run, case, whole, outcomes):
    report, refused = said("info --verify", lambda: describe_run(run, verify=True))
    verified = report is not None and not report.errors
    outcomes["verified" if verified else "found corrupted"] += 1
    for name, read in (("open_run", lambda: values(run)), ("analyze", lambda: analyze(open_run(run, flat=True)))):
        result, refused = said(name, read)
        outcomes[f"{name} {'refused' if refused else 'read'}"] += 1
        if name == "open_run" and not refused:
            assert result.identical(values(case.base)), case.changed
    if rng.random() < 0.1:
        before = tree(run)
        _, refused = said("plot", lambda: save_all(
            open_run(run, flat=True), analyze(open_run(run, flat=True)), run / "figures"
        ))  # fmt: skip
        outcomes[f"plot {'refused' if refused else 'drawn'}"] += 1
        assert not refused or tree(run) == before, case.changed
    telemetry = [name.removeprefix("telemetry.zarr/") for name in (line.split(" ", 1)[1] for line in case.changed)]
    goes_on(run, whole, outcomes)
    if verified or all(map(is_rebuildable, telemetry)):
        chunks = {
            name: c for name, c in tree(case.base).items() if name.startswith("telemetry.zarr/") and "/c/" in name
        }
        now = tree(run)
        assert case.base.name != "finished" or all(now[name] == chunks[name] for name in chunks), case.changed


def test_damaged_runs_give_right_results_or_one_line(runs, tmp_path):
    whole, rng, outcomes = results(runs / "finished"), random.Random(SEED), Counter()
    for _ in range(CASES):
        one_case(rng, runs, tmp_path / "run", whole, outcomes)
        shutil.rmtree(tmp_path / "run")
    print(dict(outcomes))
    assert outcomes["damaged"] == CASES
    assert outcomes["found corrupted"] > CASES / 4
