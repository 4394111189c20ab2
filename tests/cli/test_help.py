"""What --help and --version print, and what a command line without a command does."""

import itertools
import re

import pytest

from periodic_jax import __version__
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.cli.main import main


@pytest.mark.parametrize("command", [["--help"], ["sweep", "--help"], ["demo", "--help"]])
def test_help_exits_with_0(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    assert "usage: periodic-jax" in capsys.readouterr().out


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_lines_of_help_are_full(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = [line.replace("│", " ").rstrip() for line in capsys.readouterr().out.splitlines()]
    for line, following in itertools.pairwise(lines):
        if following.startswith(" " * 10) and "  " in line[2:]:  # the text goes on in the next line
            assert len(f"{line} {following.split()[0]}") > 78, line


def test_without_a_command_four_are_shown_to_begin_with(capsys):
    with pytest.raises(SystemExit) as stop:
        main([])
    said = capsys.readouterr()
    assert (stop.value.code, said.out) == (2, "")
    shown = re.findall(r"^  periodic-jax (\w+)", said.err, re.MULTILINE)
    assert shown == ["demo", "sweep", "analyze", "resume"]
    assert f"All {len(COMMANDS)} commands: periodic-jax --help" in said.err


def test_the_help_names_every_command_with_what_it_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if re.match(r"  \w", line)] == list(COMMANDS)
    assert max(map(len, lines)) <= 80


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"periodic-jax {__version__}\n"
