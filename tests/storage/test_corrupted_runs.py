import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from helpers.run_files import refusal, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from periodic_jax.analysis.pipeline import analyze
from periodic_jax.core.errors import CorruptedRunError
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.inspection.info import describe_run
from periodic_jax.plots import save_all
from periodic_jax.reporting.export import export
from periodic_jax.reporting.html import report_contents
from periodic_jax.storage.checksums import seal, seal_metadata
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import read_config, write_config
from periodic_jax.storage.verification import find_corruptions
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter

HOSTILE = "../../x\n\x1b[31m<script>alert(1)</script>{__import__('os')}%s'; DROP TABLE \u202e\U0001f600"


def test_hostile_strings_are_only_strings(tmp_path):
    grid = SweepGrid.product(lr=[0.1, 0.2])
    layers = [HOSTILE, "layer\0/../x"]
    path, telemetry = written(tmp_path, grid, layers=layers, model=HOSTILE)
    before = sorted(tmp_path.rglob("*"))
    dataset = open_run(path)
    assert dataset.attrs["model"] == HOSTILE
    assert dataset.layer.values.tolist() == layers
    np.testing.assert_array_equal(
        dataset.layer_weight_norm.sel(layer=HOSTILE), telemetry["layer_weight_norm"][..., 0].astype(np.float32)
    )
    assert sorted(tmp_path.rglob("*")) == before


CONFIGS = {
    "empty": ("", "no readable JSON: "),
    "no JSON": ("{", "no readable JSON: "),
    "several lines": ("{\n1\n}\n", "no readable JSON: "),
    "deep": ("[" * 100_000, "no readable JSON: "),
    "a long number": ("1" * 5000, "no readable JSON: "),
    "a list": ("[1]", "(it is no JSON object but [1])"),
    "a word": ('"format"', "(it is no JSON object but 'format')"),
    "nothing known": ("{}", "(it has no format and no checksum)"),
    "no format": (json.dumps(seal({"a": 1})), "(it has no format)"),
    "no checksum": ('{"format": 1, "config": {}}', "(it has no checksum)"),
    "changed": (json.dumps(seal({"format": 1}) | {"config": {}}), "(its checksum is another one)"),
    "another format": (json.dumps(seal({"format": 2})), "(its format is 2, and 1 is what this version reads)"),
    "a hostile format": (json.dumps(seal({"format": HOSTILE})), "(its format is '../../x"),
    "config is no mapping": (json.dumps(seal({"format": 1, "config": [1]})), "(its config is [1], which is no object)"),
    "sessions are no list": (json.dumps(seal({"format": 1, "sessions": 3})), "(its sessions is 3, which is no list)"),
    "an end before all": (json.dumps(seal({"format": 1, "ends": [-1]})), "(it names step -1)"),
}


@pytest.mark.parametrize("content", CONFIGS)
def test_corrupted_or_foreign_config(tmp_path, content):
    path, _ = written(tmp_path, SweepGrid.product())
    text, reason = CONFIGS[content]
    (path / "config.json").write_text(text)
    for call in (read_config, open_run):
        message = refusal(call, path)
        assert message.startswith(f"{path / 'config.json'}: corrupted (")
        assert message.endswith("); restore it from a copy, or remove the run's folder and train it again")
        assert reason in message


def test_config_that_is_not_text_or_not_a_file(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "no readable JSON: " in refusal(read_config, tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "no readable JSON: " in refusal(read_config, tmp_path)


@pytest.mark.parametrize("name", ["missing", ".", "a\nb", "x" * 300, "null\0null", "file", "s3://bucket/run", ""])
def test_no_run_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for call in (read_config, open_run):
        message = refusal(call, name)
        assert message.startswith(str(Path(name)).encode("unicode_escape").decode())
        assert message.endswith("; give the folder of a run")


def test_a_file_is_no_run_directory(tmp_path):
    path, _ = written(tmp_path, SweepGrid.product())
    message = refusal(open_run, path / "config.json")
    assert message.endswith("config.json: it is a file; give the folder of a run")


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_as_config(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_bytes(content)
    refusal(read_config, folder)


def edit_json(file: Path, **changes):
    content = json.loads(file.read_text())
    for keys, value in changes.items():
        *parents, last = keys.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    file.write_text(json.dumps(content))


def version_2(store):
    shutil.rmtree(store)
    group = zarr.create_group(zarr.storage.LocalStore(store), zarr_format=2)
    group.attrs["swept"] = []
    for name in ("loss", "weight_norm", "step", *AXES):
        group.create_array(name, shape=(1,), dtype=float, attributes={"_ARRAY_DIMENSIONS": ["config"]})


def foreign_array(store):
    shutil.rmtree(store)
    xr.Dataset({"temperature": ("time", np.zeros(3))}).to_zarr(store, zarr_format=3, consolidated=False)


def remove(*names):
    return lambda store: [shutil.rmtree(store / name) for name in names]


def attributes(**changes):
    return lambda store: edit_json(store / "zarr.json", **{f"attributes__{k}": v for k, v in changes.items()})


def chunks(name, content):
    def replace(store):
        files = [file for file in (store / name / "c").rglob("*") if file.is_file()]
        assert files
        for file in files:
            file.write_bytes(content(file.read_bytes()))

    return replace


STORES = {
    "missing": shutil.rmtree,
    "empty folder": lambda store: (shutil.rmtree(store), store.mkdir()),
    "a file": lambda store: (shutil.rmtree(store), store.write_text("x")),
    "of zarr 2": version_2,
    "foreign": foreign_array,
    "group metadata lost": lambda store: (store / "zarr.json").unlink(),
    "group metadata cut": lambda store: (store / "zarr.json").write_text('{"zarr_format": 3, "node_'),
    "group metadata a list": lambda store: (store / "zarr.json").write_text("[]"),
    "an array instead": lambda store: shutil.copy(store / "loss" / "zarr.json", store / "zarr.json"),
    "no loss": remove("loss"),
    "no lr": remove("lr"),
    "no steps": remove("step"),
    "several lost": remove("seed", "elr", "weight_norm"),
    "array metadata cut": lambda store: (store / "loss" / "zarr.json").write_text('{"shape": ['),
    "array metadata strange": lambda store: edit_json(store / "lr" / "zarr.json", shape=[-3]),
    "an unknown type": lambda store: edit_json(store / "lr" / "zarr.json", data_type="pickle"),
    "an unknown codec": lambda store: edit_json(
        store / "lr" / "zarr.json", codecs=[{"name": "pickle", "configuration": {}}]
    ),
    "other dimensions": lambda store: edit_json(store / "lr" / "zarr.json", dimension_names=["step"]),
    "step truncated": chunks("step", lambda data: data[:5]),
    "lr truncated": chunks("lr", lambda data: data[:5]),
    "lr empty": chunks("lr", lambda data: b""),
    "lr garbled": chunks("lr", lambda data: b"\xff" * len(data)),
    "swept lost": lambda store: edit_json(store / "zarr.json", attributes={}),
    "swept unknown": attributes(swept=[HOSTILE]),
    "swept a number": attributes(swept=5),
    "swept nested": attributes(swept=[["lr"]]),
    "swept a word": attributes(swept="lr"),
    "layers lost": lambda store: edit_json(store / "zarr.json", attributes={"swept": []}),
    "layers too few": attributes(layer_names=["a"]),
    "layers a number": attributes(layer_names=3),
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("intact")
    return written(folder, SweepGrid.product(lr=[0.1, 0.2], seed=[0, 1]), layers=["a", "b"])[0]


@pytest.fixture
def run(intact, tmp_path):
    """A run of lr and seed with two layers, to be corrupted."""
    return Path(shutil.copytree(intact, tmp_path / "run"))


@pytest.mark.parametrize("corrupt", STORES)
def test_corrupted_or_foreign_store(run, corrupt):
    STORES[corrupt](run / "telemetry.zarr")
    for flat in (False, True):
        message = refusal(open_run, run, flat=flat)
        assert message.startswith(f"{run / 'telemetry.zarr'}")


def test_swept_axes_that_are_no_product_are_left_flat(run):
    attributes(swept=["lr"], checksum=None)(run / "telemetry.zarr")
    file = run / "telemetry.zarr/zarr.json"
    file.write_text(json.dumps(seal_metadata(json.loads(file.read_text()))))
    assert open_run(run).loss.dims == ("config", "step")


def mark(run, **record):
    write_config(run, read_config(run) | record)


def flip(file: Path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


READERS = {
    "open_run": lambda run, found: open_run(run),
    "analyze": lambda run, found: analyze(open_run(run, flat=True)),
    "plot": lambda run, found: save_all(open_run(run, flat=True), found, run / "figures", formats=()),
    "report": lambda run, found: report_contents(open_run(run, flat=True), found),
    "export to csv": lambda run, found: export(open_run(run, flat=True), "csv", run / "export"),
    "export to npz": lambda run, found: export(open_run(run, flat=True), "npz", run / "export"),
    "export to netcdf": lambda run, found: export(open_run(run, flat=True), "netcdf", run / "export"),
    "by hand": lambda run, found: open_run(run, flat=True).weight_norm.values,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("spoil", "reason"), [(flip, "its checksum is another one"), (Path.unlink, "missing")])
def test_every_reader_names_a_corrupted_or_missing_chunk(run, reader, spoil, reason):
    mark(run, config={"steps": 120}, summary={})
    found = analyze(open_run(run, flat=True))
    file = run / "telemetry.zarr/weight_norm/c/0/0"
    spoil(file)
    message = refusal(READERS[reader], run, found)
    assert message == (f"{file}: corrupted ({reason}); periodic-jax resume {run} --truncate computes it again")
    assert not (run / "export").exists()


@given(st.data())
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_byte_of_telemetry_gives_another_result(intact, tmp_path, data):
    before = open_run(intact, flat=True).load()
    files = sorted(file for file in (intact / "telemetry.zarr").rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files))
    at, bit = data.draw(st.integers(0, file.stat().st_size - 1)), data.draw(st.integers(0, 7))
    content = file.read_bytes()
    try:
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
        with contextlib.suppress(CorruptedRunError):
            assert open_run(intact, flat=True).load().identical(before)
    finally:
        file.write_bytes(content)


def test_a_chunk_that_was_not_reached_is_not_missed(run):
    """The last checkpoint, or the end of a finished run, tells what must be there; evaluations up to it too."""
    for name in ("loss", "train_loss"):
        (run / f"telemetry.zarr/{name}/c/0/0").unlink()
    assert np.isnan(open_run(run).loss).all()
    (run / "checkpoints/50").mkdir(parents=True)
    (run / "checkpoints/50/checksums.json").touch()
    assert "loss/c/0/0" in refusal(open_run, run)
    mark(run, config={"steps": 120}, summary={})
    shutil.rmtree(run / "telemetry.zarr")
    assert "telemetry.zarr: corrupted (missing)" in refusal(open_run, run)


def test_evaluations_that_are_still_to_come_are_no_corruption(tmp_path):
    """A store that is built and not yet written to, and one that is made longer, are whole."""
    grid, shapes, store = SweepGrid.product(), {"loss": np.zeros((1, 0), np.float32)}, tmp_path / "telemetry.zarr"
    longest = {"config": 1, "step": 300, "eval_step": 301, "layer": 1}
    writer = TelemetryWriter(tmp_path, TelemetryLayout(grid, 100, range(101), shapes, ["train_loss"]))
    assert list(find_corruptions(store, 0, 0, longest)) == []
    writer.write(0, {"loss": np.zeros((1, 100), np.float32)})
    for step in range(101):
        writer.write_evaluation(step, {"train_loss": np.zeros(1, np.float32)})
    TelemetryWriter(tmp_path, TelemetryLayout(grid, 300, range(301), shapes, ["train_loss"])).truncate(100)
    assert list(find_corruptions(store, 0, 100, longest)) == []
    assert {one.file for one in find_corruptions(store, 0, 150, longest)} == {"train_loss/c/0/1"}


def test_truncated_curves(run):
    """Several axes are unstacked, hence read, at once; a missing chunk is one that was not reached."""
    remove("effective_lr/c")(run / "telemetry.zarr")
    assert np.isnan(open_run(run).effective_lr).all()
    chunks("loss", lambda data: data[: len(data) // 2])(run / "telemetry.zarr")
    assert "telemetry.zarr/loss/c/0/0" in refusal(open_run, run)


def test_a_verified_run_is_called_so_only_where_it_is(run):
    mark(run, config={"steps": 120}, summary={})
    assert [line for line in describe_run(run, verify=True).lines if line.startswith("verified")] == [
        "verified: every telemetry chunk up to step 120 and 0 checkpoints"
    ]
    flip(run / "telemetry.zarr/loss/c/0/0")
    flip(run / "telemetry.zarr/lr/c/0")
    lines = describe_run(run, verify=True).lines
    assert not any(line.startswith(("verified", "consistent")) for line in lines)
    assert lines[-3:] == [
        "corrupted: telemetry.zarr/loss/c/0/0 (from step 0): its checksum is another one",
        "corrupted: telemetry.zarr/lr/c/0: its checksum is another one",
        f"to mend it: periodic-jax resume {run} --truncate",
    ]
    shutil.rmtree(run / "telemetry.zarr")
    assert describe_run(run, verify=True).errors == ["telemetry.zarr: missing"]
