"""Files that are right in themselves, and of another run or place: found, and never taken for the run's own."""

import contextlib
import shutil

import numpy as np
import pytest
import zarr
from helpers.faults import one_sweep, tree
from helpers.survival import configured, stop_after
from runs.test_faults import QUIET, STEPS, results

from periodic_jax import CorruptedRunError, RunCallbacks, open_run, run_sweep
from periodic_jax.checkpoints.reader import file_checksums
from periodic_jax.core.errors import RunInterrupted
from periodic_jax.core.files import write_json
from periodic_jax.inspection.info import describe_run
from periodic_jax.inspection.load import load_run
from periodic_jax.runs.branch import branch_run
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.checksums import seal
from periodic_jax.storage.run_directory import checkpoint_steps, read_config, write_config

ELSEWHERE = "it is not what the run recorded there"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run, the same stopped, and a finished one of another seed."""
    folder = tmp_path_factory.mktemp("runs")

    def settings(name, seed):
        return configured(folder / name, lr=(0.1, 1.0), seed=(seed,), keep_period_minima=20)

    with one_sweep():
        run_sweep(settings("other", 1), callbacks=QUIET)
    with one_sweep():
        run_sweep(settings("finished", 0), callbacks=QUIET)
        with contextlib.suppress(RunInterrupted):
            run_sweep(settings("stopped", 0), callbacks=stop_after(3))
        yield folder  # those that go on are the same sweep


@pytest.fixture(scope="module")
def whole(runs):
    return results(runs / "finished")


def loaded(path):
    return open_run(path, flat=True).load()


@pytest.mark.parametrize("base", ["finished", "stopped"])
@pytest.mark.parametrize(
    ("source", "file", "target"),
    [
        ("other", "loss/c/0/0", "loss/c/0/0"),
        ("other", "test_loss/c/0/0", "test_loss/c/0/0"),
        ("", "weight_norm/c/0/0", "loss/c/0/0"),
        ("other", "seed/c/0", "seed/c/0"),
    ],
)
def test_chunks_of_another_run_or_array(runs, whole, tmp_path, base, source, file, target):
    run = shutil.copytree(runs / base, tmp_path / "run")
    shutil.copy((runs / source if source else run) / "telemetry.zarr" / file, run / "telemetry.zarr" / target)
    report = describe_run(run, verify=True)
    assert [line for line in report.errors if target in line and ELSEWHERE in line], report.errors
    with pytest.raises(CorruptedRunError, match=ELSEWHERE):
        loaded(run)
    if not target.startswith("seed"):  # which config.json determines
        before = tree(run)
        with pytest.raises(CorruptedRunError, match="--truncate computes it again"):
            resume_run(run, callbacks=QUIET)
        assert tree(run) == before
    resume_run(run, truncate=not target.startswith("seed"), callbacks=QUIET)
    dataset, states, minima = results(run)
    assert dataset.identical(whole[0])
    assert (states, minima) == whole[1:]


def test_when_a_configuration_diverged_is_that_of_the_run(runs, tmp_path):
    """Steps before the checkpoint count; a run that was killed had gone on."""
    run = shutil.copytree(runs / "stopped", tmp_path / "run")
    done = checkpoint_steps(run)[-1]
    array = zarr.open_group(run / "telemetry.zarr", mode="r+")["diverged_at"]
    array[:] = [np.nan, done + 1.0]
    assert loaded(run).diverged_at.values[1] == done + 1
    array[:] = [np.nan, done - 1.0]
    with pytest.raises(CorruptedRunError, match=f"diverged_at/c/0.*{ELSEWHERE}"):
        loaded(run)


@pytest.mark.parametrize("base", ["finished", "stopped"])
def test_a_config_of_another_run_is_refused_and_nothing_is_lost(runs, whole, tmp_path, base):
    run = shutil.copytree(runs / base, tmp_path / "run")
    shutil.copy(runs / "other" / "config.json", run)
    before = tree(run)
    for use in (loaded, load_run, describe_run, lambda path: resume_run(path, truncate=True, callbacks=QUIET)):
        with pytest.raises(CorruptedRunError, match=r"config\.json.*it is of another run than checkpoints/"):
            use(run)
    assert tree(run) == before
    shutil.copy(runs / base / "config.json", run)
    assert resume_run(run, callbacks=QUIET)
    assert results(run)[0].identical(whole[0])


def test_a_checkpoint_of_another_run_is_not_gone_on_from(runs, whole, tmp_path):
    run = shutil.copytree(runs / "finished", tmp_path / "run")
    first, last = checkpoint_steps(run)
    shutil.rmtree(run / "checkpoints" / str(first))
    shutil.copytree(runs / "other" / "checkpoints" / str(first), run / "checkpoints" / str(first))
    assert any(f"checkpoints/{first}: it is of another run" in line for line in describe_run(run, verify=True).errors)
    with pytest.raises(CorruptedRunError, match="it is of another run"):
        branch_run(run, tmp_path / "branch", step=first, steps=STEPS + 1, callbacks=QUIET)
    assert not (tmp_path / "branch").exists()
    assert last == STEPS


def test_the_newest_checkpoint_of_another_run_where_the_others_are_its_own(runs, whole, tmp_path):
    """config.json is right then, and telemetry is read; what needs the checkpoint refuses it."""
    run = shutil.copytree(runs / "finished", tmp_path / "run")
    last = run / "checkpoints" / str(STEPS)
    shutil.rmtree(last)
    shutil.copytree(runs / "other" / "checkpoints" / str(STEPS), last)
    assert loaded(run).drop_attrs().identical(whole[0])
    assert describe_run(run, verify=True).errors == [f"checkpoints/{STEPS}: it is of another run"]
    before = tree(run)
    with pytest.raises(CorruptedRunError, match=f"checkpoints/{STEPS}: corrupted .it is of another run"):
        resume_run(run, callbacks=QUIET)
    assert tree(run) == before
    resume_run(run, truncate=True, callbacks=QUIET)
    assert results(run)[1] == whole[1]
    assert results(run)[0].identical(whole[0])


def test_an_older_corrupted_checkpoint_is_removed_and_nothing_computed_again(runs, whole, tmp_path):
    run = shutil.copytree(runs / "finished", tmp_path / "run")
    older = run / "checkpoints" / str(checkpoint_steps(run)[0])
    (older / "_CHECKPOINT_METADATA").write_bytes(b"x")
    report = describe_run(run, verify=True)
    assert len(report.errors) == 1
    assert f"to mend it: periodic-jax resume {run} --truncate" in report.lines
    with pytest.raises(CorruptedRunError, match="--truncate removes it"):
        resume_run(run, callbacks=QUIET)
    log: list[str] = []
    resume_run(run, truncate=True, callbacks=RunCallbacks(log=log.append))
    assert any(line.startswith("removed, as no run can go on from it") and str(older) in line for line in log)
    assert checkpoint_steps(run) == [STEPS]
    assert describe_run(run, verify=True).errors == []
    assert (results(run)[1], results(run)[2]) == whole[1:]


def test_the_first_checkpoint_of_a_branch_is_no_exception(runs, tmp_path):
    branch = tmp_path / "branch"
    branch_run(runs / "finished", branch, step=STEPS, steps=STEPS + 20, callbacks=QUIET)
    (branch / "checkpoints" / str(STEPS) / "_CHECKPOINT_METADATA").write_bytes(b"x")
    before = loaded(branch)
    resume_run(branch, truncate=True, callbacks=QUIET)
    assert describe_run(branch, verify=True).errors == []
    assert loaded(branch).identical(before)


def test_a_minimum_of_another_run(runs, whole, tmp_path):
    run = shutil.copytree(runs / "finished", tmp_path / "run")
    both = {name for name in tree(run) if name.startswith("minima/")} & set(tree(runs / "other"))
    name = min(both)
    shutil.copy(runs / "other" / name, run / name)
    assert any(f"{name}: it is that of another run" in line for line in describe_run(run, verify=True).errors)
    resume_run(run, truncate=True, callbacks=QUIET)
    assert results(run)[2] == whole[2]


def test_runs_of_earlier_versions_have_no_record_and_go_on(runs, whole, tmp_path):
    run = shutil.copytree(runs / "stopped", tmp_path / "run")
    content = {name: value for name, value in read_config(run).items() if name != "id"}
    shutil.rmtree(run / "minima", ignore_errors=True)  # in which files name their run
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "telemetry.json").unlink()
        write_json(checkpoint / "checksums.json", seal(file_checksums(checkpoint)))
    write_config(run, content)
    assert not any(ELSEWHERE in line for line in describe_run(run, verify=True).errors)
    resume_run(run, callbacks=QUIET)
    assert results(run)[0].identical(whole[0])
    assert "id" not in read_config(run)
