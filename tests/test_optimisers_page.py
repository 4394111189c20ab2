"""The page about optimisers: its table names what there is."""

import json
import re
import shlex
from pathlib import Path

from periodic_jax.core.optimizers import OPTIMIZERS
from periodic_jax.runs.config import RunConfig
from periodic_jax.storage.schema import QUANTITIES

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "guides" / "optimisers.md").read_text()


def test_its_table_has_each_optimiser_with_the_axes_that_it_reads():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| (?:coupled|decoupled)[^|]*\| (.*) \|$", PAGE, re.MULTILINE)
    assert {name: tuple(re.findall(r"`(\w+)`", reads)) for name, reads in rows} == {
        name: optimizer.reads for name, optimizer in OPTIMIZERS.items()
    }
    coupled = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| coupled", PAGE, re.MULTILINE)
    assert coupled == [name for name, optimizer in OPTIMIZERS.items() if not optimizer.is_decoupled]


def test_quantities_and_options_that_it_names_exist():
    section = PAGE.split("## What is recorded")[1].split("##")[0]
    first_cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    named = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert len(named) == 8
    assert set(named) <= set(QUANTITIES)
    command = next(line for line in PAGE.splitlines() if line.startswith("    periodic-jax sweep"))
    options = [word[2:].replace("-", "_") for word in shlex.split(command) if word.startswith("--")]
    assert set(options) <= set(RunConfig.__dataclass_fields__)


def test_its_measurements_are_those_of_the_record():
    record = json.loads((ROOT / "benchmarks" / "results" / "rotational_equilibrium-2-cores.json").read_text())
    table = PAGE.split("| optimiser | labels |")[1].split("\n\n")[0].splitlines()[2:]
    assert [line.strip("| ").split(" | ") for line in table] == [
        [f"`{row['optimizer']}`", row["labels"], f"{row['lr']:g}", f"{row['weight_decay']:g}", row["regime"],
         f"{row['angle']:.3f}", f"{row['norm']:.3f}"]
        for row in record["results"]
    ]  # fmt: skip
