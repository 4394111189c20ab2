import os

import numpy as np
import pytest
from helpers.synthetic import FOUR, four, write_run

from periodic_jax.cli.main import main
from periodic_jax.storage.datasets import open_analysis
from periodic_jax.storage.reader import open_run


@pytest.mark.parametrize("written", [np.inf, 640, 0])
def test_command(tmp_path, capsys, written):
    """Of finished and of running runs, over and over."""
    path = write_run(tmp_path / "run", FOUR, four(), written=written)
    for arguments in ([], ["--predict"]):
        main(["analyze", str(path), *arguments])
        said = capsys.readouterr()
        assert said.err == ""
        assert ("soonest" in said.out) == ("back-test" in said.out) == bool(arguments)
        assert f"written: {path / 'summary.csv'}, {path / 'analysis.nc'}" in said.out
    assert open_analysis(path).regime[0] == ("undecided" if written == 0 else "periodic")
    open_run(path)


@pytest.mark.parametrize("corruption", ["no folder", "no store", "broken chunk", "no curve"])
def test_command_refuses_what_is_no_run(tmp_path, capsys, corruption):
    path = tmp_path / "run"
    if corruption != "no folder":
        write_run(path, FOUR, four())
    if corruption == "no store":
        os.rename(path / "telemetry.zarr", path / "telemetry")
    elif corruption == "broken chunk":
        for chunk in (path / "telemetry.zarr" / "weight_norm" / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(b"broken")
    elif corruption == "no curve":
        os.rename(path / "telemetry.zarr" / "diverged_at", tmp_path / "away")
    with pytest.raises(SystemExit) as stop:
        main(["analyze", str(path)])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    expected = {
        "no folder": "run: there is no such folder; give",
        "no store": "telemetry.zarr: nothing is recorded yet; periodic-jax resume",
        "broken chunk": "telemetry.zarr/weight_norm/c/0/0: corrupted (",
        "no curve": f"; periodic-jax resume {path} rebuilds it from config.json",
    }
    assert expected[corruption] in said.err
    assert corruption != "no curve" or f"{path}/telemetry.zarr/diverged_at" in said.err
    assert not (path / "analysis.nc").exists()
