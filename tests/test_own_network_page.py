"""The page on networks of one's own, and the example from data to plot."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "own_network.md").read_text()
ENVIRONMENT = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("example", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_its_examples_run(tmp_path, example):
    run(tmp_path, "-c", example)


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / "guides" / target).exists(), target


def test_the_minimal_example_draws_its_plot(tmp_path):
    out = run(tmp_path, ROOT / "examples" / "minimal.py", "3")
    assert "dense0/kernel  individually" in out
    assert (tmp_path / "minimal.png").stat().st_size > 10_000
    assert len((ROOT / "examples" / "minimal.py").read_text().splitlines()) < 100
