"""Shards that are trained: against the uncut grid, killed, in a crowd, and with every wrong number."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import xarray as xr
from helpers.run_files import refusal
from helpers.survival import assert_same_run, configured, started, wait_for

from periodic_jax import RunCallbacks, RunConfig, SweepGrid, analysis, branch_run, open_run, run_sweep
from periodic_jax.cli.main import main
from periodic_jax.inspection import minima
from periodic_jax.inspection.info import describe_run
from periodic_jax.inspection.landscape import Budget, measure_landscape
from periodic_jax.runs.run import FINISHED
from periodic_jax.runs.shards import VARIABLES, enter_shard, scheduled_shard, with_shard
from periodic_jax.storage.datasets import read_store
from periodic_jax.storage.run_directory import checkpoint_steps, read_config

GRID = {"lr": (0.1, 0.3, 1.0), "weight_decay": (1e-3, 1e-2), "seed": (0, 1)}  # 12 configurations
SHARDED = SweepGrid.product(lr=[0.1, 1.0, 1e30], weight_decay=[0.0], momentum=[0.9], seed=[0, 1])  # of `survival`


@pytest.fixture(autouse=True)
def _no_scheduler(monkeypatch):
    for name in [name for pair in VARIABLES for name in pair if name]:
        monkeypatch.delenv(name, raising=False)


def config(out, **changes):
    return RunConfig(
        **{"out": out, "steps": 20, "width": 2, "depth": 1, "eval_every": 10, "precision": "float64", **GRID, **changes}
    )


def train(out, shards, **changes):
    for shard in range(shards):
        run_sweep(config(out, shards=shards, shard=shard, **changes), callbacks=RunCallbacks(log=lambda line: None))
    return open_run(out, flat=True).load()


@pytest.mark.parametrize(
    ("layout", "cuts"),
    [
        ("map", (1, 3)),
        pytest.param("map", (1, 5), marks=pytest.mark.slow),
        *(pytest.param(layout, (1, 5), marks=pytest.mark.slow) for layout in ("vmap", "unroll", "map:2")),
    ],
)
def test_shards_give_what_the_uncut_grid_gives(tmp_path, layout, cuts):
    run_sweep(config(tmp_path / "whole", layout=layout))
    whole = open_run(tmp_path / "whole", flat=True).load()
    for shards in cuts:
        joined = train(tmp_path / str(shards), shards, layout=layout)
        assert set(joined.variables) == set(whole.variables)
        if shards == 1:  # the same program: the same bits
            assert joined.drop_attrs().identical(whole.drop_attrs())
        for name in ("loss", "weight_norm", "grad_norm", "train_loss", "test_error"):
            np.testing.assert_allclose(joined[name], whole[name], rtol=1e-6, err_msg=f"{name}, {shards} shards")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Both shards of a grid."""
    out = tmp_path_factory.mktemp("undisturbed") / "grid"
    for shard in range(2):
        run_sweep(configured(out, shards=2, shard=shard, keep_period_minima=10))
    return out


def test_a_killed_shard_started_again_has_the_bits_of_the_undisturbed_one(undisturbed, tmp_path):
    out = tmp_path / "grid"
    shard = out / "shards/1"
    process = started(out, shards=2, shard=1, **{"keep-period-minima": 10})
    wait_for(process, lambda: checkpoint_steps(shard))
    process.kill()
    process.wait()
    process.stderr.close()
    before = read_config(shard)
    assert "summary" not in before
    run_sweep(configured(out, shards=2, shard=1, keep_period_minima=10))
    assert_same_run(shard, undisturbed / "shards/1")
    assert read_config(shard)["sessions"]
    assert [part.name for part in (out / "shards").iterdir()] == ["1"]
    assert "shard 0, 3 configurations: not begun" in describe_run(out).lines
    assert (out / "shards.json").read_bytes() == (undisturbed / "shards.json").read_bytes()


def test_commands_read_the_joined_shards(undisturbed, tmp_path, capsys):
    out = shutil.copytree(undisturbed, tmp_path / "grid")
    small = ["--images", "128", "--probes", "1", "--eigenvalues", "1", "--iterations", "5", "--select", "lr=0.1"]
    more = {"export": ["--to", "netcdf"], "plot": ["--in-epochs"], "landscape": small, "minima": ["--images", "200"]}
    for command in ("info", "analyze", "plot", "report", "export", "landscape", "minima"):
        main([command, str(out), *more.get(command, [])])
    said = capsys.readouterr().out
    assert "2 of 2 shards finished" in said
    assert said.count("diverged") >= 2
    for name in ("summary.csv", "analysis.nc", "figures", "report.html", "export", "landscape.nc", "minima.nc"):
        assert (out / name).exists(), name
    compared = read_store(out / "minima.nc")
    parts = [minima.compare(out / f"shards/{k}", images=200) for k in range(2)]
    counts = dict(zip(zip(compared.lr.values, compared.seed.values, strict=True), compared.there.values, strict=True))
    for part in parts:
        for key, count in zip(zip(part.lr.values, part.seed.values, strict=True), part.there.values, strict=True):
            assert counts[key] == count
    assert compared.there.values.sum() == sum(int(part.there.sum()) for part in parts) > 0
    table = (out / "summary.csv").read_text().splitlines()
    assert len(table) == 1 + 6
    joined = analysis.analyze(open_run(out, flat=True))
    parts = [analysis.analyze(open_run(out / f"shards/{k}", flat=True)) for k in range(2)]
    assert sorted(joined.regime.values) == sorted(np.concatenate([part.regime.values for part in parts]))


def test_a_finished_shard_is_left_alone(undisturbed, capsys):
    files = {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*") if file.is_file()}
    main([
        "sweep", "--lr", "0.1", "1.0", "1e30", "--weight-decay", "none", "--momentum", "0.9", "--seed", "0", "1",
        "--width", "2", "--depth", "1", "--eval-every", "10", "--checkpoint-seconds", "0", "--steps", "40",
        "--keep-period-minima", "10", "--shards", "2", "--shard", "1", "--out", str(undisturbed),
    ])  # fmt: skip
    said = capsys.readouterr()
    assert said.err == f"periodic-jax: {FINISHED.format(undisturbed / 'shards/1')}\n"
    assert {file: file.stat().st_mtime_ns for file in undisturbed.rglob("*") if file.is_file()} == files


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_ARRAY_TASK_ID": "3", "JOB_COMPLETION_INDEX": "1"}, ("SLURM_ARRAY_TASK_ID", "3")),
        ({"JOB_COMPLETION_INDEX": "1", "TPU_WORKER_ID": "0"}, ("JOB_COMPLETION_INDEX", "1")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, None),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, ("SLURM_PROCID", "2")),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, ("OMPI_COMM_WORLD_RANK", "1")),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "TPU_WORKER_ID": "5"}, ("TPU_WORKER_ID", "5")),
        ({"SLURM_ARRAY_TASK_ID": ""}, None),
    ],
)
def test_the_scheduler_numbers_the_shard(environment, expected, monkeypatch):
    assert scheduled_shard(environment) == expected
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    told = []
    if expected is None:
        assert "and no scheduler says which" in refusal(with_shard, config("x", shards=6))
    else:
        assert with_shard(config("x", shards=6), told.append).shard == int(expected[1])
        assert told == [f"shard {expected[1]} of 6, by {expected[0]}"]
        assert with_shard(config("x", shards=6, shard=4)).shard == 4


@pytest.mark.parametrize(
    ("changes", "environment", "expected"),
    [
        ({"shards": 4, "shard": 7}, {}, "--shard: 7"),
        ({"shards": 4, "shard": -1}, {}, "--shard: -1"),
        ({"shards": 13, "shard": 0}, {}, "--shards: 13"),
        ({"shards": 0, "shard": 0}, {}, "--shards: 0"),
        ({"shard": 0}, {}, "--shard: given without --shards; give --shards"),
        ({"shards": 4}, {"SLURM_ARRAY_TASK_ID": "4"}, "SLURM_ARRAY_TASK_ID: 4"),
        ({"shards": 4}, {"SLURM_ARRAY_TASK_ID": "1.5"}, "SLURM_ARRAY_TASK_ID: 1.5"),
        ({"shards": 4, "shard": 0, "steps": 0}, {}, "--steps: 0"),
        ({"shards": 4, "shard": 0, "width": 0}, {}, "--width: 0"),
    ],
)
def test_a_wrong_number_is_refused_before_anything_is_written(tmp_path, changes, environment, expected, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert refusal(run_sweep, config(tmp_path / "grid", **changes)).startswith(expected)
    assert not any(tmp_path.iterdir())


def test_the_command_wants_a_folder_for_shards_and_its_help_names_the_variables(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "--steps", "5", "--shards", "2", "--shard", "0"])
    assert "--out: not given; with --shards, give the folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    words = capsys.readouterr().out.replace("│", " ").split()
    places = [" ".join(words).replace("- ", "").find(name) for name, _ in VARIABLES]
    assert -1 not in places
    assert places == sorted(places)


def test_another_grid_and_another_folder_are_refused_with_the_difference(undisturbed, tmp_path):
    for changes, expected in (
        ({"shards": 3}, "--shards 2 there, 3 here"),
        ({"lr": (0.1, 0.5, 1e30)}, "--lr 0.1 1.0 1e+30 there, 0.1 0.5 1e+30 here"),
        ({"use_data_size": 1000}, "--use-data-size None there, 1000 here"),
    ):
        assert expected in refusal(
            run_sweep, configured(undisturbed, **{"shards": 2, "shard": 0, "keep_period_minima": 10, **changes})
        )
    assert "(--shards goes on with the grid there)" in refusal(run_sweep, configured(undisturbed))
    assert "holds no run yet" in refusal(run_sweep, configured(undisturbed / "shards/0", shards=2, shard=0))
    content = json.loads((undisturbed / "shards.json").read_text())
    broken = tmp_path / "grid"
    broken.mkdir()
    (broken / "shards.json").write_text(json.dumps({**content, "schedule_every": 2.0}))
    assert "remove it, and give the sweep's command again" in refusal(run_sweep, configured(broken, shards=2, shard=0))
    assert [file.name for file in broken.iterdir()] == ["shards.json"]
    shutil.copy(undisturbed / "shards.json", broken)
    empty = refusal(run_sweep, configured(broken, shards=3, shard=0))
    assert empty.endswith("remove shards.json, since no shard is begun")


def test_a_lost_file_of_shards_is_written_again(undisturbed, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path / "grid")
    (out / "shards.json").unlink()
    (out / "summary.csv").write_text("of an analysis")
    run_sweep(configured(out, shards=2, shard=1, keep_period_minima=10))
    assert (out / "shards.json").read_bytes() == (undisturbed / "shards.json").read_bytes()


def test_a_corrupted_shard_is_left_out_of_the_landscape(undisturbed, tmp_path, capsys):
    out = shutil.copytree(undisturbed, tmp_path / "grid")
    (out / "shards/1/config.json").write_text("{")
    main(["analyze", str(out)])
    assert "periodic-jax: shard 1 is left out: " in capsys.readouterr().err
    main(["landscape", str(out), "--select", "lr=0.1", "--images", "128", "--probes", "1", "--eigenvalues", "0"])
    said = capsys.readouterr()
    assert "periodic-jax: shard 1 is left out: " in said.err
    assert "not there yet" in said.out
    shutil.rmtree(out / "shards/1")
    main(["analyze", str(out)])
    assert "periodic-jax: 1 of 2 shards have recorded nothing yet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["info", str(undisturbed / "nothing")])
    assert describe_run(undisturbed, verify=True).lines[-1] == "consistent"


def entered(out, shard):
    """What a process of a crowd does first; the folder of its shard."""
    return os.fspath(enter_shard(config(out, shards=12, shard=shard)).out)


def test_a_crowd_writes_one_file_of_shards(tmp_path):
    out = tmp_path / "grid"
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        folders = list(pool.map(entered, [out] * 12, range(12)))
    assert folders == [f"{out}/shards/{k}" for k in range(12)]
    assert [file.name for file in out.iterdir()] == ["shards.json"]


@pytest.mark.slow
def test_twenty_processes_at_once_train_each_configuration_once(tmp_path):
    out = tmp_path / "grid"
    command = [
        sys.executable, "-m", "periodic_jax.cli.main", "sweep", "--lr", "logspace:1e-3:1:10", "--seed", "0", "1",
        "--width", "2", "--depth", "1", "--steps", "20", "--shards", "20", "--out", str(out),
    ]  # fmt: skip
    processes = [
        subprocess.Popen(
            command, env={**os.environ, "SLURM_ARRAY_TASK_ID": str(k)}, stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL, text=True,
        )
        for k in [*range(20), 3]
    ]  # fmt: skip
    said = [process.communicate()[1] for process in processes]
    status = [process.returncode for process in processes]
    # One of the two that have the same number may be refused, in one line; which one is chance.
    assert [status[k] for k in range(20) if k != 3] == [0] * 19, said
    assert sorted({status[3], status[20]}) in ([0], [0, 2]), (said[3], said[20])
    joined = open_run(out, flat=True)
    assert np.isfinite(joined.loss.values).all()
    assert joined.loss.shape == (20, 20)
    assert len(set(zip(joined.lr.values.tolist(), joined.seed.values.tolist(), strict=True))) == 20
    for shard in range(20):
        assert "summary" in read_config(out / f"shards/{shard}")


def test_a_signal_ends_a_shard_with_a_checkpoint(tmp_path):
    out = tmp_path / "grid"
    process = started(out, shards=2, shard=0, steps=4000)
    wait_for(process, lambda: checkpoint_steps(out / "shards/0"))
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 143, said
    assert f"periodic-jax resume {out}/shards/0" in said


def test_a_branch_takes_configurations_of_several_shards(undisturbed, tmp_path):
    """One of one value of the rate and both seeds, which are in different shards, has the numbers of its parents."""
    branch = branch_run(undisturbed, tmp_path / "branch", step=30, select={"lr": [0.1]}, change={"lr": [0.1]})
    child, parent = open_run(branch, flat=True).load(), open_run(undisturbed, flat=True).load()
    of = [
        int(np.flatnonzero((parent.lr == lr) & (parent.seed == seed))[0])
        for lr, seed in zip(child.lr, child.seed, strict=True)
    ]
    assert len({int(np.flatnonzero([i in members for members in SHARDED.members(2)])[0]) for i in of}) == 2
    np.testing.assert_allclose(child.loss.values[:, 0], parent.loss.values[of, 30], rtol=1e-5)
    np.testing.assert_array_equal(child.weight_norm.values[:, 0], parent.weight_norm.values[of, 30])
    own = branch_run(undisturbed / "shards/0", tmp_path / "own", step=30, select={"lr": [0.1], "seed": [0]})
    np.testing.assert_allclose(open_run(own, flat=True).loss.values[0], parent.loss.values[of[0], 30:], rtol=1e-5)
    wanted = refusal(branch_run, undisturbed / "shards/0", tmp_path / "no", step=30, select={"seed": [1]})
    assert "shards of selected configurations are not there" in wanted


def test_the_landscape_of_shards_is_that_of_each(undisturbed):
    kwargs = {"checkpoints": ["40"], "select": {"lr": [0.1]}, "budget": Budget(128, 2, 1, 10)}
    joined = measure_landscape(undisturbed, **kwargs)
    parts = xr.concat([measure_landscape(undisturbed / f"shards/{k}", **kwargs) for k in range(2)], "config")
    np.testing.assert_allclose(joined.hessian_trace, parts.hessian_trace, rtol=1e-3)
    assert joined.seed.values.tolist() == [0, 1]
