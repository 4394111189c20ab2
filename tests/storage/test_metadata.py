"""Run directories that declare more than they hold, as a stranger's may: an error, and nothing of that size is read."""

import json
import os
import resource
import shutil
import warnings

import numcodecs
import numpy as np
import pytest
import tensorstore
import zarr
from helpers.synthetic import stack, write_run
from hypothesis import given
from hypothesis import strategies as st

from periodic_jax import CorruptedRunError, MissingDependencyError, SweepGrid, open_run
from periodic_jax.checkpoints import reader as checkpoints_module
from periodic_jax.checkpoints.reader import file_checksums, load_checkpoint
from periodic_jax.checkpoints.writer import Checkpoints
from periodic_jax.core.files import used_bytes, write_json
from periodic_jax.inspection.info import describe_run
from periodic_jax.storage.checksums import seal, seal_metadata
from periodic_jax.storage.run_directory import read_config, write_config
from periodic_jax.storage.verification import find_corruptions, lengths
from periodic_jax.storage.verified_store import unfolds_to

STATES = {"params.kernel": np.ones((6, 3, 4), np.float32), "diverged_at": np.full(6, -1, np.int32)}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two configurations, 60 steps, whose config.json tells just what is checked."""
    grid = SweepGrid.product(lr=[0.1, 0.2])
    names = ("loss", "weight_norm", "angular_step")
    curves = stack([{name: np.linspace(1, 2, 60) + i for name in names} for i in range(2)])
    path = write_run(tmp_path_factory.mktemp("recorded") / "run", grid, curves)
    axes = {name: [0.0] for name in grid.coords if name not in ("lr", "schedule_every")} | {"lr": [0.1, 0.2]}
    write_config(path, {"format": 1, "config": {"steps": 60, "eval_every": 50, **axes}})
    return path


@pytest.fixture
def run(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "run")


def redeclare(file, **changes):
    """Other metadata, sealed as a stranger could."""
    write_json(file, seal_metadata({**json.loads(file.read_text()), **changes}))


def chunks_of(*shape):
    return {"name": "regular", "configuration": {"chunk_shape": list(shape)}}


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("loss", {"shape": [2, 10**13]}, "10000000000000 entries along step, where config.json has room for 60"),
        ("seed", {"shape": [10**13]}, "entries along config, where config.json has room for 2"),
        ("step", {"shape": [61]}, "declares 61 entries along step"),
        ("eval_step", {"shape": [10**9]}, "entries along eval_step"),
        ("loss", {"shape": [2, 60.5]}, "declares a length that is none"),
        ("loss", {"chunk_grid": chunks_of(2, 10**13)}, "declares chunks of"),
        ("loss", {"chunk_grid": chunks_of(2, 0)}, "declares a length that is none"),
        ("loss", {"data_type": "string"}, "values of the type string"),
        ("loss", {"dimension_names": ["config", "config"]}, "the dimensions config, config"),
        ("loss", {"codecs": [{"name": "numcodecs.pickle"}]}, "codecs that are not"),
        ("", {"consolidated_metadata": {"metadata": {}}}, "declares the arrays a second time"),
    ],
)
def test_metadata_that_declare_too_much(run, name, changes, named):
    redeclare(run / "telemetry.zarr" / name / "zarr.json", **changes)
    with pytest.raises(CorruptedRunError, match=named):
        open_run(run, flat=True)
    report = describe_run(run)
    assert any(named in line for line in report.errors)
    (found,) = find_corruptions(run / "telemetry.zarr", 0, 60, lengths(read_config(run)))
    assert named in found.reason


@pytest.mark.parametrize(
    ("source", "target", "named"),
    [
        ("loss", "", "declares a node of the type array"),
        ("", "loss", "declares a node of the type group"),
        ("lr", "seed", "belongs to another array: learning rate"),  # as many bytes, read as other numbers
        ("seed", "lr", "belongs to another array: seed"),
        ("train_loss", "loss", "belongs to another array: training loss"),
        ("weight_decay", "loss", "belongs to another array: weight decay"),
    ],
)
def test_metadata_in_the_place_of_others_are_found(run, source, target, named):
    store = run / "telemetry.zarr"
    shutil.copy(store / source / "zarr.json", store / target / "zarr.json")
    with pytest.raises(CorruptedRunError, match=named):
        open_run(run, flat=True)
    report = describe_run(run, verify=True)
    assert any(named in line for line in report.errors)
    assert report.lines[-1] == f"to mend it: periodic-jax resume {run}"
    assert not [line for line in report.errors if "/c/" in line]  # of the numbers nothing is lost


def test_consolidated_metadata_of_the_arrays_are_accepted(run):
    """As xarray advises; what no longer agrees is named, and told to be rebuilt."""
    expected = open_run(run, flat=True).load()
    with warnings.catch_warnings(action="ignore"):  # they are no part of zarr's format 3 yet
        zarr.consolidate_metadata(run / "telemetry.zarr")
    assert open_run(run, flat=True).load().identical(expected)
    assert not describe_run(run, verify=True).errors
    redeclare(run / "telemetry.zarr/loss/zarr.json", shape=[2, 59])
    with pytest.raises(CorruptedRunError, match=r"declares the arrays a second time, and otherwise\); .* rebuilds it"):
        open_run(run)
    assert describe_run(run, verify=True).lines[-1] == f"to mend it: periodic-jax resume {run}"


def test_a_folder_that_is_no_array_is_left_alone(run):
    (run / "telemetry.zarr/.ipynb_checkpoints").mkdir()
    assert not describe_run(run, verify=True).errors


def test_a_chunk_that_unfolds_to_gigabytes_is_not_unfolded(run):
    """A million zeros take a hundred bytes."""
    bomb = numcodecs.Zstd().encode(np.zeros(10**8, np.uint8))
    for name in ("loss/c/0/0", "lr/c/0"):
        file = run / "telemetry.zarr" / name
        kept = file.read_bytes()
        file.write_bytes(numcodecs.CRC32C(location="end").encode(bomb))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (found,) = find_corruptions(run / "telemetry.zarr", 0, 60, lengths(read_config(run)))
        assert "unfold to" in found.reason
        with pytest.raises(CorruptedRunError, match=rf"{name}: .*unfold to"):
            open_run(run, flat=True)[name.partition("/")[0]].load()
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000
        file.write_bytes(kept)


def test_a_chunk_without_end_is_not_read(run):
    with (run / "telemetry.zarr/loss/c/0/0").open("w") as file:
        file.truncate(10**13)
    (found,) = find_corruptions(run / "telemetry.zarr", 0, 60, lengths(read_config(run)))
    assert found.reason == "10000000000000 bytes long"
    with pytest.raises(CorruptedRunError, match=r"loss/c/0/0: .*10000000000000 bytes long"):
        open_run(run, flat=True).loss.load()


@given(st.integers(1, 300_000), st.integers(-5, 15))
def test_the_size_of_a_zstd_file_is_told_by_its_head(tmp_path_factory, size, level):
    file = tmp_path_factory.getbasetemp() / "unfolded"
    file.write_bytes(
        numcodecs.Zstd(level).encode(np.arange(size, dtype=np.uint8) if size % 2 else np.zeros(size, "u1"))
    )
    assert unfolds_to(file.read_bytes()[:18]) == size
    file.write_bytes(file.read_bytes()[: size % 6])
    assert unfolds_to(file.read_bytes()[:18]) is None


def test_only_the_first_of_countless_missing_chunks_are_told(run):
    redeclare(run / "telemetry.zarr/loss/zarr.json", chunk_grid=chunks_of(2, 1), shape=[2, 300])
    shutil.rmtree(run / "telemetry.zarr/loss/c")
    found = list(find_corruptions(run / "telemetry.zarr", 0, 300, {**lengths(read_config(run)), "step": 300}))
    assert [one.first_step for one in found if one.file.startswith("loss")] == list(range(100))


@pytest.mark.parametrize(
    "name", ["checkpoints", "telemetry.zarr/loss/c/0/0", "figures/loss.png", "config.json.partial"]
)
def test_links_are_refused(run, tmp_path, name):
    """A run that goes on removes what it finds in checkpoints, and writes figures: never in another place."""
    target = tmp_path / "precious"
    target.mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    with pytest.raises(CorruptedRunError, match=rf"{name}: corrupted \(it is no plain file or folder"):
        read_config(run)


def test_a_pipe_and_a_file_without_end_are_not_read(run):
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")
    with pytest.raises(CorruptedRunError, match="it is no plain file"):
        read_config(run)
    (run / "config.json").unlink()
    with (run / "config.json").open("w") as file:
        file.truncate(10**12)
    with pytest.raises(CorruptedRunError, match="1000000000000 bytes long"):
        read_config(run)
    assert used_bytes(run) > 10**12


@pytest.mark.parametrize(
    ("strange", "named"),
    [
        ({"parent": []}, "parent is"), ({"parent": {"step": "1"}}, "step '1'"), ({"ends": [10**30]}, "step 1000000"),
        ({"ends": ["a"]}, "step 'a'"), ({"sessions": 1}, "sessions is 1"),
    ],
)  # fmt: skip
def test_a_record_of_other_kinds(run, strange, named):
    write_config(run, {**read_config(run), **strange})
    with pytest.raises(CorruptedRunError, match=named):
        read_config(run)


@pytest.fixture
def kept(tmp_path):
    """A run directory with one checkpoint, at step 10, and the folder of that."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(10, STATES)
    checkpoints.wait()
    return tmp_path, tmp_path / "checkpoints/10"


# Where one array cannot be opened, Orbax closes its event loop while others are still being opened; those complain.
@pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"shape": [10**14]}, r"declares int32 \(100000000000000,\) for states.diverged_at, the run int32 \(6,\)"),
        ({"chunk_grid": chunks_of(6 * 10**12)}, "what it declares cannot be read"),
        ({"data_type": "float64"}, "declares float64"),
    ],
)
def test_a_checkpoint_that_declares_too_much(kept, changes, named):
    """Read as it is declared, the first would end the process: std::bad_alloc."""
    path, folder = kept
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{folder}/state/"}).result()
    key = "states.diverged_at/zarr.json"
    store.write(key, json.dumps({**json.loads(store.read(key).result().value), **changes})).result()
    write_json(folder / "checksums.json", seal(file_checksums(folder)))
    with pytest.raises(CorruptedRunError, match=named):
        load_checkpoint(path, 10, STATES)


def test_a_checkpoint_of_another_network_or_size(kept):
    path, folder = kept
    np.testing.assert_array_equal(load_checkpoint(path, 10, STATES)["params.kernel"], STATES["params.kernel"])
    with pytest.raises(CorruptedRunError, match=r"nothing for states\.more, the run float64"):
        load_checkpoint(path, 10, {**STATES, "more": np.zeros((6, 1))})
    with (folder / "state/huge").open("w") as file:
        file.truncate(10**12)
    with pytest.raises(CorruptedRunError, match="its files take 1000000"):
        load_checkpoint(path, 10, STATES)


def test_orbax_without_the_interface_is_one_line(monkeypatch):
    monkeypatch.setattr(checkpoints_module, "ORBAX_V1", ("orbax.checkpoint.v0", "orbax.checkpoint.metadata"))
    with pytest.raises(MissingDependencyError, match=r"a version of orbax-checkpoint with .* \(there is [0-9.]+\)"):
        checkpoints_module.orbax.__wrapped__()
