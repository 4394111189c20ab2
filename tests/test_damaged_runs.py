import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from run_files import refusal, written

from periodic_jax.grid import AXES, SweepGrid
from periodic_jax.integrity import seal_metadata
from periodic_jax.results import open_run, read_config

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
    "empty": "",
    "no JSON": "{",
    "several lines": "{\n1\n}\n",
    "deep": "[" * 100_000,
    "a long number": "1" * 5000,
    "a list": "[1]",
    "a word": '"format"',
    "no format": "{}",
    "another format": '{"format": 2}',
    "a hostile format": json.dumps({"format": HOSTILE}),
    "config is no mapping": '{"format": 1, "config": [1]}',
}


@pytest.mark.parametrize("content", CONFIGS)
def test_damaged_or_foreign_config(tmp_path, content):
    path, _ = written(tmp_path, SweepGrid.product())
    (path / "config.json").write_text(CONFIGS[content])
    for call in (read_config, open_run):
        message = refusal(call, path)
        assert message.startswith(f"run directory: {path / 'config.json'} ")


def test_config_that_is_not_text_or_not_a_file(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "readable JSON" in refusal(read_config, tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    assert "readable JSON" in refusal(read_config, tmp_path)


@pytest.mark.parametrize("name", ["missing", ".", "a\nb", "x" * 300, "null\0null", "file", "s3://bucket/run", ""])
def test_no_run_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for call in (read_config, open_run):
        assert refusal(call, name).startswith("run directory: ")


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
    """A run of lr and seed with two layers, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "run"))


@pytest.mark.parametrize("damage", STORES)
def test_damaged_or_foreign_store(run, damage):
    STORES[damage](run / "telemetry.zarr")
    for flat in (False, True):
        message = refusal(open_run, run, flat=flat)
        assert message.startswith(f"run directory: {run / 'telemetry.zarr'} ")


def test_swept_axes_that_are_no_product_are_left_flat(run):
    attributes(swept=["lr"], checksum=None)(run / "telemetry.zarr")
    file = run / "telemetry.zarr/zarr.json"
    file.write_text(json.dumps(seal_metadata(json.loads(file.read_text()))))
    assert open_run(run).loss.dims == ("config", "step")


def test_truncated_curves(run):
    """Several axes are unstacked, hence read, at once; a missing chunk is one that was not reached."""
    remove("effective_lr/c")(run / "telemetry.zarr")
    assert np.isnan(open_run(run).effective_lr).all()
    chunks("loss", lambda data: data[: len(data) // 2])(run / "telemetry.zarr")
    assert "telemetry.zarr" in refusal(open_run, run)
