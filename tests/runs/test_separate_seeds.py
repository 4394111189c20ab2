"""Runs with separate seeds: resumed, in shards, branched, and what is refused."""

import dataclasses

import numpy as np
import pytest

from periodic_jax import ConfigError, RunCallbacks, RunConfig, RunInterrupted, branch_run, open_run, run_sweep
from periodic_jax.cli.main import main
from periodic_jax.inspection import minima
from periodic_jax.inspection.load import abstract_state, load_run
from periodic_jax.inspection.minima_sources import start_of
from periodic_jax.runs.run import resume_run

QUIET = RunCallbacks(log=lambda line: None, progress=False)
SMALL = {
    "width": 2, "depth": 1, "steps": 20, "eval_every": 10, "keep_every": 10, "layout": "map", "lr": (0.3,),
    "init_seed": (0, 1), "data_seed": (0, 1), "head_seed": (4,),
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_sweep(RunConfig(out=tmp_path_factory.mktemp("seeds") / "run", **SMALL), callbacks=QUIET).path


def test_a_run_goes_on_with_its_seeds(run, tmp_path):
    callbacks = RunCallbacks(should_stop=lambda: 3, log=lambda line: None, progress=False)
    with pytest.raises(RunInterrupted):
        run_sweep(RunConfig(out=tmp_path / "run", **SMALL), callbacks=callbacks)
    resumed = resume_run(tmp_path / "run", callbacks=QUIET).path
    np.testing.assert_array_equal(open_run(resumed).loss, open_run(run).loss)
    assert open_run(run).loss.dims == ("init_seed", "data_seed", "step")


def test_a_branch_goes_on_drawing_with_replacement(tmp_path):
    """From its checkpoint on, to the bits of the undisturbed run."""
    small = {**SMALL, "sampling": "iid", "init_seed": (-1,), "data_seed": (-1,), "head_seed": (-1,)}
    whole = run_sweep(RunConfig(out=tmp_path / "whole", **small), callbacks=QUIET).path
    branch = branch_run(whole, tmp_path / "branch", step=10, callbacks=QUIET).path
    np.testing.assert_array_equal(open_run(branch).loss, open_run(whole).loss.sel(step=slice(10, None)))


@pytest.mark.slow
def test_shards_draw_and_measure_as_the_whole_run_does_also_after_a_stop(tmp_path):
    """Mini-batches with replacement, and eigenvalues: neither a cut of the grid nor a new start changes them."""
    small = {name: value for name, value in SMALL.items() if not name.endswith("_seed")}
    small |= {"sampling": "iid", "track_eigenvalue": 6, "seed": (0, 1), "precision": "float64"}
    whole = open_run(run_sweep(RunConfig(out=tmp_path / "whole", **small), callbacks=QUIET).path)
    config = RunConfig(out=tmp_path / "cut", shards=2, shard=0, **small)
    stopping = RunCallbacks(should_stop=lambda: 3, log=lambda line: None, progress=False)
    with pytest.raises(RunInterrupted):
        run_sweep(config, callbacks=stopping)
    for shard in range(2):
        run_sweep(dataclasses.replace(config, shard=shard), callbacks=QUIET)
    cut = open_run(tmp_path / "cut")
    for name in ("loss", "sphere_hessian_largest"):
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-7, err_msg=name)  # programs for other devices
    assert np.isfinite(cut.sphere_hessian_largest).values[0].nonzero()[0].tolist() == [0, 6, 12, 18]


def test_shards_keep_what_shares_its_data_together(run, tmp_path):
    for shard in range(2):
        run_sweep(RunConfig(out=tmp_path, shards=2, shard=shard, **SMALL), callbacks=QUIET)
    np.testing.assert_array_equal(open_run(tmp_path).loss, open_run(run).loss)
    assert len(np.unique(open_run(tmp_path / "shards/0", flat=True).data_seed)) == 1


def test_a_branch_takes_another_order_of_the_data(run, tmp_path):
    """That of the run with the other seed, from the same weights."""
    path = branch_run(
        run, tmp_path / "branch", step=10, select={"data_seed": [0]}, change={"data_seed": [0, 2]}, callbacks=QUIET
    ).path
    branch, parent = open_run(path), open_run(run).sel(step=slice(10, None))
    np.testing.assert_array_equal(branch.loss.sel(data_seed=0), parent.loss.sel(data_seed=0))
    assert not np.array_equal(branch.loss.sel(data_seed=2), parent.loss.sel(data_seed=0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_seed": [3]}, "--init-seed: the weights are the parent's"),
        ({"head_seed": [3]}, "--head-seed: the weights are the parent's"),
        ({"seed": [3]}, "--seed: the parent has a --data-seed"),
    ],
)
def test_a_branch_refuses_seeds_that_change_nothing(run, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        branch_run(run, tmp_path / "branch", select={"init_seed": [0], "data_seed": [0]}, change=change)
    assert not (tmp_path / "branch").exists()


def test_networks_are_compared_across_all_seeds(run):
    """And the start of each is that of its seeds: of the initial weights, and of the head."""
    loaded = load_run(run)
    starts = [start_of(loaded, i, abstract_state(loaded)) for i in range(3)]  # init_seed 0, 0, 1
    for name, is_same in (("conv0", [True, True, False]), ("head", [True, True, True])):
        kernels = [start[name]["kernel"] for start in starts if start]
        assert [np.array_equal(kernel, kernels[0]) for kernel in kernels] == is_same
    compared = minima._next_seeds(loaded, [0, 1, 2, 3])
    assert compared == [[0, 1, 2, 3], [1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--init-seed -2", "--init-seed: -2 is not accepted; expected whole numbers from 0 to 4294967295, or -1"),
        ("--data-seed 0.5", "--data-seed: 0.5 is"),
        ("--head-seed 4294967296", "--head-seed: 4294967296 is"),
        ("--init-seed 1 1", "--init-seed: 1 given twice"),
        ("--head-seed abc", "--head-seed: abc is"),
        ("--sampling bootstrap", "--sampling: bootstrap is not accepted; expected one of epochs, iid"),
        ("--sampling iid --full-batch", "--sampling: iid is given together with --full-batch"),
    ],
)
def test_what_is_no_seed_is_refused(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["sweep", "--steps", "5", *options.split()])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
