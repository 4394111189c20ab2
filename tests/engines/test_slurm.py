"""The batch script, and what is refused before anything is submitted."""

import os
import shlex
import stat
import subprocess

import pytest

from periodic_jax.core.errors import ConfigError, PeriodicJaxError
from periodic_jax.engines.slurm import as_ranges, job_script, submit

COMMAND = ["python", "-m", "periodic_jax.cli.main", "sweep", "--out", "my grid", "--dataset", "it's $HOME `x`.npz"]


def directives(script):
    """The options of a script, as sbatch reads its quotes."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return dict(word.removeprefix("--").partition("=")[::2] for line in lines for word in shlex.split(line))


def test_script_requeues_and_signals_before_the_time_limit(tmp_path):
    options = directives(job_script(COMMAND, tmp_path / "my grid", range(4), ["time=60", "--exclusive"]))
    assert options == {
        "job-name": "my grid", "array": "0-3", "ntasks": "1", "requeue": "", "open-mode": "append",
        "signal": "TERM@60", "chdir": os.getcwd(), "output": f"{tmp_path}/my grid/logs/%a.log", "time": "60",
        "exclusive": "",
    }  # fmt: skip


def test_percent_signs_of_a_folder_are_no_patterns(tmp_path):
    assert directives(job_script(COMMAND, tmp_path / "9%a", [0], []))["output"] == f"{tmp_path}/9%%a/logs/%a.log"


@pytest.mark.parametrize(
    ("status", "state", "requeued"),
    [(0, "RUNNING", False), (143, "RUNNING", True), (143, "COMPLETING", False), (130, "RUNNING", False),
     (137, "RUNNING", False), (2, "RUNNING", False)],
)  # fmt: skip
def test_script_runs_the_command_and_puts_back_what_was_asked_to_end(tmp_path, status, state, requeued):
    """In a shell, with an srun that shows its arguments and a scontrol that is recorded."""
    for name, body in {
        "srun": f'printf "%s\\n" "$@" >{shlex.quote(str(tmp_path))}/arguments; exit {status}',
        "squeue": f"echo {state}",
        "scontrol": f'echo "$@" >{shlex.quote(str(tmp_path))}/requeued',
    }.items():
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    script = job_script(COMMAND, tmp_path, [7])
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_CPUS_PER_TASK": "3",
    }  # fmt: skip
    done = subprocess.run(["bash"], input=script, text=True, env=environment, check=False)
    assert done.returncode == status
    assert (tmp_path / "arguments").read_text().splitlines() == [
        "--mpi=none", "--cpus-per-task=3", *COMMAND, "--shard", "7",
    ]  # fmt: skip
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 12_7\n"


@pytest.mark.parametrize("option", ["", "--", "qos=", "a=b\nrm", "=x"])
def test_an_option_that_is_no_line_is_refused(tmp_path, option):
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        job_script(COMMAND, tmp_path, [0], [option])


def test_ranges_hold_all_numbers():
    assert as_ranges([3]) == "3"
    assert as_ranges([0, 2, 3, 4, 9]) == "0,2-4,9"


def test_no_sbatch_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PeriodicJaxError, match=r"^sbatch is not on the PATH.*--print$"):
        submit("#!/bin/bash\n")


def test_what_sbatch_refuses_is_one_line(monkeypatch, tmp_path):
    file = tmp_path / "sbatch"
    file.write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\necho 'sbatch: error: failed' >&2\nexit 1\n"
    )
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(PeriodicJaxError) as refused:
        submit("#!/bin/bash\n")
    assert str(refused.value) == "sbatch refuses the job: sbatch: error: invalid partition; sbatch: error: failed"


def test_the_number_of_the_job_is_without_its_cluster(monkeypatch, tmp_path):
    file = tmp_path / "sbatch"
    file.write_text("#!/bin/sh\ncat >/dev/null\necho '12;here'\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert submit("#!/bin/bash\n") == "12"
