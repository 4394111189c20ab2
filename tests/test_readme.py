import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from periodic_jax.analysis.regimes import LEAST_STEPS
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.plots.style import FAINT
from periodic_jax.runs.config import RunConfig
from periodic_jax.sweeps.chunks import FIRST_STEPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_two_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (
        "python -m pip install -e . && periodic-jax demo",
        'python -m pip install -e ".[test]" && python -m pytest',
    ):
        assert command in README
        assert command in ci


def test_every_option_it_names_exists():
    fields = [name for kind in (RunConfig, *COMMANDS.values()) for name in kind.__dataclass_fields__]
    known = {"--" + name.replace("_", "-") for name in fields} | {"--help", "--for"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", README))
    assert named
    assert named <= known


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_what_it_says_of_chunks_and_regimes_is_so():
    assert "of about a second" not in README
    assert f"A chunk has {FIRST_STEPS} steps at first" in README
    assert f"fewer than {LEAST_STEPS} steps" in README
    assert f"faint where it is below {FAINT:g}" in README


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_its_examples_run(tmp_path, example):
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    program = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
