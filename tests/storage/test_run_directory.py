import json
import os

import numpy as np
import pytest
from helpers.run_files import NAMES, refusal, telemetry_of, written
from helpers.synthetic import EVALUATIONS, open_flat, write_run

from periodic_jax import ConfigError, RunConfig, resume_run, run_sweep
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.storage import run_directory, schema
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import read_config
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter

GRIDS = [
    {"lr": [0.1, 1.0]},
    {"seed": [7, 4000000000], "momentum": 0.9},
    {"weight_decay": [1e-2, 1e-3], "lr": [0.3, 0.1, 0.2]},
    {"lr": [0.1, 0.01], "fixed_norm": [-1.0, 0.0, 2.0], "seed": [3, 1]},
]


@pytest.mark.parametrize("axes", GRIDS)
def test_product_grid_has_a_dimension_for_each_swept_axis_in_the_order_given(tmp_path, axes):
    grid = SweepGrid.product(**axes)
    path, telemetry = written(tmp_path, grid, layers=["a", "b"])
    dataset = open_run(path)
    assert dataset.loss.dims == (*grid.swept, "step")
    assert dataset.train_loss.dims == (*grid.swept, "eval_step")
    assert dataset.layer_weight_norm.dims == (*grid.swept, "step", "layer")
    assert dataset.diverged_at.dims == grid.swept
    for i in range(len(grid)):
        # The very numbers of the grid select, one by one, what was written for them.
        one = dataset.sel({name: grid.coords[name][i] for name in grid.swept})
        for name, values in telemetry.items():
            np.testing.assert_array_equal(one[name], values[i].astype(np.float32))
        for name in AXES:
            assert one[name].shape == ()
            assert one[name] == grid.coords[name][i]
    for name in AXES:
        assert dataset[name].attrs["long_name"] == schema.QUANTITIES[name].long_name
        assert dataset[name].dtype == grid.coords[name].dtype


def test_selection_by_the_numbers_typed(tmp_path):
    grid = SweepGrid.product(lr=[1.0, 0.1], weight_decay=[1e-3, 1e-2])
    dataset = open_run(written(tmp_path, grid)[0])
    assert dataset.loss.sel(lr=0.1, weight_decay=1e-3, step=5) == 2005
    assert dataset.lr.values.tolist() == [0.1, 1.0]
    assert dataset.seed.shape == ()


def check_flat(dataset, grid, telemetry):
    assert dataset.loss.dims == ("config", "step")
    for name, values in telemetry.items():
        np.testing.assert_array_equal(dataset[name], values.astype(np.float32))
    for name in AXES:
        np.testing.assert_array_equal(dataset[name], grid.coords[name])
        assert name in dataset.coords
    np.testing.assert_array_equal(dataset.step, np.arange(120))
    np.testing.assert_array_equal(dataset.eval_step, [0, 50, 100, 120])


@pytest.mark.parametrize("axes", [{}, *GRIDS])
def test_flat_is_in_the_order_of_the_grid(tmp_path, axes):
    grid = SweepGrid.product(**axes)
    path, telemetry = written(tmp_path, grid)
    check_flat(open_run(path, flat=True), grid, telemetry)


@pytest.mark.parametrize("flat", [False, True])
def test_a_grid_that_is_no_product_stays_flat(tmp_path, flat):
    grid = SweepGrid.of([{"lr": 0.1}, {"lr": 0.2, "seed": 5}, {"lr": 0.1, "seed": 5}, {"lr": 0.2}])
    path, telemetry = written(tmp_path, grid)
    check_flat(open_run(path, flat=flat), grid, telemetry)


def test_one_configuration_has_no_dimension_but_time(tmp_path):
    path, telemetry = written(tmp_path, SweepGrid.product(lr=0.5))
    dataset = open_run(str(path))
    assert dataset.loss.dims == ("step",)
    assert dataset.test_error.dims == ("eval_step",)
    assert dataset.diverged_at.dims == ()
    assert dataset.lr == 0.5
    np.testing.assert_array_equal(dataset.loss, telemetry["loss"][0])


@pytest.mark.parametrize("made", [0, 49, 50, 77, 120])
def test_not_reached_is_nan(tmp_path, made):
    grid = SweepGrid.product(lr=[0.1, 0.2])
    path, _ = written(tmp_path, grid, layers=["a"], written=made)
    dataset = open_run(path)
    for name in (*NAMES, "layer_weight_norm"):
        missing = np.isnan(dataset[name].transpose("step", ...).values.reshape(120, -1))
        assert (missing == (np.arange(120) >= made)[:, None]).all()
    for name in EVALUATIONS:
        assert (np.isnan(dataset[name]) == (dataset.eval_step > made)).all()
    assert np.isnan(dataset.diverged_at).all()


def test_evaluations_and_divergence(tmp_path):
    grid = SweepGrid.product(lr=[0.1, 0.2, 0.3])
    telemetry = telemetry_of(grid)
    telemetry["loss"][1, 60:] = np.nan
    dataset = open_flat(tmp_path / "run", grid, telemetry)
    np.testing.assert_allclose(dataset.test_loss.sel(eval_step=120), [0.12, 1.12, 2.12], rtol=1e-6)
    np.testing.assert_allclose(dataset.train_error.sel(eval_step=50), [0.025, 0.525, 1.025], rtol=1e-6)
    np.testing.assert_array_equal(dataset.diverged_at, [np.nan, 60, np.nan])


def test_every_quantity_has_a_name_and_units(tmp_path):
    dataset = open_run(written(tmp_path, SweepGrid.product(lr=[0.1, 0.2]), layers=["a"])[0], flat=True)
    for name in set(dataset.variables) - {"layer"}:
        assert dataset[name].attrs["long_name"], name
        assert dataset[name].attrs["units"], name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept(tmp_path, dtype):
    run_directory.write_config(tmp_path, {"format": schema.FORMAT})
    values = np.array([[1 / 3, np.pi * 1e-30, np.inf]], dtype)
    shapes: dict[str, np.ndarray] = dict.fromkeys(("loss", "weight_norm"), values[:, :0])
    writer = TelemetryWriter(tmp_path, TelemetryLayout(SweepGrid.product(), 3, [0, 3], shapes, ["test_loss"]))
    writer.write(0, {"loss": values, "weight_norm": values})
    dataset = open_run(tmp_path)
    assert dataset.loss.dtype == dataset.test_loss.dtype == dtype
    np.testing.assert_array_equal(dataset.loss, values[0])


def test_config_round_trip_and_attributes(tmp_path, monkeypatch):
    path, _ = written(tmp_path, SweepGrid.product())
    assert read_config(path) == {"format": 1, "config": {"model": "ConvNetSI"}}
    assert [file.name for file in path.glob("config*")] == ["config.json"]
    monkeypatch.chdir(path)
    for opened in (open_run(path), open_run(".")):
        assert (opened.attrs["name"], opened.attrs["model"]) == ("run", "ConvNetSI")


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    run_directory.write_json(tmp_path / "x.json", {"a": [1, "ü\n"]})
    with pytest.raises(TypeError):
        run_directory.write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, "ü\n"]}


@pytest.mark.parametrize("name", ["new", "a/b/c", "with space", "a::b", "memory:", "file:", "%41", "ü", "-x", "$HOME"])
def test_any_folder_name(tmp_path, name):
    """Also one that a storage library would take for an address."""
    grid = SweepGrid.product(lr=[0.1, 0.2])
    path = write_run(tmp_path / name, grid, telemetry_of(grid))
    assert path.is_dir()
    assert sorted(file.name for file in path.iterdir()) == ["config.json", "telemetry.zarr"]
    assert open_run(path).loss.sel(lr=0.2, step=3) == 1003


def test_a_run_is_read_after_a_change_of_the_working_directory(tmp_path, monkeypatch):
    grid = SweepGrid.product(lr=[0.1, 0.2])
    write_run(tmp_path / "run", grid, telemetry_of(grid))
    monkeypatch.chdir(tmp_path)
    dataset = open_run("run")
    monkeypatch.chdir("/")
    assert dataset.loss.sel(lr=0.2, step=3) == 1003


@pytest.mark.parametrize(
    "use", [read_config, open_run, resume_run, lambda path: run_sweep(RunConfig(out=path, steps=1))]
)
def test_a_path_that_is_not_utf_8_is_no_corruption(tmp_path, monkeypatch, use):
    """Checkpoints, read and written by tensorstore, and results by HDF5 have no such paths."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a path in UTF-8: rename the folder"):
        use(os.fsdecode(b"caf\xe9"))
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_with_other_files_can_be_claimed(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run_directory.claim_directory(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("claim", [run_directory.check_unused, run_directory.claim_directory])
@pytest.mark.parametrize("name", run_directory.OWN_FILES)
def test_a_folder_that_holds_a_run_is_refused(tmp_path, name, claim):
    (tmp_path / name).mkdir()
    message = refusal(claim, tmp_path)
    assert message.startswith(f"--out: {tmp_path} ")
    assert "no run yet" in message


def test_what_cannot_be_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert "not a file" in refusal(run_directory.claim_directory, tmp_path / "file")
    for name in ("file/below", "link", "x" * 300, "null\0null"):
        assert "folder that can be" in refusal(run_directory.claim_directory, tmp_path / name)
    assert "folder that can be" in refusal(run_directory.check_unused, tmp_path / ("x" * 300))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "link"]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"data": {"train_images": 1500}, "config": {"batch_size": 128}}, 11),
        ({"data": {"train_images": 100}, "config": {"batch_size": 128}}, 1),
        ({"data": {"train_images": 100}, "config": {"batch_size": 8, "full_batch": True}}, 1),
        ({"config": {"batch_size": 128}}, None),
        ({"data": {"train_images": "1500"}, "config": {"batch_size": 128}}, None),
        ({"data": {"train_images": 1500}, "config": {"batch_size": 0}}, None),
        ({"data": {"train_images": 1500}}, None),
    ],
)
def test_steps_per_epoch(tmp_path, record, expected):
    run_directory.write_config(tmp_path, {"format": 1, **record})
    assert run_directory.steps_per_epoch(tmp_path) == expected
