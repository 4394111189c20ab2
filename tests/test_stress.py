"""The long part: processes stopped at random moments, a full disk, and one flipped byte in each file of a run.

    python -m pytest -n 0 -m stress tests/test_stress.py
    python -m pytest -n 0 -m stress tests/test_stress.py -k "sigterm and (0- or 1-)"

writes its figures to benchmarks/results; any part of it replaces its own.
"""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import threading
import time

import pytest
from helpers.survival import assert_same_run, branched, configured, flip, started, stop_after, wait_for

from benchmarks import common
from periodic_jax import RunCallbacks, open_run, run_sweep
from periodic_jax.core.errors import PeriodicJaxError, RunInterrupted
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.branch import branch_run
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.run_directory import checkpoint_steps, read_config

pytestmark = pytest.mark.stress
LONG = 120
AIMS = ("set-up", "compile", "mid-chunk", "writing", "mid-chunk")  # of the moments, in turn
KINDS = {  # how often, which signals, and the exit status of a run that is told to stop
    "sigkill": (25, (signal.SIGKILL,), -9),
    "sigterm": (25, (signal.SIGTERM,), 143),
    "sigint": (5, (signal.SIGINT,), 130),
    "sigterm-twice": (5, (signal.SIGTERM, signal.SIGTERM), 143),
}
MOMENTS = [pytest.param(kind, i, id=f"{kind}-{i}-") for kind, (times, *_) in KINDS.items() for i in range(times)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal, from a process of its own, and the least seconds to config.json and from
    there to the first checkpoint, of all runs so far.
    """
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    begun = time.monotonic()
    process = started(out, steps=LONG)
    wait_for(process, lambda: (out / "config.json").exists())
    seconds = {"set-up": time.monotonic() - begun}
    wait_for(process, lambda: checkpoint_steps(out))
    seconds["compile"] = time.monotonic() - begun - seconds["set-up"]
    process.communicate()
    assert process.returncode == 0
    return out, seconds


def phase(out):
    """What a run is doing, as its directory tells."""
    if not (out / "config.json").exists():
        return "set-up"
    if "summary" in read_config(out):
        return "figures"
    if any(
        ".partial" in file.name or "tmp" in file.name for file in [*out.rglob("*.partial"), *out.glob("checkpoints/*")]
    ):
        return "writing"
    return "mid-chunk" if checkpoint_steps(out) else "compile"


def wait_for_moment(process, out, aim, rng, seconds):
    """Wait for a random moment of a kind."""
    begun = time.monotonic()
    if aim == "set-up":
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0, seconds["set-up"]))
        return
    wait_for(process, lambda: (out / "config.json").exists())
    seconds["set-up"] = min(seconds["set-up"], time.monotonic() - begun)
    if aim == "compile":
        time.sleep(rng.uniform(0, seconds["compile"]))
        return
    begun = time.monotonic()
    wait_for(process, lambda: checkpoint_steps(out))
    seconds["compile"] = min(seconds["compile"], time.monotonic() - begun)
    wanted = rng.randrange(0, LONG - 30, 10)
    wait_for(process, lambda: max(checkpoint_steps(out), default=0) >= wanted)
    if aim == "writing":
        wait_for(process, lambda: phase(out) == "writing")
    else:
        time.sleep(rng.uniform(0, 0.1))


@pytest.mark.parametrize(("kind", "number"), MOMENTS)
def test_stopped_at_a_random_moment(undisturbed, tmp_path, kind, number):
    whole, seconds = undisturbed
    _, signals, status = KINDS[kind]
    rng, out, aim = random.Random(f"{kind} {number}"), tmp_path / "run", AIMS[number % len(AIMS)]
    process = started(out, steps=LONG)
    begun, said = time.monotonic(), []
    reader = threading.Thread(target=lambda: said.extend(process.stderr))
    reader.start()
    wait_for_moment(process, out, aim, rng, seconds)
    moment, found = time.monotonic() - begun, phase(out)
    process.send_signal(signals[0])
    if len(signals) > 1:
        wait_for(process, lambda: any("again to stop at once" in line for line in said))
        process.send_signal(signals[1])
    asked = time.monotonic()
    assert process.wait(120) is not None
    took = time.monotonic() - asked
    reader.join()
    process.stderr.close()
    kept = max(checkpoint_steps(out), default=0)
    heard = any("again to stop at once" in line for line in said)
    told = [line for line in said if line.startswith("periodic-jax: stopped after ")]
    # Python's own start, and the drawing of figures after the end, are ended by the signal itself.
    assert process.returncode == status if heard else process.returncode in (-signals[0], status, 0), said
    if heard and len(signals) == 1 and process.returncode:
        assert told == [said[-1]], said
        assert f" of {LONG} steps; to go on: periodic-jax resume {out}" in told[0]
        assert int(told[0].split()[3]) == kept
    if found in ("compile", "mid-chunk", "writing") and signals[0] != signal.SIGKILL:
        assert heard, said
    if found == "set-up" and not (out / "config.json").exists():
        run_sweep(configured(out, steps=LONG))
    else:
        assert not describe_run(out, verify=True).errors
        if "summary" not in read_config(out):
            resume_run(out)
    assert_same_run(out, whole, LONG)
    row = {"aim": aim, "phase": found, "seconds": round(moment, 2), "status": process.returncode,
           "seconds_to_end": round(took, 2), "step_of_last_checkpoint": kept, "same": True}  # fmt: skip
    record(f"survival-{kind}", number, row, steps=LONG)


def record(name, number, row, **about):
    """Put one row among those of its kind, and count."""
    file = next((common.HERE / "results").glob(f"{name}-*-cores.json"), None)
    rows = {} if file is None else json.loads(file.read_text())["results"].get("moments", {})
    rows = {**rows, str(number): row}
    rows = {key: rows[key] for key in sorted(rows, key=int)}
    phases = [one["phase"] for one in rows.values()]
    counted = {"times": len(rows), "same": sum(one["same"] for one in rows.values())}
    common.save(
        name, {**about, **counted, "phases": {p: phases.count(p) for p in dict.fromkeys(phases)}, "moments": rows}
    )


BRANCHES = 6


@pytest.mark.parametrize("number", range(BRANCHES))
def test_a_branch_killed_at_a_random_moment(undisturbed, tmp_path, number):
    """The same command, or resume where there is a config.json, ends in the undisturbed branch."""
    parent = undisturbed[0]
    whole = parent.with_name("branch")
    change = {"step": LONG - 10, "change": {"momentum": (0.5,)}, "steps": LONG + 10}
    if not whole.exists():
        branch_run(parent, whole, **change)
    rng, out = random.Random(f"branch {number}"), tmp_path / "branch"
    process = branched(parent, out, step=LONG - 10, momentum=0.5, steps=LONG + 10)
    begun = time.monotonic()
    wait_for(process, out.exists)
    aims = {0: out.exists, 1: (out / "checkpoints.partial").exists, 2: (out / "config.json").exists}
    wait_for(process, aims[number % 3])
    time.sleep(rng.uniform(0, 0.3) if number % 3 != 1 else rng.uniform(0, 0.15))
    moment = time.monotonic() - begun
    process.kill()
    process.communicate()
    left = sorted(file.name for file in out.iterdir())
    if (out / "config.json").exists():
        resume_run(out)
    else:
        branch_run(parent, out, **change)
    assert_same_run(out, whole, LONG + 10)
    assert not describe_run(out, verify=True).errors
    assert not (out / "checkpoints.partial").exists()
    row = {
        "seconds": round(moment, 2),
        "phase": "resumed" if "config.json" in left else "begun again",
        "left": left,
        "same": True,
    }
    record("survival-branch", number, row)


def test_a_full_disk(undisturbed, tmp_path):
    """A small file system fills up while the run is under way; it goes on when there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here; test_resume has a writer that fails")
    kept, rng = [], random.Random(0)
    try:
        for i in range(5):
            out, filler = disk / "run", disk / "filler"
            process = started(out, steps=LONG)
            wanted = rng.randrange(10, 60)
            wait_for(process, lambda out=out, wanted=wanted: max(checkpoint_steps(out), default=0) >= wanted)
            with contextlib.suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(1000))
                    file.flush()
            said = process.communicate()[1]
            assert process.returncode == 1, (i, said)
            assert "is kept: periodic-jax resume" in said.splitlines()[-1], said
            assert "Traceback" not in said
            kept.append(max(checkpoint_steps(out)))
            filler.unlink()
            assert not describe_run(out, verify=True).errors
            resume_run(out)
            assert_same_run(out, undisturbed[0], LONG)
            shutil.rmtree(out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    common.save("survival-full-disk", {"times": len(kept), "step_of_last_checkpoint": kept, "same": len(kept)})


def test_one_flipped_byte_in_every_file(tmp_path):
    """Reading gives what was written or an error; so does going on."""
    part, whole = tmp_path / "part", run_sweep(configured(tmp_path / "whole")).path
    with pytest.raises(RunInterrupted):
        run_sweep(configured(part), callbacks=stop_after(3))
    expected, rng, outcome = open_run(part, flat=True).load(), random.Random(1), {}
    for file in sorted(file.relative_to(part) for file in part.rglob("*") if file.is_file()):
        if not (part / file).stat().st_size:
            continue
        out = tmp_path / "out"
        shutil.copytree(part, out)
        flip(out / file, rng.random())
        outcome[str(file)] = {"read": "error", "resume": "error"}
        with contextlib.suppress(PeriodicJaxError, ValueError):
            read = open_run(out, flat=True).load()
            assert read.drop_attrs().identical(expected.drop_attrs()), file
            outcome[str(file)]["read"] = "same"
        told = []
        try:
            resume_run(out, callbacks=RunCallbacks(log=told.append))
        except PeriodicJaxError as error:
            if "--truncate" in str(error):
                resume_run(out, truncate=True, callbacks=RunCallbacks(log=told.append))
                assert_same_run(out, whole)
                outcome[str(file)]["resume"] = "error, and same with --truncate"
        else:
            assert_same_run(out, whole)
            outcome[str(file)]["resume"] = "same, from an older checkpoint" if told else "same"
        shutil.rmtree(out)
    counted = {kind: {} for kind in ("read", "resume")}
    for one in outcome.values():
        for kind, result in one.items():
            counted[kind][result] = counted[kind].get(result, 0) + 1
    common.save("survival-flipped-byte", {"files": len(outcome), **counted})
