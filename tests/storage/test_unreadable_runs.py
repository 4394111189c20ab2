"""A read that fails says nothing about what is on disk: another message, and no advice to train again."""

import errno
import os
from pathlib import Path

import pytest
from helpers.faults import failing, tree
from helpers.run_files import written

from periodic_jax.analysis.pipeline import analyze
from periodic_jax.cli.main import main
from periodic_jax.core.errors import UnreadableError
from periodic_jax.core.grid import SweepGrid
from periodic_jax.inspection.info import describe_run
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import checkpoint_steps, read_config, write_config


@pytest.fixture
def run(tmp_path):
    path, _ = written(tmp_path, SweepGrid.product(lr=[0.1, 0.2]))
    write_config(path, read_config(path) | {"config": {"steps": 120}, "summary": {}})
    return path


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EACCES, errno.ETIMEDOUT])
@pytest.mark.parametrize("name", ["loss/c/0/0", "lr/c/0", "loss/zarr.json", "telemetry.zarr/zarr.json", "config.json"])
def test_a_read_that_fails_is_no_corruption(run, monkeypatch, capsys, name, number):
    before = tree(run)
    failing(monkeypatch, name, number)
    reason = rf"{name}: cannot be read now \({os.strerror(number)}\); try again"
    for call in (
        lambda: describe_run(run, verify=True),
        lambda: open_run(run).load(),
        lambda: analyze(open_run(run, flat=True)),
    ):
        with pytest.raises(UnreadableError, match=reason):
            call()
    with pytest.raises(SystemExit) as stopped:
        main(["info", str(run), "--verify"])
    assert stopped.value.code == 1
    said = capsys.readouterr()
    assert "cannot be read now" in said.err
    assert "--truncate" not in said.out + said.err
    monkeypatch.undo()
    assert tree(run) == before


def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(run, monkeypatch):
    (run / "checkpoints/60").mkdir(parents=True)
    (run / "checkpoints/60/checksums.json").touch()
    assert checkpoint_steps(run) == [60]
    listed = os.listdir

    def fails(path):
        if Path(path).name == "checkpoints":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return listed(path)

    monkeypatch.setattr(os, "listdir", fails)
    with pytest.raises(UnreadableError, match="Stale file handle"):
        checkpoint_steps(run)
