"""The shards of a grid as the tasks of a Slurm job array. All it needs is ``sbatch`` on the PATH."""

import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from periodic_jax.core.errors import ConfigError, PeriodicJaxError

# As sbatch reads a time limit.
TIME = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
TIMES = "MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS or DAYS-HOURS:MINUTES:SECONDS"
WARNING = 60  # seconds before its time limit at which a task is asked to end; Slurm may be up to a minute early

# Without B: in --signal, Slurm signals the step that srun starts, and not the script, which thus sees how it ended.
# srun does not inherit --cpus-per-task. A task that was cancelled, or that Slurm puts back itself, is not RUNNING then.
STEP = """\
srun --mpi=none ${{SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK}} \\
    {command} --shard "$SLURM_ARRAY_TASK_ID"
status=$?
# 143: asked to end, with a checkpoint written. Unless it was cancelled, it goes on when its turn comes again.
# The number of one task's job can be that of the array, so it names no task.
task="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
if [ "$status" = 143 ] && [ "$(squeue -h -j "$task" -o %T)" = RUNNING ]; then scontrol requeue "$task"; fi
exit "$status"
"""


def job_script(command: Sequence[str], out: Path, shards: Iterable[int], options: Iterable[str] = ()) -> str:
    """The batch script of a job array with a task for each shard.

    Args:
        command: a sweep's, without ``--shard``.
        out: the folder of the grid. The tasks' logs go to ``logs/K.log`` in it.
        shards: the shards to train.
        options: further options of sbatch, ``name`` or ``name=value``, which go before those of this module.

    Raises:
        ConfigError: an option that does not fit in a line of its own, or without a name or value.

    Example:
        >>> print(job_script(["periodic-jax", "sweep", "--out", "my runs"], Path("my runs"), range(3), ["time=60"]))
        ... # doctest: +ELLIPSIS
        #!/bin/bash
        #SBATCH --job-name='my runs'
        #SBATCH --array=0-2
        ...
    """
    out = out.absolute()
    logs = str(out / "logs").replace("%", "%%")
    own = (
        f"job-name={out.name}", f"array={as_ranges(shards)}", "ntasks=1", "requeue", "open-mode=append",
        f"signal=TERM@{WARNING}", f"chdir={Path.cwd()}", f"output={logs}/%a.log",
    )  # fmt: skip
    directives = "".join(f"#SBATCH {_directive(option)}\n" for option in (*own, *options))
    return f"#!/bin/bash\n{directives}\n{STEP.format(command=shlex.join(command))}"


def _directive(option: str) -> str:
    """An option as sbatch reads it in a script, where it takes quotes as a shell does."""
    name, equals, value = option.removeprefix("--").partition("=")
    if not name or (equals and not value) or len(option.splitlines()) != 1:
        raise ConfigError("sbatch option", repr(option), "NAME or NAME=VALUE, in one line")
    if name in ("time", "t") and not TIME.fullmatch(value):
        raise ConfigError("--time", value or "an empty value", TIMES)
    return f"--{name}{equals}{shlex.quote(value) if value else ''}"


def as_ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as ``--array`` takes them.

    Example:
        >>> as_ranges([0, 1, 2, 5, 7, 8])
        '0-2,5,7-8'
    """
    groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    runs = ([number for _, number in group] for _, group in groups)
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def find_sbatch() -> str:
    """The path of sbatch.

    Raises:
        PeriodicJaxError: it is not on the PATH.
    """
    if (path := shutil.which("sbatch")) is None:
        raise PeriodicJaxError("sbatch is not on the PATH: call this where jobs are submitted, or give --print")
    return path


def submit(script: str) -> str:
    """Submit a batch script.

    Returns:
        The number of the job.

    Raises:
        PeriodicJaxError: there is no sbatch, or it refuses the job.
    """
    done = subprocess.run([find_sbatch(), "--parsable"], input=script, text=True, capture_output=True, check=False)
    if done.returncode:
        raise PeriodicJaxError(f"sbatch refuses the job: {'; '.join(done.stderr.split(chr(10)))}".rstrip("; "))
    return done.stdout.strip().partition(";")[0]
