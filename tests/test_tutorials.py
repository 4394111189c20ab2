"""The tutorials run, and print what their pages show: word for word, and a number where there is a number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parent.parent / "docs" / "tutorials"


def shape(lines):
    """Lines without what another machine may compute otherwise: their numbers, and how these are aligned."""
    numbers = re.compile(r"(?<![\w.])-?(\d[\d.]*(e[+-]?\d+)?|nan)\b", re.IGNORECASE)
    return [" ".join(numbers.sub("N", line).split()) for line in lines]


NAMES = [
    pytest.param(path.stem, marks=[] if path.stem == "own_network" else pytest.mark.slow)
    for path in sorted(TUTORIALS.glob("*.py"))
]


@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs_and_prints_what_its_page_shows(tmp_path, name):
    program = TUTORIALS / f"{name}.py"
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    environment.pop("XLA_FLAGS", None)  # of the other tests: with them thousands of steps take minutes
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = [line[4:] for line in program.read_text().splitlines() if line.startswith("# >")]
    assert shown
    assert shape(done.stdout.splitlines()) == shape(shown)
    for figure in re.findall(r"!\[[^]]*\]\(([^)]+)\)", program.read_text()):
        assert (tmp_path / figure).exists()
        assert (TUTORIALS / figure).exists()


def test_two_shapes_differ_by_a_word_only():
    assert shape(["lr 1: norm 3.19e-4", "0.5   NaN"]) == shape(["lr 0.1:  norm 2", "1 -2.5"])
    assert shape(["lr 1: norm 3.19"]) != shape(["lr 1: angle 3.19"])
    assert shape(["['lr': 2, 1]"]) != shape(["['lr2': 2, 1]"])
