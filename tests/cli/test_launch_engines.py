"""`periodic-jax launch`: what it refuses, and that it writes and submits nothing then."""

import json
import shlex

import pytest

from periodic_jax.cli.launch_engines import parse_launch
from periodic_jax.cli.main import main

SWEEP = ["--lr", "0.1", "1", "--seed", "0", "1", "--width", "2", "--steps", "3", "--shards", "3"]


def refused(arguments, capsys):
    """The one line of a refusal."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))


def test_the_options_of_the_sweep_go_on_as_they_were_typed():
    words = ["--lr", "logspace:1e-3:1:4", "--seed", "0", "1", "--steps", "3", "--shards", "2", "--out", "my grid"]
    parsed = parse_launch(
        ["slurm", *words[:4], "--time", "60", *words[4:], "--sbatch", "qos=low", "--sbatch=exclusive"]
    )
    assert parsed.command == words
    assert parsed.config.shards == 2
    assert len(parsed.config.lr) == 4
    assert parsed.engine.directives() == ["time=60", "qos=low", "exclusive"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "launch: no engine is given; give periodic-jax launch slurm or periodic-jax launch ray"),
        (["pbs"], "launch: pbs is no engine"),
        (["slurm", *SWEEP], "--out"),
        (["slurm", "--lr", "1", "--steps", "3", "--out", "x"], "--shards"),
        (["slurm", *SWEEP, "--out", "x", "--shard", "0"], "--shard:"),
        (["slurm", *SWEEP, "--out", "x", "--dry-run"], "--dry-run"),
        (["slurm", *SWEEP, "--out", "x", "--for", "h100"], "--for: given without --dry-run"),
        (["slurm", *SWEEP, "--out", "x", "--sbatch", "qos="], "qos="),
        (
            ["slurm", *SWEEP, "--out", "x", "--print", "--time", "2 hours"],
            "--time: 2 hours is not accepted; expected MIN",
        ),
        (["slurm", *SWEEP, "--out", "x", "--print", "--sbatch", "time=1:2:3:4"], "--time: 1:2:3:4"),
        (["slurm", *SWEEP, "--out", "x", "--prnt"], "--prnt: periodic-jax launch slurm has no such option"),
        (["slurm", *SWEEP, "--out", "x", "--cpus-per-task", "two"], "--cpus-per-task"),
        (["slurm", *SWEEP, "--out", "x", "--lr", "0", "--print"], "--lr"),
        (["slurm", *SWEEP, "--out", "x", "--shards", "9", "--print"], "--shards"),
        (["slurm", *SWEEP, "--out", "x"], "sbatch is not on the PATH"),
        (["ray", *SWEEP, "--out", "x", "--max-retries", "-2"], "--max-retries"),
        (["ray", *SWEEP, "--out", "x", "--model", "MLP"], "MLP"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(arguments, named, capsys, tmp_path, monkeypatch, no_slurm):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert named in refused(["launch", *arguments], capsys)
    assert not list(folder.iterdir())


def test_print_shows_the_script_and_writes_nothing(capsys, tmp_path, no_slurm):
    out = tmp_path / "my grid"
    main(["launch", "slurm", *SWEEP, "--out", str(out), "--print", "--mem", "4G"])
    script = capsys.readouterr().out
    assert f"sweep {shlex.join([*SWEEP, '--out', str(out)])} --shard " in script
    assert "#SBATCH --mem=4G\n" in script
    assert not out.exists()


def test_a_job_is_submitted_once_all_is_checked_and_only_for_unfinished_shards(capsys, tmp_path, monkeypatch):
    out, commands = tmp_path / "grid", tmp_path / "commands"
    commands.mkdir()
    (commands / "sbatch").write_text(f"#!/bin/sh\n/bin/cat >{tmp_path}/script\necho 17\n")
    (commands / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(commands))
    main(["launch", "slurm", *SWEEP, "--out", str(out)])
    assert capsys.readouterr().out == f"job 17: 3 shards of {out}, logs in {out}/logs\n"
    assert "--array=0-2\n" in (tmp_path / "script").read_text()
    assert json.loads((out / "shards.json").read_text())["config"]["shards"] == 3
    assert (out / "logs").is_dir()

    main(["sweep", *SWEEP, "--out", str(out), "--shard", "1"])
    capsys.readouterr()
    main(["launch", "slurm", *SWEEP, "--out", str(out)])
    assert "2 shards" in capsys.readouterr().out
    assert "--array=0,2\n" in (tmp_path / "script").read_text()

    (tmp_path / "script").unlink()
    assert "--width 2 there, 3 here" in refused(["launch", "slurm", *SWEEP, "--width", "3", "--out", str(out)], capsys)
    assert "--width 2 there, 3 here" in refused(
        ["launch", "slurm", *SWEEP, "--width", "3", "--out", str(out), "--print"], capsys
    )
    assert "--width 2 there, 3 here" in refused(["launch", "ray", *SWEEP, "--width", "3", "--out", str(out)], capsys)
    assert not (tmp_path / "script").exists()
