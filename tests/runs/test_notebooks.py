"""Cells of a notebook: run again, interrupted, with the values that come to hand."""

import errno
import os

import numpy as np
import pytest
from helpers.faults import failing
from helpers.survival import STEPS, assert_same_run, configured

from periodic_jax import ConfigError, RunCallbacks, RunConfig, branch_run, open_run, resume_run, run_sweep
from periodic_jax.core.errors import UnreadableError
from periodic_jax.runs.manifest import from_manifest
from periodic_jax.runs.run import FINISHED
from periodic_jax.storage.run_directory import read_config

SMALL = {"lr": 0.1, "width": 2, "depth": 1, "steps": 5}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def nothing_trained():
    """Callbacks under which no step may be made."""
    return RunCallbacks(on_start=lambda *_: pytest.fail("trained again"))


def test_a_cell_run_again_gives_the_finished_run(capsys):
    """Of a sweep, of an extension and of a branch."""

    def sweep(callbacks=None):
        return run_sweep(RunConfig(out="run", **SMALL), callbacks=callbacks)

    def extend(callbacks=None):
        return resume_run("run", steps=8, callbacks=callbacks)

    def branch(callbacks=None):
        return branch_run("run", "branch", step=5, change={"lr": [0.2, 0.3]}, steps=9, callbacks=callbacks)

    for cell in (sweep, extend, branch):
        first = cell()
        capsys.readouterr()
        again = cell(nothing_trained())
        assert again.path == first.path
        assert again.analysis.identical(first.analysis)
        assert capsys.readouterr().out == FINISHED.format(first.path) + "\n"


def test_another_configuration_is_refused_with_the_difference_and_open_run():
    run = run_sweep(RunConfig(out="run", **SMALL))
    with pytest.raises(ConfigError, match=r"--lr 0.1 there, 0.2 here; give another folder; .* and open_run read"):
        run_sweep(RunConfig(out=run, **{**SMALL, "lr": 0.2}))


def test_without_a_folder_a_run_gets_a_new_one_and_is_found_again(capsys):
    paths = []
    for lr, callbacks in ((0.1, None), (0.2, None), (0.1, nothing_trained()), (0.2, nothing_trained())):
        paths.append(str(run_sweep(RunConfig(**{**SMALL, "lr": lr}), callbacks=callbacks)))
    assert [os.path.relpath(path) for path in paths] == ["runs/sweep", "runs/sweep-2"] * 2
    assert "run directory: runs/sweep-2\n" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^--out: not given; with --shards, give the folder"):
        run_sweep(RunConfig(shards=2, shard=0, **{**SMALL, "lr": [0.1, 0.2]}))


def interrupt(chunk):
    if chunk.first_step >= 10:
        raise KeyboardInterrupt


def test_an_interrupted_cell_goes_on_when_it_is_run_again(tmp_path, capsys):
    run_sweep(configured("whole"))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(configured("run"), callbacks=RunCallbacks(on_chunk=interrupt))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{tmp_path / 'run'}: interrupted; all up to step ")
    assert line.endswith("is kept: the same call, or resume_run, goes on from there")
    first = []
    run_sweep(configured("run"), callbacks=RunCallbacks(on_start=lambda configs, step, steps: first.append(step)))
    assert 0 < first[0] < STEPS
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_progress_is_shown_unless_it_is_not_wanted(capsys):
    told = []
    callbacks = RunCallbacks(on_chunk=lambda chunk: told.append(chunk.steps))
    run_sweep(RunConfig(out="shown", **SMALL), callbacks=callbacks)
    assert "5.00/5.00" in capsys.readouterr().err
    run_sweep(RunConfig(out="silent", **SMALL), callbacks=RunCallbacks(progress=False))
    assert capsys.readouterr().err == ""
    assert sum(told) == 5


@pytest.mark.parametrize("values", [[0.1, 1.0], (0.1, 1.0), np.array([0.1, 1.0]), np.linspace(0.1, 1.0, 2)], ids=str)
def test_an_axis_takes_what_holds_numbers(values):
    config = RunConfig(lr=values, weight_decay=np.float32(0.5), momentum=0, seed=range(2), steps=np.int64(5), width=2.0)
    assert config == RunConfig(lr=(0.1, 1.0), weight_decay=(0.5,), momentum=(0,), seed=(0, 1), steps=5, width=2)
    assert [type(value) for value in (*config.lr, *config.seed, config.steps)] == [float] * 2 + [int] * 3
    assert len(config.grid()) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": "5"}, r"^--steps: '5' is not accepted; expected a whole number or None$"),
        ({"steps": 2.5}, r"^--steps: 2.5 .* a whole number"),
        ({"steps": True}, r"^--steps: True .* a whole number"),
        ({"lr": "0.1"}, r"^--lr: '0.1' .* finite numbers above 0, one or more$"),
        ({"lr": None}, r"^--lr: None .* finite numbers"),
        ({"lr": [0.1, "x"]}, r"^--lr: \[0.1, 'x'\] .* finite numbers"),
        ({"lr": [[0.1], [0.1, 1.0]]}, r"^--lr: .* finite numbers"),
        ({"seed": True}, r"^--seed: True .* whole numbers"),
        ({"model": 3}, r"^--model: 3 .* text$"),
        ({"full_batch": 1}, r"^--full-batch: 1 .* True or False$"),
        ({"model_args": ("a", 1)}, r"^--model-args: \('a', 1\) .* several texts, as in \('width=8',\)$"),
        ({"model_args": "width=8"}, r"^--model-args: 'width=8' .* several texts"),
        ({"out": 3}, r"^--out: 3 .* text or a path or None$"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(given, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig(**given)


def test_what_was_normalised_is_recorded_as_before():
    run = run_sweep(RunConfig(out="run", **{**SMALL, "seed": np.arange(2)}))
    recorded = read_config(run.path)
    assert (recorded["config"]["lr"], recorded["config"]["seed"]) == ([0.1], [0, 1])
    assert from_manifest(recorded, run.path).seed == (0, 1)
    assert open_run(run).loss.dims == ("seed", "step")


def test_a_list_of_arguments_is_taken():
    assert RunConfig(model_args=["width=8"]).model_args == ("width=8",)


def test_a_run_that_cannot_be_read_now_is_not_taken_for_another_one(monkeypatch):
    first = run_sweep(RunConfig(**SMALL), callbacks=RunCallbacks(log=lambda line: None))
    branch_run(first, "branch", step=5, steps=6)
    failing(monkeypatch, "config.json", errno.ESTALE)
    for call in (
        lambda: run_sweep(RunConfig(**SMALL), callbacks=nothing_trained()),
        lambda: run_sweep(RunConfig(out=first.path, **SMALL), callbacks=nothing_trained()),
        lambda: branch_run(first, "branch", step=5, steps=6, callbacks=nothing_trained()),
    ):
        with pytest.raises(UnreadableError, match=r"config\.json: cannot be read now"):
            call()
