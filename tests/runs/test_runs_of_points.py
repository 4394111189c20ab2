"""Runs of configurations that are no product: against each alone, in shards, resumed, and branched."""

import functools

import numpy as np
import pandas as pd
import pytest

from periodic_jax import ConfigError, RunCallbacks, RunConfig, RunInterrupted, branch_run, open_run, run_sweep
from periodic_jax.cli.main import main
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.branch import branched_axes
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.run_directory import read_config
from periodic_jax.storage.verification import lengths

QUIET = RunCallbacks(log=lambda line: None, progress=False)
SMALL = {"width": 2, "depth": 1, "steps": 20, "eval_every": 10, "keep_every": 10, "layout": "map"}
ROWS = [(0.1, 1e-3, 0), (1.0, 1e-2, 1), (0.1, 1e-2, 0), (0.3, 0.0, 0)]
TABLE = dict(zip(("lr", "weight_decay", "seed"), zip(*ROWS, strict=True), strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four configurations of two seeds, from a csv file that is no more."""
    folder = tmp_path_factory.mktemp("points")
    pd.DataFrame(TABLE).to_csv(folder / "points.csv", index=False)
    path = run_sweep(RunConfig(out=folder / "run", points=folder / "points.csv", **SMALL), callbacks=QUIET).path
    (folder / "points.csv").unlink()
    return path


def test_points_are_the_product_grids_of_each(run, tmp_path):
    flat = open_run(run, flat=True)
    assert [*zip(*(flat[name].values.tolist() for name in TABLE), strict=True)] == ROWS
    assert open_run(run).loss.dims == ("config", "step")
    whole = run_sweep(
        RunConfig(out=tmp_path / "run", lr=(0.1, 1.0), weight_decay=(1e-3, 1e-2), seed=(0, 1), **SMALL), callbacks=QUIET
    )
    product = open_run(whole)
    for i, (lr, decay, seed) in enumerate(ROWS[:3]):
        alone = product.sel(lr=lr, weight_decay=decay, seed=seed)
        for name in ("loss", "weight_norm", "test_loss"):
            np.testing.assert_array_equal(flat[name][i], alone[name], err_msg=f"{name}, point {i}")
    manifest = read_config(run)
    assert manifest["config"]["points"] == ["lr", "weight_decay", "seed"]
    assert lengths(manifest)["config"] == 4
    assert not describe_run(run, verify=True).errors


def test_a_run_of_points_goes_on_without_the_file(run, tmp_path):
    """Stopped, resumed and extended, and found again by the same points, but not by others."""
    stopped = RunCallbacks(should_stop=lambda: 3, log=lambda line: None, progress=False)
    config = RunConfig(out=tmp_path / "run", points=TABLE, **SMALL)
    with pytest.raises(RunInterrupted):
        run_sweep(config, callbacks=stopped)
    resume_run(tmp_path / "run", callbacks=QUIET)
    resumed = resume_run(tmp_path / "run", steps=30, callbacks=QUIET).path
    np.testing.assert_array_equal(open_run(resumed).loss.sel(step=slice(None, 19)), open_run(run).loss)
    turned = {name: np.roll(column, 1) for name, column in TABLE.items()}
    other = RunConfig(out=resumed, points=turned, **{**SMALL, "steps": 30})
    with pytest.raises(ConfigError, match=r"--lr 0\.1 1\.0 0\.1 0\.3 there, 0\.3 0\.1 1\.0 0\.1 here"):
        run_sweep(other, callbacks=QUIET)


def test_shards_cut_points_as_they_cut_a_product(run, tmp_path):
    for shard in range(2):
        run_sweep(RunConfig(out=tmp_path, points=TABLE, shards=2, shard=shard, **SMALL), callbacks=QUIET)
    joined, whole = open_run(tmp_path, flat=True), open_run(run, flat=True)
    for name in (*TABLE, "loss", "test_loss"):
        np.testing.assert_array_equal(joined[name], whole[name], err_msg=name)


def test_a_branch_of_points_takes_each_with_all_new_values(run, tmp_path):
    path = branch_run(
        run, tmp_path / "branch", step=10, select={"weight_decay": [1e-3, 1e-2], "seed": [0]},
        change={"momentum": [0.0, 0.9]}, callbacks=QUIET,
    ).path  # fmt: skip
    branch, parent = open_run(path, flat=True), open_run(run, flat=True)
    assert branch.weight_decay.values.tolist() == [1e-3, 1e-3, 1e-2, 1e-2]
    assert branch.momentum.values.tolist() == [0.0, 0.9, 0.0, 0.9]
    assert read_config(path)["config"]["points"] == ["lr", "weight_decay", "momentum", "seed"]
    expected = parent.loss.sel(step=slice(10, None)).values[[0, 2]]
    np.testing.assert_array_equal(branch.loss[[0, 2]], expected)
    assert not np.array_equal(branch.loss[1], expected[0])


def test_a_branch_of_points_that_cannot_be_is_refused():
    parent = {"lr": (0.1, 1.0, 0.1), "seed": (0, 0, 1), "momentum": (0.5,)}
    of = functools.partial(branched_axes, parent, points=("lr", "seed"))
    axes, parents = of({"seed": [0]}, {"momentum": [0.9]})
    assert (axes, parents.tolist()) == ({"lr": (0.1, 1.0), "seed": (0, 0), "momentum": (0.9, 0.9)}, [0, 1])
    for select, change, said in (
        ({}, {"lr": [0.2]}, "--select: no value of lr, which is changed by --lr; give one value that it had: 0.1 1"),
        ({"lr": [1.0], "seed": [1]}, {}, "values that one configuration has together"),
        ({"lr": [0.5]}, {}, "lr=0.5"),
        ({"rate": [0.5]}, {}, "rate"),
    ):
        with pytest.raises(ConfigError, match=said):
            of(select, change)


def test_a_column_and_an_option_are_one_too_many():
    with pytest.raises(ConfigError, match="--lr: given together with a column of --points"):
        RunConfig(points=TABLE, lr=0.5)
    with pytest.raises(ConfigError, match=r"--momentum: several values \(0 0\.9\) with points"):
        RunConfig(points=TABLE, momentum=[0, 0.9], steps=5).grid()


@pytest.mark.slow
def test_results_and_figures_of_points(run, capsys, tmp_path):
    """And the plan of such a sweep, which writes nothing."""
    main(["plot", str(run)])
    main(["analyze", str(run)])
    main(["sweep", "--lr", "sobol:0.1:1:4:log", "--width", "2", "--depth", "1", "--steps", "5", "--dry-run"])
    assert "4 configurations of 5 steps" in capsys.readouterr().out
    assert len(pd.read_csv(run / "summary.csv")) == 4
