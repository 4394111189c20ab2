"""The comparison of minima by the command line, and its figure."""

import pytest
import xarray as xr

from periodic_jax.cli.main import main
from periodic_jax.plots import minima as draw
from periodic_jax.plots.minima import MOST_SERIES
from periodic_jax.storage import datasets
from periodic_jax.storage.run_directory import COMPARISON

pytestmark = pytest.mark.usefixtures("rises")


def test_the_command_prints_tables_and_writes_a_store_and_a_figure(whole, capsys):
    main(["minima", str(whole), "--select", "seed=0", "--last", "1", "--points", "3"])
    output = capsys.readouterr().out
    assert "saved while training" in output
    assert "earlier minima are left out" in output
    stored = datasets.read_store(str(whole / COMPARISON))
    assert stored.sizes["config"] == 2
    assert stored.reason.dtype.kind == "U"
    assert (whole / "figures/minima.png").stat().st_size > 0
    with pytest.raises(SystemExit) as stop:
        main(["minima", str(whole)])
    assert stop.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_figure_tells_all_configurations_apart(compared):
    figure = draw(compared)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0, 0", "0, 1", "1e+30, 0", "1e+30, 1"]
    assert figure.legends[0].get_title().get_text() == "learning rate of the others,\nseed"
    errors, _, paths, _ = figure.axes
    assert len({line.get_color() for line in errors.lines}) == 4
    assert "seed" in paths.get_title()
    several: list[xr.Dataset] = [compared] * 3
    many = draw(xr.concat(several, "config"))  # more than can be told apart: some of them
    assert many.get_suptitle() == f"{MOST_SERIES} of 12 configurations"
