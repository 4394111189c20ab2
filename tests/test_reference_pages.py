"""Tables of the pages against what the package declares: axes, networks, exit statuses, recordings."""

import dataclasses
import re
import signal
from pathlib import Path

import pytest
from inspection.test_replay import NAMES, OF_EACH_KIND, QUICK

from periodic_jax import ConfigError, models
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.optimizers import OPTIMIZERS, SPECIAL
from periodic_jax.runs.settings import GridAxes

DOCS = Path(__file__).resolve().parent.parent / "docs"


def rows(page, *headings):
    """The cells of each row of the table whose first columns have these headings."""
    text = (DOCS / page).read_text()
    (table,) = [part for part in text.split("\n\n") if part.startswith(f"| {' | '.join(headings)} |")]
    return [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in table.splitlines()[2:]]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_the_axes_of_the_guide_are_those_that_are_declared():
    declared = [field.name for field in dataclasses.fields(GridAxes) if field.metadata["is_axis"]]
    table = {code(row[0])[0]: row for row in rows("guides/sweeps.md", "axis")}
    listed = [flag for row in rows("guides/sweeps.md", "axis") for flag in code(row[0])]
    assert sorted(listed) == sorted(map(flag_of, declared))
    for name in declared:
        readers = [optimizer for optimizer, kind in OPTIMIZERS.items() if name in kind.reads]
        assert code(table[flag_of(name)][2]) == (readers if name in SPECIAL else []), name
        assert (table[flag_of(name)][2] == "all") == (name not in SPECIAL), name


def test_the_networks_of_the_reference_are_those_that_there_are():
    first = {code(row[0])[0]: row for row in rows("reference/networks.md", "`--model`", "layers")}
    assert list(first) == list(models.MODELS)
    for name, (_, options) in models.MODELS.items():
        model, (_, _, normalisation, others) = models.build(name, width=4), first[name]
        assert ("none is marked" in others) == (not models.has_scale_invariant(model)), name
        assert ("with scale and bias" in normalisation) == options.get("affine", False), name
        assert ("scales" in others) == (options.get("affine", False) and models.has_scale_invariant(model)), name


def test_each_network_has_its_sizes():
    table = rows("reference/networks.md", "`--model`", "`--width`")
    assert [name for row in table for name in code(row[0])] == list(models.MODELS)


@pytest.mark.parametrize(("name", "accepted", "refused"), [
    ("ConvNetSI", 8, 12), ("ConvNetSIAf", 8, 12), ("ConvNet", 8, 12), ("ResNet18SI", 9, 7), ("ResNet18SIAf", 9, 7),
    ("ResNet18", 9, 7), ("MLPSI", 1, None), ("ViTSI", 12, 6),
])  # fmt: skip
def test_sizes_of_images(name, accepted, refused):
    models.build(name, width=4).check_input(accepted, accepted)
    if refused:
        with pytest.raises(ConfigError, match="image size"):
            models.build(name, width=4).check_input(refused, refused)


def test_the_statuses_are_those_of_the_signals():
    statuses = {int(number) for row in rows("reference/command_line.md", "status") for number in row[0].split(", ")}
    signals = ("SIGHUP", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGPIPE")
    assert statuses == {0, 1, 2, *(128 + getattr(signal, name) for name in signals)}


def test_the_recordings_are_those_that_each_tier_replays():
    ordinary, slow, stress = rows("reference/pytorch.md", "tests")
    assert set(code(ordinary[2])) == QUICK
    assert slow[2] == "the other seven"
    assert len(NAMES) - len(QUICK) == 7
    assert set(code(slow[3])) == OF_EACH_KIND
    assert stress[3] == "the other eight"
    assert len(NAMES) - len(OF_EACH_KIND) == 8
