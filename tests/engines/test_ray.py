"""What needs no cluster: refusals, and the task in a process of its own."""

import os
import subprocess
import sys

import pytest

from periodic_jax.core.errors import ConfigError, MissingDependencyError
from periodic_jax.engines.ray import RayResources, run_shards

TASK = """
import sys
from pathlib import Path
from periodic_jax.engines.ray import _train_shard

def train(command):
    import os
    print(sys.argv, os.getcwd(), os.environ["XLA_FLAGS"])
    print("to stderr", file=sys.stderr)
    os.write(2, b"to the descriptor\\n")
    sys.exit({end})

folder = Path(sys.argv[1])
sys.exit(40 + _train_shard(train, ["sweep", "--shard", "3"], folder / "logs" / "3.log", folder, 5))
"""


@pytest.mark.parametrize(("end", "status"), [("", 0), ("2", 2), ("143", 143), ("'text'", 1)])
def test_a_task_has_its_output_in_a_file_and_returns_the_exit_status(tmp_path, end, status):
    end = f"({end})" if end else "0"
    done = subprocess.run(
        [sys.executable, "-c", TASK.replace("{end}", end), str(tmp_path)],
        env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == ((40 + status) % 256, "", "")
    lines = (tmp_path / "logs" / "3.log").read_text().splitlines()
    assert lines[0].startswith("process ")
    assert f"['periodic-jax', 'sweep', '--shard', '3'] {tmp_path} " in lines[1]
    assert "--xla_force_host_platform_device_count=5" in lines[1]
    assert lines[2:] == ["to stderr", "to the descriptor"]


@pytest.mark.parametrize(
    ("resources", "flag"),
    [
        (RayResources(num_cpus=-1), "--num-cpus"),
        (RayResources(num_gpus=float("nan")), "--num-gpus"),
        (RayResources(max_retries=-2), "--max-retries"),
    ],
)
def test_resources_that_ray_does_not_know_are_refused(resources, flag):
    with pytest.raises(ConfigError) as refused:
        resources.check()
    assert refused.value.argument == flag


def test_a_missing_ray_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"'periodic_jax\[ray\]'$"):
        run_shards(print, ["sweep"], [0], tmp_path, resources=RayResources())
