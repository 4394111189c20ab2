"""The long part: processes killed at random moments, a full disk, and one flipped byte in each file of a run directory.

    python -m pytest -n 0 -m stress tests/test_stress.py

writes its figures to benchmarks/results.
"""

import contextlib
import random
import shutil
import signal
import subprocess
import time

import pytest
from survival import assert_same_run, configured, flip, started, wait_for

from benchmarks import common
from periodic_jax import ConfigError, open_run, run_sweep
from periodic_jax.errors import RunStopped
from periodic_jax.info import describe
from periodic_jax.results import checkpoint_steps, read_config
from periodic_jax.run import resume_run

pytestmark = pytest.mark.stress
LONG = 120


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal, from a process of its own; and when it began to train, and ended."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    begun = time.monotonic()
    process = started(out, steps=LONG)
    wait_for(process, lambda: (out / "config.json").exists())
    training = time.monotonic() - begun
    wait_for(process, lambda: LONG in checkpoint_steps(out))
    ended = time.monotonic() - begun
    process.communicate()
    assert process.returncode == 0
    return out, training, ended


@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 25), (signal.SIGTERM, 8)])
def test_killed_at_random_moments(undisturbed, tmp_path, number, times):
    whole, training, ended = undisturbed
    rng, kept = random.Random(int(number)), []
    for i in range(times):
        out = tmp_path / f"run{i}"
        moment = rng.uniform(0.8 * training, ended)
        process = started(out, steps=LONG)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
        process.send_signal(number)
        said = process.communicate()[1]
        if number == signal.SIGTERM and (out / "config.json").exists() and "stopped after" in said:
            assert process.returncode == 143, said
            assert said.splitlines()[-1].startswith("periodic-jax: stopped after")
        kept.append(max(checkpoint_steps(out), default=0))
        if not (out / "config.json").exists():
            run_sweep(configured(out, steps=LONG))
        else:
            assert not describe(out, verify=True).faults
            if "summary" not in read_config(out):
                resume_run(out)
        assert_same_run(out, whole, LONG)
        shutil.rmtree(out)
    figures = {"times": times, "steps": LONG, "step_of_last_checkpoint": kept, "same": times}
    common.save(f"survival-{signal.Signals(number).name.lower()}", figures)


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
            assert not describe(out, verify=True).faults
            resume_run(out)
            assert_same_run(out, undisturbed[0], LONG)
            shutil.rmtree(out)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    common.save("survival-full-disk", {"times": len(kept), "step_of_last_checkpoint": kept, "same": len(kept)})


def test_one_flipped_byte_in_every_file(tmp_path):
    """Reading gives what was written or an error; so does going on."""
    asked = iter(range(3))
    part, whole = tmp_path / "part", run_sweep(configured(tmp_path / "whole"))
    with pytest.raises(RunStopped):
        run_sweep(configured(part), stop=lambda: 0 if next(asked, None) is not None else 143)
    expected, rng, outcome = open_run(part, flat=True).load(), random.Random(1), {}
    for file in sorted(file.relative_to(part) for file in part.rglob("*") if file.is_file()):
        if not (part / file).stat().st_size:
            continue
        out = tmp_path / "out"
        shutil.copytree(part, out)
        flip(out / file, rng.random())
        outcome[str(file)] = {"read": "error", "resume": "error"}
        with contextlib.suppress(ConfigError, ValueError):
            read = open_run(out, flat=True).load()
            assert read.drop_attrs().identical(expected.drop_attrs()), file
            outcome[str(file)]["read"] = "same"
        told = []
        try:
            resume_run(out, say=told.append)
        except ConfigError as error:
            if "--truncate" in str(error):
                resume_run(out, truncate=True, say=told.append)
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
