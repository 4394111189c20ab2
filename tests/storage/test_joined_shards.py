"""Shards of a grid, joined: values, places, laziness, and shards that are missing, corrupted or another's."""

import errno
import json
import logging
import shutil

import numpy as np
import pytest
from helpers.faults import failing
from helpers.run_files import refusal, telemetry_of
from helpers.survival import flip
from helpers.synthetic import write_run

from periodic_jax import open_run
from periodic_jax.core.errors import UnreadableError
from periodic_jax.core.grid import AXES, SweepGrid
from periodic_jax.storage import shards as sharding
from periodic_jax.storage.checksums import SEAL, seal
from periodic_jax.storage.run_directory import read_config
from periodic_jax.storage.shards import SHARDS_FILE, read_shards, write_shards

AXIS_VALUES = {"lr": [0.1, 0.3, 1.0], "weight_decay": [1e-3, 1e-2], "seed": [0, 1]}
GRID = SweepGrid.product(**AXIS_VALUES)


def sharded(path, count=5, layers=("a", "b"), only=None, axes=AXIS_VALUES):
    """A grid whose shards are written, with numbers that tell where they belong, and the whole as one run."""
    grid = SweepGrid.product(**axes)
    settings = {name: np.unique(grid.coords[name]).tolist() for name in AXES if name != "schedule_every"}
    path.mkdir()
    write_shards(path, {"config": {**settings, "shards": count, "model": "ConvNetSI"}, "data": {}}, 1.0)
    telemetry = telemetry_of(grid, layers=len(layers))
    for index, members in enumerate(grid.members(count)):
        if only is None or index in only:
            part = {name: values[members] for name, values in telemetry.items()}
            write_run(path / "shards" / str(index), grid.shard(index, count), part, layers=layers)
    return path, write_run(path.with_name(f"{path.name}-whole"), grid, telemetry, layers=layers)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return sharded(tmp_path_factory.mktemp("sharded") / "grid")


@pytest.fixture
def copied(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "grid")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_shards_are_a_partition_in_which_seeds_stay_together(count):
    members = GRID.members(count)
    assert sorted(np.concatenate(members).tolist()) == list(range(len(GRID)))
    assert max(map(len, members)) - min(map(len, members)) <= 1
    assert sum(len(np.unique(GRID.seeds[part])) - 1 for part in members) <= 1  # of two seeds, one border is cut at most
    for index, part in enumerate(members):
        shard = GRID.shard(index, count)
        assert (np.diff(part) > 0).all()
        assert all(np.array_equal(shard.coords[name], GRID.coords[name][part]) for name in AXES)


@pytest.mark.parametrize(("index", "count"), [(0, 0), (0, 13), (3, 3), (-1, 3)])
def test_shards_that_cannot_be_are_refused(index, count):
    assert refusal(GRID.shard, index, count).startswith(("--shards: ", "--shard: "))


@pytest.mark.parametrize("flat", [True, False])
def test_joined_shards_are_the_run(written, flat):
    joined, whole = (open_run(path, flat=flat).load() for path in written)
    numbered = ["train_loss", "train_error", "test_loss", "test_error"]  # by the place in the shard
    assert joined.drop_vars(numbered).drop_attrs().identical(whole.drop_vars(numbered).drop_attrs())
    places = np.concatenate([np.arange(len(part)) for part in GRID.members(5)])[
        np.argsort(np.concatenate(GRID.members(5)))
    ]
    if flat:
        np.testing.assert_allclose(joined.train_loss, places[:, None] + joined.eval_step.values / 1000, rtol=1e-6)
    assert joined.loss.attrs == whole.loss.attrs
    assert joined.attrs["name"] == "grid"


def test_any_part_can_be_read_and_nothing_else_is(written, monkeypatch):
    joined, whole = (open_run(path, flat=True) for path in written)
    rng, read = np.random.default_rng(0), []
    monkeypatch.setattr(
        sharding.Part, "read", lambda part, *args, real=sharding.Part.read: read.append(part.shard) or real(part, *args)
    )
    for _ in range(40):
        keys = {}
        for dim in ("config", "step", "layer"):
            size = whole.sizes[dim]
            first, last = sorted(rng.integers(0, size + 1, 2).tolist())
            keys[dim] = [
                slice(first, last), slice(None, None, 3), int(rng.integers(size)),
                rng.permutation(size)[: last - first], -1,
            ][rng.integers(5)]  # fmt: skip
        for name, dims in (("layer_weight_norm", 3), ("loss", 2)):
            chosen = dict(list(keys.items())[:dims])
            np.testing.assert_array_equal(joined[name].isel(chosen).values, whole[name].isel(chosen).values)
    read.clear()
    one = GRID.members(5)[2]
    assert joined.loss.isel(config=one, step=slice(3, 5)).shape == (len(one), 2)
    assert not read
    assert np.isfinite(joined.loss.isel(config=one, step=slice(3, 5)).values).all()
    assert read == [2]


def test_shards_that_are_not_there_yet_are_nan(tmp_path):
    path, whole = sharded(tmp_path / "grid", only=(1, 4))
    joined, whole = open_run(path, flat=True).load(), open_run(whole, flat=True).load()
    there = np.zeros(len(GRID), bool)
    there[np.concatenate([GRID.members(5)[k] for k in (1, 4)])] = True
    for name in ("loss", "layer_weight_norm"):
        assert np.isnan(joined[name].values[~there]).all()
        np.testing.assert_array_equal(joined[name].values[there], whole[name].values[there])
    assert all(np.array_equal(joined[name], whole[name]) for name in AXES)
    empty, _ = sharded(tmp_path / "empty", only=())
    assert "no shard has recorded anything yet" in refusal(open_run, empty)


def test_a_shard_that_went_further_and_has_more_evaluations_keeps_them(tmp_path):
    path, _ = sharded(tmp_path / "grid", count=2, layers=())
    shutil.rmtree(path / "shards/1")
    longer = GRID.shard(1, 2)
    write_run(path / "shards/1", longer, telemetry_of(longer, steps=150))
    joined = open_run(path, flat=True).load()
    members = GRID.members(2)
    assert joined.sizes["step"] == 150
    assert np.isnan(joined.loss.values[members[0], 120:]).all()
    assert np.isfinite(joined.loss.values[members[1]]).all()
    assert np.isfinite(joined.loss.values[members[0], :120]).all()
    evaluated = [open_run(path / f"shards/{k}", flat=True).eval_step.values for k in (0, 1)]
    assert joined.eval_step.values.tolist() == sorted({*evaluated[0].tolist(), *evaluated[1].tolist()})


def test_a_corrupted_shard_is_named_and_the_rest_is_read(copied, written, caplog):
    (copied / "shards/2/config.json").write_text("{")
    flip(copied / "shards/4/telemetry.zarr/loss/c/0/0")
    with caplog.at_level(logging.WARNING, "periodic_jax"):
        joined = open_run(copied, flat=True).load()
    whole, lost = open_run(written[1], flat=True).load(), GRID.members(5)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "shards/2/config.json: corrupted" in said[0]
    assert said[1].startswith("loss of shard 4 is left out: ")
    assert "shards/4/telemetry.zarr/loss/c/0/0" in said[1]
    gone = np.isin(np.arange(len(GRID)), np.concatenate([lost[2], lost[4]]))
    assert np.isnan(joined.loss.values[gone]).all()
    np.testing.assert_array_equal(joined.loss.values[~gone], whole.loss.values[~gone])
    np.testing.assert_array_equal(joined.weight_norm.values[lost[4]], whole.weight_norm.values[lost[4]])


def test_a_shard_that_cannot_be_read_now_is_not_left_out(copied, monkeypatch):
    failing(monkeypatch, "shards/1/telemetry.zarr/loss/c/0/0", errno.EIO)
    with pytest.raises(UnreadableError, match=r"shards/1/telemetry\.zarr/loss/c/0/0: cannot be read now"):
        open_run(copied).load()


def test_where_all_shards_are_corrupted_the_first_error_is_raised(copied):
    for k in range(5):
        (copied / f"shards/{k}/config.json").write_text("{")
    assert "shards/0/config.json" in refusal(open_run, copied)


def test_a_shard_of_another_grid_in_its_place_is_left_out(copied, caplog):
    shutil.rmtree(copied / "shards/1")
    shutil.copytree(copied / "shards/0", copied / "shards/1")
    with caplog.at_level(logging.WARNING, "periodic_jax"):
        joined = open_run(copied, flat=True)
    assert "its configurations are not those of shard 1" in caplog.text
    assert np.isnan(joined.loss.values[GRID.members(5)[1]]).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["config"].update(shards=4),
        lambda content: content.update(format=99),
        lambda content: content["config"].pop("lr"),
        lambda content: content.pop("schedule_every"),
    ],
    ids=["shards", "format", "axis", "every"],
)
@pytest.mark.parametrize("is_sealed_again", [False, True])
def test_a_changed_file_of_shards_is_corrupted(copied, change, is_sealed_again):
    content = json.loads((copied / SHARDS_FILE).read_text())
    change(content)
    if is_sealed_again:
        content = seal({name: value for name, value in content.items() if name != SEAL})
    (copied / SHARDS_FILE).write_text(json.dumps(content))
    if is_sealed_again and content["config"]["shards"] == 4:
        assert read_shards(copied).number == 4  # a genuine file of another cut: the shards in it are others
    else:
        assert SHARDS_FILE in refusal(read_shards, copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"format": 1}'])
def test_what_is_no_file_of_shards_is_corrupted(copied, text):
    (copied / SHARDS_FILE).write_text(text)
    assert SHARDS_FILE in refusal(open_run, copied)


@pytest.mark.parametrize("name", [SHARDS_FILE, "shards", "shards/3"])
def test_no_link_is_followed(copied, tmp_path, name):
    (copied / name).rename(tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    assert "is a link" in refusal(open_run, copied)


def test_the_folder_of_a_grid_is_no_run(copied):
    assert f"or give a shard, such as {copied}/shards/0" in refusal(read_config, copied)
    (copied / SHARDS_FILE).unlink()
    assert "there is no shards.json; give the sweep's command again" in refusal(read_config, copied)


def test_the_first_file_of_shards_stays(tmp_path):
    manifest = {"config": {**{name: [0.5] for name in AXES if name != "seed"}, "seed": [0], "shards": 1}, "data": {}}
    write_shards(tmp_path, manifest, 1.0)
    before = (tmp_path / SHARDS_FILE).read_bytes()
    write_shards(tmp_path, {**manifest, "data": {"other": 1}}, 1.0)
    assert (tmp_path / SHARDS_FILE).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [SHARDS_FILE]
