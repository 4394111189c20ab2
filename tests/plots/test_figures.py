"""All figures of a run, and their files."""

import matplotlib as mpl
import pytest
from helpers.synthetic import EVALUATIONS

from periodic_jax import analysis, plots

CURVES = ["train_loss", "test_error", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step"]
PERIODIC = ["period_length", "one_period", "phases"]


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("one configuration", [*CURVES, "phase_diagram", "regimes", *PERIODIC]),
        ("one destabilisation, then a divergence", [*CURVES, "phase_diagram", "regimes"]),
        ("nothing but NaN", [*CURVES, "phase_diagram", "regimes"]),
        ("one step", [*CURVES, "phase_diagram", "regimes"]),
    ],
)
def test_all_figures_of_any_run(run, tmp_path, name, names):
    dataset = run(name)
    files = plots.save_all(dataset, analysis.analyze(dataset), tmp_path / "new" / "figures")
    assert [file.name for file in files] == [f"{n}.png" for n in names]
    assert sorted(files) == sorted((tmp_path / "new" / "figures").iterdir())
    for file in files:
        pixels = mpl.image.imread(file)
        assert min(pixels.shape[:2]) >= 300
        dark = (pixels[..., :3].mean(-1) < 0.5).mean()
        assert 1e-3 < dark < 0.6, file  # axes and words at least, and no more than curves can fill


def test_a_run_without_evaluations_or_configurations(run):
    dataset = run("one configuration")
    names = [name for name, _ in plots.figures(dataset.drop_vars(EVALUATIONS), analysis.analyze(dataset))]
    assert names == [*CURVES[2:], "loss", "phase_diagram", "regimes", *PERIODIC]
    empty = dataset.isel(config=slice(0))
    assert list(plots.figures(empty, analysis.analyze(dataset).isel(config=slice(0)))) == []


def test_same_run_gives_the_same_bytes(run, tmp_path, monkeypatch):
    """Whatever the user's own settings, which are left as they are."""
    monkeypatch.setattr(plots, "CURVES", ("train_loss",))
    dataset = run("one step")
    found = analysis.analyze(dataset)
    first = plots.save_all(dataset, found, tmp_path / "a", formats=("png", "pdf"))
    own = {"savefig.dpi": 50, "axes.grid": False, "font.size": 20, "axes.facecolor": "k", "lines.linestyle": ":"}
    own |= {"text.usetex": True, "savefig.format": "svg", "axes.formatter.use_locale": True}
    with mpl.rc_context(own):
        second = plots.save_all(dataset, found, tmp_path / "b", formats=("png", "pdf"))
        assert {name: mpl.rcParams[name] for name in own} == own
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
