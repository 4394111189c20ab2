"""A real Slurm cluster of one node, of this user's own, in a temporary folder."""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CORES = 4  # more than there may be, so that four tasks run side by side anywhere
# A task that was put back waits until its credential has expired. A killed one gets KillWait seconds to end.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def running_cluster(environment):
    """An environment with which Slurm's commands reach a cluster that runs as long as the ``with`` block.

    Skips the test where Slurm is not installed.
    """
    search = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    paths = {name: shutil.which(name, path=search) for name in (*DAEMONS, "sbatch", "srun", "scontrol")}
    if missing := [name for name, path in paths.items() if path is None]:
        pytest.skip(f"no {', '.join(missing)}: apt-get install --no-install-recommends slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path has at most 107 characters
    environment = {**environment, "SLURM_CONF": str(folder / "slurm.conf")}
    processes = []

    def start(name, *arguments):
        with (folder / f"{name}.log").open("w") as log:
            processes.append(subprocess.Popen([paths[name], *arguments], env=environment, stdout=log, stderr=log))

    try:
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.touch(0o400)
        key.chmod(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        (folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                folder=folder, user=getpass.getuser(), host=socket.gethostname().partition(".")[0], cores=CORES,
                controller_port=_free_port(), node_port=_free_port(),
            )
        )  # fmt: skip
        start("munged", "--foreground", "--force", *(f"--{name}={folder}/munge.{end}" for name, end in {
            "socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"
        }.items()))  # fmt: skip
        wait_until((folder / "munge.socket").exists)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        try:
            wait_until(lambda: slurm(environment, "sinfo", "-h", "-o", "%t") == "idle", 60)
        except TimeoutError:
            logs = "\n".join(file.read_text()[-2000:] for file in folder.glob("*.log"))
            raise RuntimeError(f"the Slurm cluster does not start: {logs}") from None
        try:
            yield environment
        finally:
            slurm(environment, "scancel", "--user", getpass.getuser())
            with contextlib.suppress(TimeoutError):
                wait_until(lambda: not slurm(environment, "squeue", "-h"), 60)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def slurm(environment, *command):
    """What a command of Slurm prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def wait_until(condition, seconds=30):
    """Wait until something holds."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > seconds:
            raise TimeoutError
        time.sleep(0.1)


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
