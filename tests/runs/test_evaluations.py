"""Evaluations after given updates: against a run evaluated after every update; resumed, in shards, and branched."""

import numpy as np
import pytest

from periodic_jax import ConfigError, RunCallbacks, RunConfig, RunInterrupted, branch_run, open_run, run_sweep
from periodic_jax.cli.axis import parse_steps
from periodic_jax.cli.main import main
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.config import check
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.run_directory import read_config
from periodic_jax.storage.verification import lengths
from periodic_jax.sweeps.chunks import ChunkEnds

QUIET = RunCallbacks(log=lambda line: None, progress=False)
SMALL = {
    "width": 2, "depth": 1, "steps": 20, "keep_every": 10, "layout": "map", "lr": (0.1, 1.0), "precision": "float64",
}  # fmt: skip
AT = (13, 1, 4, 19)
EVALUATIONS = ("train_loss", "train_error", "test_loss", "test_error")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """Evaluated after every update."""
    out = tmp_path_factory.mktemp("every") / "run"
    return open_run(run_sweep(RunConfig(out=out, eval_every=1, **SMALL), callbacks=QUIET)).load()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("at") / "run"
    return run_sweep(RunConfig(out=out, eval_at=AT, **SMALL), callbacks=QUIET).path


def assert_same(found, every, steps, rtol=0.0):
    assert found.eval_step.values.tolist() == steps
    for name in EVALUATIONS:
        np.testing.assert_allclose(found[name], every[name].sel(eval_step=steps), rtol=rtol, err_msg=name)


def test_evaluations_are_those_of_the_run_that_is_always_evaluated(run, every):
    found = open_run(run)
    assert_same(found, every, [0, 1, 4, 13, 19, 20])
    np.testing.assert_array_equal(found.loss, every.loss)
    config = read_config(run)["config"]
    assert (config["eval_at"], config["eval_every"]) == ([1, 4, 13, 19], None)
    assert lengths(read_config(run))["eval_step"] == 4 + 3
    assert not describe_run(run, verify=True).errors


def test_a_run_goes_on_and_is_extended(run, every, tmp_path):
    """Stopped before the first of them; the evaluation at its first end stays."""
    callbacks = RunCallbacks(should_stop=lambda: 3, log=lambda line: None, progress=False)
    small = {**SMALL, "steps": 19}
    with pytest.raises(RunInterrupted):
        run_sweep(RunConfig(out=tmp_path / "run", eval_at=(1, 4, 13), **small), callbacks=callbacks)
    resume_run(tmp_path / "run", callbacks=QUIET)
    resumed = resume_run(tmp_path / "run", steps=20, callbacks=QUIET).path
    assert_same(open_run(resumed), every, [0, 1, 4, 13, 19, 20])
    with pytest.raises(ConfigError, match=r"--eval-at 1 4 13 19 there, 1 13 19 here"):
        run_sweep(RunConfig(out=run, eval_at=(1, 13, 19), **SMALL), callbacks=QUIET)


def test_shards_and_branches_have_the_same_evaluations(run, every, tmp_path):
    for shard in range(2):
        config = RunConfig(out=tmp_path / "shards", eval_at=AT, shards=2, shard=shard, **SMALL)
        run_sweep(config, callbacks=QUIET)
    assert_same(open_run(tmp_path / "shards"), every, [0, 1, 4, 13, 19, 20], rtol=1e-7)  # programs of other shapes
    branch = branch_run(run, tmp_path / "branch", step=10, steps=17, callbacks=QUIET).path
    assert_same(open_run(branch), every, [10, 13, 17])


def test_the_next_evaluation_is_the_first_that_is_planned():
    for at in ((3,), (0, 1, 2, 9), (5, 30)):
        for step in range(12):
            expected = min([later for later in at if later > step] + [12])
            assert ChunkEnds(eval_at=at).next_evaluation(step, 12, None) == expected


def test_ranges_of_updates_are_rounded_each_once():
    assert parse_steps("eval_at", ["logspace:1:10:20"]) == tuple(range(1, 11))
    assert parse_steps("eval_at", ["linspace:0:10:3", "7", "5"]) == (0, 5, 7, 10)
    exact = parse_steps("eval_at", ["logspace:1:10000:40"])
    np.testing.assert_allclose(exact, sorted({round(10 ** (4 * k / 39)) for k in range(40)}))
    assert RunConfig(eval_at=np.array([5, 1])).eval_at == RunConfig(eval_at=[1, 5, 1]).eval_at == (1, 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--eval-at 5 --eval-every 3", "--eval-at: given together with --eval-every"),
        ("--eval-at 5 21", "--eval-at: 21 is not accepted; expected updates from 0 to 20"),
        ("--eval-at -1", "--eval-at: -1 is"),
        ("--eval-at 2.5", "--eval-at: 2.5 is not accepted; expected whole numbers, or ranges"),
        ("--eval-at logspace:0:10:3", "--eval-at: logspace:0:10:3 is"),
        ("--eval-at logspace:1:10", "--eval-at: logspace:1:10 is"),
        ("--eval-at often", "--eval-at: often is"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["sweep", "--steps", "20", *options.split()])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("wrong", [(-3,), (21,), ("a",), (0.5,), 3])
def test_what_is_no_update_is_refused_in_python_too(tmp_path, wrong):
    with pytest.raises(ConfigError, match="--eval-at"):
        check(RunConfig(out=tmp_path / "run", steps=20, eval_at=wrong))
