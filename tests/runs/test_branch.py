"""Branches: what they take over from their parent, and what they change."""

import json

import numpy as np
import pytest

from periodic_jax import ConfigError, RunConfig, open_run, run_sweep
from periodic_jax.checkpoints import writer
from periodic_jax.cli.axis import parse_selection
from periodic_jax.cli.main import main
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.branch import branch_from_each, branch_run, branched_axes
from periodic_jax.runs.run import resume_run
from periodic_jax.storage import run_directory
from periodic_jax.storage.run_directory import checkpoint_steps, read_config


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """Four configurations, 30 steps, with a checkpoint at each tenth."""
    config = RunConfig(
        out=tmp_path_factory.mktemp("parent") / "run", lr=(0.1, 1.0), weight_decay=(1e-3, 1e-2), width=2, depth=1,
        steps=30, eval_every=10, keep_every=10,
    )  # fmt: skip
    return run_sweep(config).path


def test_a_branch_that_changes_nothing_is_its_parent(parent, tmp_path):
    """To the bit, in another order of the configurations, and though it is first finished and then extended: the same
    data order, schedule and numbers of steps. Only the evaluation at its first end remains.
    """
    path = branch_run(parent, tmp_path / "branch", step=10, select={"lr": [1.0, 0.1]}, steps=25).path
    record = read_config(path)
    about = record["parent"]
    assert (about["path"], about["step"], about["selected"]) == (str(parent), 10, {"lr": [1.0, 0.1]})
    assert about["config"] == read_config(parent)["config"]
    assert record["summary"]["config_steps"] == 4 * 15
    resume_run(path, steps=30)
    assert open_run(path, flat=True).lr.values.tolist() == [1.0, 1.0, 0.1, 0.1]
    branch, expected = open_run(path), open_run(parent).sel(step=slice(10, None))
    assert branch.step.values.tolist() == list(range(10, 30))
    assert branch.eval_step.values.tolist() == [10, 20, 25, 30]
    assert branch.loss.dims == ("lr", "weight_decay", "step")
    for name in ("loss", "weight_norm", "angular_step"):
        np.testing.assert_array_equal(branch[name], expected[name], err_msg=name)
    regular = [10, 20, 30]
    np.testing.assert_array_equal(branch.test_loss.sel(eval_step=regular), expected.test_loss.sel(eval_step=regular))
    assert np.isfinite(branch.test_loss.sel(eval_step=25)).all()
    report = describe_run(path, verify=True)
    assert not report.errors
    assert any("branched from" in line for line in report.lines)


def test_a_branch_killed_in_its_set_up_is_begun_again_or_resumed(parent, tmp_path, monkeypatch):
    """Before config.json is there, and then before the first checkpoint is in its place."""
    out, finalize = tmp_path / "branch", writer.finalize_first

    class Killed(BaseException):
        pass

    def dies(path, content=None, *, forget=False):
        if not forget:
            raise Killed
        finalize(path, forget=True)

    for patched, name, left in (
        (run_directory, "write_config", {"checkpoints.partial"}),
        (writer, "finalize_first", {"checkpoints.partial", "config.json"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, dies)
            with pytest.raises(Killed):
                branch_run(parent, out, step=20)
        assert {file.name for file in out.iterdir()} == {".lock", *left}
    assert not describe_run(out, verify=True).errors
    with pytest.raises(ConfigError, match=r"holds no run yet \(periodic-jax resume .* goes on with the one there\)"):
        branch_run(parent, out, step=20, steps=40)
    branch_run(parent, out, step=20)
    assert not (out / "checkpoints.partial").exists()
    np.testing.assert_array_equal(open_run(out).loss, open_run(parent).loss.sel(step=slice(20, None)))


def test_changed_hyperparameters_are_axes_again(parent, tmp_path, capsys):
    """On the sphere of the norm at the branch, without decay, at two rates."""
    out = tmp_path / "branch"
    words = f"branch {parent} --step 20 --select lr=1 weight_decay=0.001 --lr 0.01 0.5 --weight-decay 0 --fixed-norm -1"
    main([*words.split(), "--out", str(out), "--steps", "24"])
    capsys.readouterr()
    branch, before = open_run(out), open_run(parent).sel(lr=1.0, weight_decay=1e-3)
    assert branch.lr.values.tolist() == [0.01, 0.5]
    assert (float(branch.weight_decay), branch.sizes["step"]) == (0.0, 4)
    np.testing.assert_array_equal(branch.weight_norm.sel(step=20), [before.weight_norm.sel(step=20)] * 2)
    np.testing.assert_array_equal(branch.loss.sel(step=20), [before.loss.sel(step=20)] * 2)
    np.testing.assert_allclose(branch.weight_norm, float(before.weight_norm.sel(step=20)), rtol=1e-6)
    assert (branch.angular_step.sel(lr=0.5) > 10 * branch.angular_step.sel(lr=0.01)).all()
    assert json.loads((out / "config.json").read_text())["parent"]["changed"]["lr"] == [0.01, 0.5]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"step": 15}, "--step: 15 is not accepted; expected a checkpoint of .*: 10, 20, 30"),
        ({"step": 30}, "--step: 30 is not accepted; expected one below the parent's end, 30, or --steps above it"),
        ({"step": 30, "steps": 20}, "--steps: 20 is not accepted; expected above 30"),
        ({"step": 10, "select": {"lr": [0.2]}}, "--select: lr=0.2 is not accepted; expected one of 0"),
        ({"step": 10, "select": {"rate": [0.2]}}, "--select: rate is not"),
        ({"step": 10, "change": {"lr": [0.2]}}, "--select: no value of lr, which is changed by --lr; give one value"),
        (
            {"step": 10, "select": {"lr": []}, "change": {"lr": [0.2]}},
            "--select: no value of lr, which is changed by --lr; give one value",
        ),
        (
            {"step": 10, "select": {"lr": [1.0, 0.1]}, "change": {"lr": [0.2]}},
            "--select: several values of lr, which is changed by --lr; give one value",
        ),
        ({"step": 10, "select": {"lr": [1.0]}, "change": {"lr": [200.0]}}, "--lr 200 with --weight-decay 0.01"),
    ],
)
def test_unusable_branches_are_refused_before_anything_is_written(parent, tmp_path, options, named):
    with pytest.raises(ConfigError, match=named):
        branch_run(parent, tmp_path / "branch", **options)
    assert not (tmp_path / "branch").exists()


def test_selected_values_are_told_by_their_words():
    axes = {"lr": (0.0316227766016838, 1.0), "seed": (0, 1)}
    selected, parents = branched_axes(axes, parse_selection(["lr=0.0316227766016838"]), {})
    assert selected["lr"] == (0.0316227766016838,)
    assert parents.tolist() == [0, 1]
    for words in (["lr"], ["lr=x"], ["lr=1", "lr=0.1"], ["rate=1"]):
        with pytest.raises(ConfigError):
            branched_axes(axes, parse_selection(words), {})


def test_the_values_that_a_refusal_lists_are_accepted():
    axes = {"lr": (0.0013518321332398, 0.00721950607302441), "seed": (0,)}
    with pytest.raises(ConfigError) as refused:
        branched_axes(axes, {}, {"lr": (0.5,)})
    listed = str(refused.value).split("it had: ")[1].split()
    for i, value in enumerate(listed):
        _, parents = branched_axes(axes, parse_selection([f"lr={value}"]), {"lr": (0.5,)})
        assert parents.tolist() == [i]


def test_info_tells_how_the_run_stands(parent, capsys):
    main(["info", str(parent), "--verify"])
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{parent}: ConvNetSI of width 2 and depth 1 on digits")
    assert "finished: 30 steps in 1 session" in said
    assert "4 configurations over lr, weight_decay" in said
    assert said[-1] == "consistent"
    assert checkpoint_steps(parent) == [10, 20, 30]


def test_info_finds_corruption(parent, tmp_path, capsys):
    import shutil

    copy = shutil.copytree(parent, tmp_path / "run")
    next((copy / "checkpoints/20/state").rglob("d/*")).unlink()
    (copy / "telemetry.zarr/accuracy/c/0/0").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        main(["info", str(copy), "--verify"])
    assert stop.value.code == 1
    said = capsys.readouterr().out
    assert "corrupted: telemetry.zarr/accuracy/c/0/0 (from step 0)" in said
    assert "corrupted: checkpoints/20: " in said


def test_branches_from_several_checkpoints_are_those_from_each(parent, tmp_path, capsys):
    """To the bit, opened as one, gone on with by the same command, and each a run directory of its own."""
    out = tmp_path / "each"
    options = ["--select", "lr=1", "weight_decay=0.001", "--weight-decay", "0", "0.01", "--steps", "25"]
    for _ in range(2):  # the second time nothing is left to train
        main(["branch", str(parent), "--step", "20", "10", *options, "--out", str(out)])
    assert "the run is finished" in capsys.readouterr().err
    assert sorted(folder.name for folder in out.iterdir()) == ["branch_step=10", "branch_step=20"]
    joined = open_run(out)
    assert joined.loss.dims == ("branch_step", "weight_decay", "step")
    assert (joined.branch_step.values.tolist(), joined.step.values.tolist()) == ([10, 20], list(range(10, 25)))
    for step in (10, 20):
        change = {"weight_decay": [0.0, 0.01]}
        select = {"lr": [1.0], "weight_decay": [1e-3]}
        alone = branch_run(parent, tmp_path / str(step), step=step, select=select, change=change, steps=25).path
        one, expected = joined.sel(branch_step=step), open_run(alone)
        for name in ("loss", "weight_norm", "test_loss", "diverged_at"):
            coords = {dim: expected[dim] for dim in expected[name].dims}
            np.testing.assert_array_equal(one[name].sel(coords), expected[name], err_msg=name)
        assert np.isnan(one.loss.sel(step=slice(None, step - 1))).all()
        assert not describe_run(out / f"branch_step={step}", verify=True).errors
    flat = open_run(out, flat=True)
    assert flat.branch_step.values.tolist() == [10, 10, 20, 20]
    for command in ("info", "analyze", "plot", "resume"):
        with pytest.raises(SystemExit):
            main([command, str(out)])
        assert f"{out}/branch_step=10" in capsys.readouterr().err


def test_branches_of_which_one_cannot_be_are_all_refused(parent, tmp_path):
    out = tmp_path / "each"
    for checkpoints, said in (
        ([10, 15], "--step: 15 is"), ([10, 30], "--step: 30 is"), ([], "no checkpoint"), ([10, 10], "each once"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            branch_from_each(parent, out, checkpoints)
        assert not out.exists()
    with pytest.raises(ConfigError, match="--out"):
        branch_from_each(parent, parent, [10, 20])
    (out / "branch_step=20").mkdir(parents=True)
    (out / "branch_step=20" / "telemetry.zarr").touch()
    with pytest.raises(ConfigError, match="branch_step=20"):
        branch_from_each(parent, out, [10, 20])
    assert not (out / "branch_step=10").exists()


def test_a_branch_that_is_not_there_is_left_out_of_the_joined_run(parent, tmp_path, caplog):
    out = tmp_path / "each"
    branch_from_each(parent, out, [20], steps=22)
    (out / "branch_step=10").mkdir()
    assert open_run(out).loss.dims == ("lr", "weight_decay", "step")
    assert "a branch is left out" in caplog.text
    (out / "branch_step=10").rmdir()
    (out / "branch_step=10").symlink_to(parent)
    open_run(out)
    assert "it is a link" in caplog.text
