"""A grid on a real Ray of this machine."""

import os
import re
import signal
import subprocess
import sys

import pytest
from helpers.slurm_cluster import wait_until
from helpers.survival import OPTIONS, assert_same_run, environment, words_of

from periodic_jax.storage.run_directory import checkpoint_steps, read_config

pytest.importorskip("ray", reason="no ray: python -m pip install 'periodic_jax[ray]'")

STEPS, SHARDS = 200, 2
SWEEP = {**OPTIONS, "lr": "0.1 1.0 2.0", "steps": STEPS, "shards": SHARDS}


def command(name, **options):
    return [sys.executable, "-m", "periodic_jax.cli.main", *name.split(), *words_of({**SWEEP, **options})]


@pytest.fixture(scope="module")
def one_core():
    """The environment of a process that takes one core, as a task of Ray does."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return {**environment(), "XLA_FLAGS": " ".join(flags)}


@pytest.mark.slow
def test_a_shard_whose_worker_is_killed_is_tried_again_to_the_undisturbed_bits(one_core, tmp_path):
    out, undisturbed = tmp_path / "my grid", tmp_path / "undisturbed"
    flags = {"XLA_FLAGS": one_core["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"}
    for k in range(SHARDS):
        subprocess.run(command("sweep", out=undisturbed, shard=k), env={**one_core, **flags}, check=True)
    launching = subprocess.Popen(
        command("launch ray", out=out, address="local"), env=one_core, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: checkpoint_steps(out / "shards" / "1"), 120)
        process = int(re.findall(r"process (\d+) on ", (out / "logs" / "1.log").read_text())[0])
        os.kill(process, signal.SIGKILL)
        printed, _ = launching.communicate(timeout=120)
    finally:
        launching.terminate()
        launching.wait()
    assert launching.returncode == 0
    # Ray prints that a worker was killed, in a line before.
    assert printed.splitlines()[-1] == f"2 of 2 shards trained; in {out}"
    for k in range(SHARDS):
        folder = out / "shards" / str(k)
        assert_same_run(folder, undisturbed / "shards" / str(k), STEPS)
        assert len(re.findall("process", (out / "logs" / f"{k}.log").read_text())) == k + 1
        assert len(read_config(folder).get("sessions", ())) == k  # before the last one
    again = subprocess.run(
        command("launch ray", out=out, address="local"), env=one_core, capture_output=True, check=False
    )
    assert (again.returncode, again.stdout) == (0, b"")
    assert b"2 of 2 shards finished" in again.stderr
