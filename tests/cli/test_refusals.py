"""A command that refuses a corrupted run changes nothing on disk, and names what helps; a finished run is completed."""

import shutil

import pytest
import zarr
from helpers.faults import tree
from helpers.survival import OPTIONS, configured, flip, words_of

from periodic_jax import RunCallbacks, run_sweep
from periodic_jax.cli.main import main
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.run import FINISHED, resume_run

QUIET = RunCallbacks(log=lambda line: None)
ONE = {"lr": (0.1, 1.0), "seed": (0,), "momentum": (0.0,), "keep_every": 20}
WORDS = words_of({**OPTIONS, "lr": "0.1 1.0", "momentum": "0", "seed": "0", "keep-every": "20"})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_sweep(configured(tmp_path_factory.mktemp("finished") / "run", **ONE), callbacks=QUIET).path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def status_of(*words):
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code or 0
    return 0


COMMANDS = {
    "info --verify": "info {run} --verify",
    "analyze": "analyze {run}",
    "plot": "plot {run}",
    "report": "report {run}",
    "export": "export {run} --to csv",
    "resume": "resume {run}",
    "resume --steps": "resume {run} --steps 80",
    "branch": "branch {run} --step 40 --steps 60 --out {run}/../branch",
    "landscape": "landscape {run}",
    "minima": "minima {run}",
}
# What each damage is, and the commands that it does not concern.
DAMAGES = {
    "a chunk": ("telemetry.zarr/angular_step/c/0/0", ("branch", "landscape", "minima")),
    "a chunk that only figures need": ("telemetry.zarr/test_error/c/0/0", ("branch", "landscape", "minima")),
    "config.json": ("config.json", ()),
    "shapes": ("telemetry.zarr/loss/zarr.json", ("branch", "landscape", "minima", "resume", "resume --steps")),
}


REFUSED = [
    (command, damage) for damage, (_, spared) in DAMAGES.items() for command in COMMANDS if command not in spared
]


@pytest.mark.parametrize(("command", "damage"), REFUSED)
def test_a_refused_command_changes_nothing(run, capsys, command, damage):
    flip(run / DAMAGES[damage][0])
    before = tree(run.parent)
    assert status_of(*COMMANDS[command].format(run=run).split()) in (1, 2)
    said = capsys.readouterr()
    assert tree(run.parent) == before
    assert "Traceback" not in said.err
    assert "periodic-jax resume" in said.out + said.err or damage == "config.json"


def test_the_commands_of_a_checkpoint_that_is_corrupted_change_nothing(run, capsys):
    for file in run.glob("checkpoints/*/state/d/*"):
        flip(file)
    before = tree(run.parent)
    for command in ("branch", "landscape", "resume", "resume --steps", "info --verify"):
        assert status_of(*COMMANDS[command].format(run=run).split()) in (1, 2), command
        assert tree(run.parent) == before, command
        assert len(capsys.readouterr().err.splitlines()) < 5


@pytest.mark.parametrize("swapped", [False, True])
def test_a_finished_run_whose_metadata_are_lost_is_mended_without_training(run, finished, monkeypatch, swapped):
    chunks = {name: content for name, content in tree(run).items() if "/c/" in name}
    for file in ("zarr.json", "loss/zarr.json", "lr/c/0", "eval_step/c/0"):
        (run / "telemetry.zarr" / file).unlink()
    if swapped:  # each has its checksum
        for source, target in (("seed", "."), ("lr", "seed"), ("test_loss", "loss"), (".", "lr")):
            source = finished / "telemetry.zarr" / source / "zarr.json"
            shutil.copy(source, run / "telemetry.zarr" / target / "zarr.json")
    said = []
    monkeypatch.setattr("periodic_jax.sweeps.sweep.Sweep.compile", lambda self: pytest.fail("compiled"))
    resume_run(run, callbacks=RunCallbacks(log=said.append))
    assert said[0].startswith(f"{run}: rebuilt from config.json: eval_step/c/0, ")
    assert not describe_run(run, verify=True).errors
    assert {name: content for name, content in tree(run).items() if "/c/" in name} == chunks


def test_consolidated_metadata_do_not_keep_a_run_from_going_on(run):
    with pytest.warns(UserWarning, match="[Cc]onsolidated"):
        zarr.consolidate_metadata(run / "telemetry.zarr")
    resume_run(run, steps=60, callbacks=QUIET)
    assert not describe_run(run, verify=True).errors


def test_a_finished_run_without_checkpoints_is_not_trained_again_unasked(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert status_of("info", run) == 0
    assert "checkpoints 0 B (at none; none at 40, its end" in capsys.readouterr().out
    before = tree(run)
    with pytest.raises(CorruptedRunError, match=r"checkpoints: corrupted \(missing\); .* --truncate computes all"):
        resume_run(run, steps=60, callbacks=QUIET)
    assert tree(run) == before


def test_a_branch_from_the_end_says_what_it_needs(run, tmp_path, capsys):
    assert status_of("branch", run, "--out", tmp_path / "branch") == 2
    assert "--steps" in capsys.readouterr().err
    assert not (tmp_path / "branch").exists()


def test_the_sweep_of_a_finished_run_draws_what_is_missing(run, capsys):
    assert status_of("sweep", *WORDS, "--out", run) == 0
    first = capsys.readouterr()
    names = {file.name for file in (run / "figures").iterdir()}
    assert len(names) > 5
    assert FINISHED.format(run) in first.err
    kept = {name: (run / "figures" / name).stat().st_mtime_ns for name in names - {"regimes.png"}}
    (run / "figures/regimes.png").unlink()
    assert status_of("sweep", *WORDS, "--out", run) == 0
    assert capsys.readouterr().out == f"figures: regimes.png in {run / 'figures'}\n"
    assert all((run / "figures" / name).stat().st_mtime_ns == time for name, time in kept.items())
    before = tree(run)
    for command in (("sweep", *WORDS, "--out", run), ("resume", run)):
        assert status_of(*command) == 0
        last = capsys.readouterr()
        assert (last.out, len(last.err.splitlines())) == ("", 1)
    assert tree(run) == before
