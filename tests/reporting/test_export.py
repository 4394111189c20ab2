import builtins
import csv
import struct

import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import EVALUATIONS, open_flat, stack, trajectory

from periodic_jax.core.errors import ConfigError, MissingDependencyError
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.reporting.export import KINDS, export

GRID = SweepGrid.product(lr=[0.5, 1.0], weight_decay=1e-3, seed=[0, 1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Four configurations of 120 steps with two layers, stopped after step 80."""
    curves = stack([trajectory(120, [60], lr=float(lr), seed=i) for i, lr in enumerate(GRID.coords["lr"])])
    curves["layer_weight_norm"] = curves["weight_norm"][..., None] * np.array([0.6, 0.8])
    layers = ("conv/0", 'a "b",\n')
    return open_flat(tmp_path_factory.mktemp("export") / "run", GRID, curves, layers=layers, written=80, eval_every=20)


def test_csv(run, tmp_path):
    out = export(run, "csv", tmp_path / "new" / "csv")
    assert len(list(out.iterdir())) == 1 + 2 * 4
    with (out / "configs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [[float(row[name]) for name in AXES] for row in rows] == np.stack([run[n] for n in AXES], 1).tolist()
    for i in range(4):
        for end, dim, names in (
            ("", "step", ("loss", "weight_norm", "layer_weight_norm/conv/0", 'layer_weight_norm/a "b",\n')),
            ("-evaluations", "eval_step", EVALUATIONS),
        ):
            with (out / f"config-{i:04d}{end}.csv").open(newline="") as file:
                table = list(csv.DictReader(file))
            assert [int(row[dim]) for row in table] == run[dim].values.tolist()
            for name in names:
                values = np.array([row[name] for row in table], np.float32)
                whole, _, layer = name.partition("/")
                expected = run[whole].sel(layer=layer) if layer else run[whole]
                np.testing.assert_array_equal(values, expected.values[i])


@pytest.mark.parametrize("kind", ["netcdf", "npz"])
def test_whole_datasets(run, tmp_path, kind):
    out = export(run, kind, tmp_path / "file")
    stored = xr.load_dataset(out, engine="scipy") if kind == "netcdf" else np.load(out, allow_pickle=False)
    assert set(stored) | set(getattr(stored, "coords", ())) == set(run.variables)
    for name, array in run.variables.items():
        np.testing.assert_array_equal(np.asarray(stored[name]).astype(array.dtype), array.values)
    if kind == "netcdf":
        assert stored.loss.attrs["units"] == "nats"
        assert stored.attrs["swept"] == "lr seed"


def test_tensorboard(run, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra tensorboard)")
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    out = export(run, "tensorboard", tmp_path / "tb")
    folders = sorted(out.iterdir())
    assert [folder.name for folder in folders] == [f"config-000{i}" for i in range(4)]
    for i, folder in enumerate(folders):
        (file,) = folder.iterdir()
        data, events = file.read_bytes(), []
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
        values = [(event.step, value) for event in events for value in event.summary.value]
        loss = {step: value.simple_value for step, value in values if value.tag == "loss"}
        assert loss == dict(enumerate(run.loss.values[i, :80].tolist()))
        tested = {step: value.simple_value for step, value in values if value.tag == "evaluation/test_error"}
        assert tested == dict(zip(range(0, 81, 20), run.test_error.values[i, :5].tolist(), strict=True))
        plugins = [HParamsPluginData.FromString(v.metadata.plugin_data.content) for _, v in values if "hparam" in v.tag]
        numbers = {k: v.number_value for p in plugins for k, v in p.session_start_info.hparams.items()}
        assert numbers == {name: float(run[name].values[i]) for name in AXES}


@pytest.mark.slow
def test_wandb_writes_offline_runs(run, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed (extra wandb)")
    out = export(run.isel(config=slice(2)), "wandb", tmp_path / "wb")
    files = sorted(out.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert all(file.stat().st_size > 5_000 for file in files)


def test_refusals_leave_nothing(run, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(ConfigError, match="--to: hdf"):
        export(run, "hdf", tmp_path / "x")
    with pytest.raises(ConfigError, match="--out"):
        export(run, "csv", taken)
    with pytest.raises(ConfigError, match="--out"):
        export(run, "csv", taken / "below")
    actual = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] in ("tensorboardX", "wandb"):
            raise ImportError(name)
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for kind in ("tensorboard", "wandb"):
        with pytest.raises(MissingDependencyError, match=rf"periodic_jax\[{kind}\]"):
            export(run, kind, tmp_path / "x")
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_text() == "mine"
    assert set(KINDS) == {"tensorboard", "wandb", "csv", "netcdf", "npz"}
