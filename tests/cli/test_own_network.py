"""A network of the user's own on the command line: imported when the user asks, and never because of a file."""

import json
import sys

import pytest

from periodic_jax.cli.main import main
from periodic_jax.core.errors import ConfigError
from periodic_jax.models import imported
from periodic_jax.storage.run_directory import read_config

NETS = """
import flax.linen as nn
from pathlib import Path

Path("imported").touch()


class Net(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.width, use_bias=False, name="body")(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, use_bias=False, use_scale=False, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the current directory."""
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "small.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    imported.import_model.cache_clear()
    imported.imported_labels.cache_clear()
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_nets")]:
        del sys.modules[name]


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_a_sweep_of_an_imported_network_goes_on_only_when_it_is_named_again(package, capsys, monkeypatch):
    sweep = ["sweep", "--model", "my_nets.small:Net", "--model-args", "width=3", "--steps", "4", "--out", "run"]
    main([*sweep, "--lr", "0.1", "0.3"])
    config = read_config(package / "run")["config"]
    assert (config["model"], config["model_args"]) == ("my_nets.small:Net", ["width=3"])
    (package / "imported").unlink()
    imported.import_model.cache_clear()
    for name in [name for name in sys.modules if name.startswith("my_nets")]:
        del sys.modules[name]
    capsys.readouterr()
    for command in (["resume", "run", "--steps", "6"], ["landscape", "run"], ["minima", "run"], ["branch", "run"]):
        assert "--model: not given, and this run's network is my_nets.small:Net; give its import path" in refused(
            capsys, *command
        )
    assert "--model: my_nets.small:Other" in refused(capsys, "resume", "run", "--model", "my_nets.small:Other")
    main(["info", "run"])
    assert not (package / "imported").exists()
    assert "run: my_nets.small:Net with width=3 on digits, layout" in capsys.readouterr().out
    main(["resume", "run", "--steps", "6", "--model", "my_nets.small:Net"])
    assert read_config(package / "run")["config"]["steps"] == 6
    assert (package / "imported").exists()
    branch = ["branch", "run", "--steps", "7", "--out", "branch", "--model", "my_nets.small:Net"]
    for _ in range(2):  # the second time it is there
        main(branch)
    assert "the run is finished" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "my_nets.small:Missing"], "--model: my_nets.small:Missing is not accepted"),
        (["--model", "nowhere_at_all:Net"], "--model: nowhere_at_all:Net is not accepted"),
        (["--model", "my_nets/small.py:Net"], "--model: my_nets/small.py:Net is not accepted"),
        (["--model", "my_nets.small:Net", "--model-args", "wide=3"], "--model-args: wide=3 is not accepted"),
        (["--model", "my_nets.small:Net", "--model-args", "width"], "--model-args: width is not accepted"),
        (
            ["--model", "my_nets.small:Net", "--width", "8"],
            "--width: my_nets.small:Net is not one of the built-in networks; give what it takes with --model-args",
        ),
        (["--model", "nowhere_at_all:Net", "--width", "8"], "--model: nowhere_at_all:Net is not accepted"),
        (["--model", "my_nets.small:Net", "--model-args", "width=x"], "a network of images (8, 8, 1) ("),
        (["--model-args", "width=3"], "--model-args: ConvNetSI takes none"),
    ],
)
def test_what_cannot_be_imported_is_refused_before_anything_is_written(package, capsys, options, words):
    assert words in refused(capsys, "sweep", *options, "--steps", "4", "--out", "run")
    assert not (package / "run").exists()


@pytest.mark.parametrize("word", ["width", "=3", "a=/etc/passwd", "a=1 b", "a=__import__('os')"])
def test_arguments_are_numbers_and_words(word):
    with pytest.raises(ConfigError, match="expected NAME=VALUE"):
        imported.read_arguments((word,))
    assert json.dumps(imported.read_arguments(("n=3", "r=0.5", "on=true", "kind=rms"))) == (
        '{"n": 3, "r": 0.5, "on": true, "kind": "rms"}'
    )
