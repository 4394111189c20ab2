"""A grid on a real Slurm cluster of one node."""

import os
import re
import signal
import subprocess
import sys

import pytest
from helpers.slurm_cluster import running_cluster, slurm, wait_until
from helpers.survival import OPTIONS, assert_same_run, configured, environment, words_of

from periodic_jax import run_sweep
from periodic_jax.storage.run_directory import checkpoint_steps, read_config

STEPS, SHARDS = 200, 4
RATES = (0.1, 1.0, 2.0)  # of which none diverges, since a shard of that alone would have no loss to compare


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The grid, of which nothing disturbed a shard."""
    out = tmp_path_factory.mktemp("undisturbed") / "grid"
    for k in range(SHARDS):
        run_sweep(configured(out, lr=RATES, steps=STEPS, shards=SHARDS, shard=k))
    return out


@pytest.fixture
def cluster():
    with running_cluster(environment()) as reaching:
        yield reaching


def launched(cluster, out, **changes):
    """The number of the job that `launch slurm` submits, and of its tasks."""
    words = words_of({**OPTIONS, "lr": "0.1 1.0 2.0", "steps": STEPS, "shards": SHARDS, "out": out, **changes})
    command = [sys.executable, "-m", "periodic_jax.cli.main", "launch", "slurm", *words]
    done = subprocess.run(command, env=cluster, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    job, tasks = re.match(r"job (\d+): (\d+) shards? of ", done.stdout).groups()
    return job, int(tasks)


def described(cluster, task, name):
    """A property of a task."""
    return re.search(rf"\b{name}=(\S+)", slurm(cluster, "scontrol", "-o", "show", "job", task))[1]


def process_of(cluster, task):
    """The process that srun started for a task."""
    step = described(cluster, task, "JobId") + ".0"
    lines = (line.split() for line in slurm(cluster, "scontrol", "listpids", step).splitlines())
    return next(int(columns[0]) for columns in lines if columns[3] == "0")


def seconds(clock):
    """Of HH:MM:SS."""
    hours, minutes, seconds = map(int, clock.split(":"))
    return 3600 * hours + 60 * minutes + seconds


@pytest.mark.slow
def test_a_requeued_a_killed_and_a_timed_out_task_end_in_the_undisturbed_bits(undisturbed, cluster, tmp_path):
    """The time limit is real: it is set while the task runs, to end within a minute. Slurm asks the task to end before.
    Its process is paused, so that it is not finished before Slurm looks at time limits, which it does twice a minute;
    those of the others too, before they are put back and killed.
    """
    out = tmp_path / "my grid"
    job, tasks = launched(cluster, out)
    assert tasks == SHARDS
    folders = [out / "shards" / str(k) for k in range(SHARDS)]
    requeued, killed, _, limited = (f"{job}_{k}" for k in range(SHARDS))

    def limit():
        minutes = seconds(described(cluster, limited, "RunTime")) // 60 + 1
        slurm(cluster, "scontrol", "update", f"JobId={limited}", f"TimeLimit={minutes}")

    # As soon as a task has a checkpoint, whichever is first: it is paused, so that it cannot come to its end before.
    to_do = {
        3: (limited, limit),
        0: (requeued, lambda: slurm(cluster, "scontrol", "requeue", requeued)),
        1: (killed, lambda: os.kill(process_of(cluster, killed), signal.SIGKILL)),
    }

    def all_done():
        for k in [k for k in to_do if checkpoint_steps(folders[k])]:
            task, act = to_do.pop(k)
            os.kill(process_of(cluster, task), signal.SIGSTOP)
            act()
        return not to_do

    wait_until(all_done, 240)
    wait_until(lambda: described(cluster, limited, "Restarts") == "1", 90)
    slurm(cluster, "scontrol", "update", f"JobId={limited}", "TimeLimit=UNLIMITED")
    wait_until(lambda: not slurm(cluster, "squeue", "-h"), 180)
    assert described(cluster, requeued, "Restarts") == "1"
    assert described(cluster, killed, "ExitCode") == "137:0"
    assert ["summary" in read_config(folder) for folder in folders] == [True, False, True, True]

    assert launched(cluster, out)[1] == 1
    wait_until(lambda: not slurm(cluster, "squeue", "-h"), 120)
    for k, folder in enumerate(folders):
        assert_same_run(folder, undisturbed / "shards" / str(k), STEPS)
        assert len(read_config(folder).get("sessions", ())) == (0 if k == 2 else 1)  # before the last one
        stopped = "finishing the current chunk" in log(out, k)
        assert stopped == (k in (0, 3))


@pytest.mark.slow
def test_a_cancelled_task_writes_a_checkpoint_and_is_not_put_back(cluster, tmp_path):
    out, folder = tmp_path / "grid", tmp_path / "grid" / "shards" / "0"
    job, _ = launched(cluster, out, shards=1, steps=10**5)
    wait_until(lambda: checkpoint_steps(folder), 120)
    slurm(cluster, "scancel", f"{job}_0")
    wait_until(lambda: not slurm(cluster, "squeue", "-h"), 60)
    assert described(cluster, f"{job}_0", "JobState") == "CANCELLED"
    stopped = re.search(r"stopped after (\d+) of 100000 steps", log(out, 0))
    assert int(stopped[1]) == checkpoint_steps(folder)[-1]


def log(out, shard):
    """The output of a shard's tasks so far."""
    file = out / "logs" / f"{shard}.log"
    return file.read_text() if file.exists() else ""
