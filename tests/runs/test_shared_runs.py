"""Runs of earlier versions, which several processes could write: padded checkpoints of several parts, more chunks."""

import os
import shutil

import numpy as np
import pytest
from helpers.survival import assert_same_run, configured, states_at, stop_after

import periodic_jax as pj
from periodic_jax.checkpoints.reader import checksum, file_checksums, load_checkpoint, orbax
from periodic_jax.core.errors import CorruptedRunError, RunInterrupted
from periodic_jax.core.files import write_json
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.run import resume_run
from periodic_jax.storage import writer
from periodic_jax.storage.checksums import seal
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import CHECKPOINTS, CHECKSUMS, TELEMETRY, checkpoint_steps

SHARE, PARTS, CONFIGS = 2, 3, 5
GRID = {"lr": (0.1, 0.3, 1.0, 3.0, 1e30), "seed": (0,), "layout": "map"}


def write_shared(path, step, states, share=SHARE, spoil=None):
    """A checkpoint as processes with so many configurations each wrote it; ``spoil``: a part that has another sum."""
    parts = [{name: array[k : k + share] for name, array in states.items()} for k in range(0, CONFIGS, share)]
    check = [[step, len(part["step"]), checksum(part) ^ (k == spoil)] for k, part in enumerate(parts)]

    def padded(array):
        return np.pad(array, [(0, share - len(array)), *[(0, 0)] * (array.ndim - 1)])

    whole = {name: np.concatenate([padded(part[name]) for part in parts]) for name in states}
    folder = path / CHECKPOINTS / str(step)
    shutil.rmtree(folder, ignore_errors=True)
    orbax().save(os.path.abspath(folder), {"states": whole, "check": np.array(check, np.uint32)})
    write_json(folder / CHECKSUMS, seal(file_checksums(folder)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that no others had a part in."""
    return pj.run_sweep(configured(tmp_path_factory.mktemp("whole") / "run", **GRID)).path


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run stopped after 30 of 40 steps, as three processes left it; copied before use."""
    out = tmp_path_factory.mktemp("shared") / "run"
    config = configured(out, **GRID)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "MOST_IN_CHUNK", SHARE)
        with pytest.raises(RunInterrupted):
            pj.run_sweep(config, callbacks=stop_after(3))
    for step in checkpoint_steps(out):
        write_shared(out, step, states_at(out, step))
    return out


@pytest.fixture
def shared(halfway, tmp_path):
    return shutil.copytree(halfway, tmp_path / "run")


def test_it_has_more_chunks_and_padding(shared):
    assert sorted(file.name for file in (shared / TELEMETRY / "loss/c").iterdir()) == ["0", "1", "2"]
    stored = orbax().metadata(os.path.abspath(shared / CHECKPOINTS / "30")).metadata
    assert stored["states"]["step"].shape == (SHARE * PARTS,)
    assert stored["check"].shape == (PARTS, 3)


def test_it_is_read_without_its_padding(shared, whole):
    assert describe_run(shared, verify=True).errors == []
    assert {len(array) for array in states_at(shared, 30).values()} == {CONFIGS}
    before, expected = (open_run(path, flat=True).load() for path in (shared, whole))
    for name in ("loss", "weight_norm", "grad_norm"):
        np.testing.assert_array_equal(before[name][:, :30], expected[name][:, :30])
    assert before.loss[:, 30:].isnull().all()
    assert pj.analysis.analyze(before).sizes["config"] == CONFIGS


def test_it_is_gone_on_with_to_the_same_bits(shared, whole):
    resume_run(shared, callbacks=pj.RunCallbacks(log=pytest.fail))
    assert_same_run(shared, whole)
    assert describe_run(shared, verify=True).errors == []
    assert (shared / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()
    assert len(list((shared / TELEMETRY / "loss/c").iterdir())) == PARTS
    stored = orbax().metadata(os.path.abspath(shared / CHECKPOINTS / "40")).metadata
    assert stored["states"]["step"].shape == (CONFIGS,)


def test_corrupted_chunks_of_it_are_computed_again(shared, whole):
    (shared / TELEMETRY / "loss/c/1/0").unlink()
    resume_run(shared, truncate=True, callbacks=pj.RunCallbacks(log=lambda line: None))
    assert_same_run(shared, whole)


def test_a_branch_begins_from_it(shared):
    out = pj.branch_run(shared, shared.with_name("branch"), steps=40).path
    grown, parent = open_run(out, flat=True), states_at(shared, 30)
    assert grown.sizes["config"] == CONFIGS
    assert np.array_equal(states_at(out, 30)["params.conv0.kernel"], parent["params.conv0.kernel"], equal_nan=True)


def test_the_part_of_one_process_is_held_against_its_own_checksum(shared):
    states = states_at(shared, 30)
    write_shared(shared, 30, states, spoil=2)
    with pytest.raises(CorruptedRunError, match="its arrays have another checksum"):
        load_checkpoint(shared, 30, states)


def test_padding_as_long_as_the_configurations_are_many_is_refused(shared):
    states = states_at(shared, 30)
    write_shared(shared, 30, states, share=2 * CONFIGS)
    load_checkpoint(shared, 30, states)
    write_shared(shared, 30, states, share=2 * CONFIGS + 1)
    with pytest.raises(CorruptedRunError, match=r"it declares .* \(11"):
        load_checkpoint(shared, 30, states)


def test_a_store_that_was_being_regrouped_is_put_back(shared, whole):
    store = shared / TELEMETRY
    store.rename(f"{store}.replaced")
    resume_run(shared, callbacks=pj.RunCallbacks(log=pytest.fail))
    assert_same_run(shared, whole)
    assert not list(shared.glob("*.replaced"))
