"""The example from data to plot."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_minimal_example_draws_its_plot(tmp_path):
    out = run(tmp_path, ROOT / "examples" / "minimal.py", "3")
    assert "dense0/kernel  individually" in out
    assert (tmp_path / "minimal.png").stat().st_size > 10_000
    assert len((ROOT / "examples" / "minimal.py").read_text().splitlines()) < 100
