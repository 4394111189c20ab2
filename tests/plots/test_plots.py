import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from helpers.synthetic import EVALUATIONS, cut, open_flat, stack, trajectory
from matplotlib.figure import Figure

from periodic_jax import analysis, plots
from periodic_jax.core.grid import SweepGrid
from periodic_jax.plots.curvature import against_threshold

CURVES = ["train_loss", "test_error", "weight_norm", "effective_lr", "effective_grad_norm", "angular_step"]
PERIODIC = ["period_length", "equilibrium", "one_period", "phases"]


def infinite(curve):
    """Diverges at step 150: the recorded loss is infinite there, and nothing is known after it."""
    curve = cut(curve, 151)
    curve["loss"][150] = np.inf
    return curve


def runs_of(grid, steps=240, bursts=(), change=lambda curve: curve):
    """One trajectory for each configuration of a grid."""
    lrs, decays = grid.coords["lr"], grid.coords["weight_decay"]
    return grid, stack(
        [
            change(trajectory(steps, bursts, lr=float(lr), weight_decay=float(decay), seed=i))
            for i, (lr, decay) in enumerate(zip(lrs, decays, strict=True))
        ]
    )


TWO_AXES = SweepGrid.product(lr=[0.5, 1.0, 2.0], weight_decay=[1e-3, 5e-3])
ONE = SweepGrid.product(lr=1.0, weight_decay=5e-3)
TWO_SEEDS = SweepGrid.product(lr=1.0, weight_decay=5e-3, seed=[0, 1])
SIXTY = SweepGrid.product(lr=np.geomspace(0.01, 1, 5), weight_decay=np.geomspace(1e-4, 1e-3, 4), seed=[0, 1, 2])
SEVEN_PANELS = SweepGrid.product(lr=np.geomspace(0.01, 1, 12), weight_decay=np.geomspace(1e-4, 1e-3, 7))
FIVE_PANELS = SweepGrid.product(lr=[0.5, 1.0], weight_decay=np.geomspace(1e-4, 1e-3, 5))

RUNS: dict[str, tuple] = {
    "two axes": runs_of(TWO_AXES, bursts=[60, 160]),
    "one configuration": runs_of(ONE, bursts=[60, 160]),
    "no period": runs_of(ONE),
    "sixty configurations": runs_of(SIXTY),
    "more panels than fit": runs_of(SEVEN_PANELS),
    "five panels": runs_of(FIVE_PANELS),
    "no product": runs_of(SweepGrid.of([{"lr": 0.3}, {"lr": 1.0, "seed": 1}, {"momentum": 0.5}])),
    "one destabilisation, then a divergence": runs_of(TWO_SEEDS, bursts=[60], change=infinite),
    "nothing but NaN": runs_of(TWO_SEEDS, change=lambda curve: cut(curve, 0)),
    "one step": runs_of(ONE, steps=1),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The flat Dataset of one of `RUNS`, written once."""
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = open_flat(tmp_path_factory.mktemp("plots") / "run", *RUNS[name])
        return opened[name]

    return get


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("one configuration", [*CURVES, "phase_diagram", "regimes", *PERIODIC]),
        ("one destabilisation, then a divergence", [*CURVES, "phase_diagram", "regimes", "equilibrium"]),
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
    own = {"savefig.dpi": 50, "axes.grid": False, "font.size": 20}
    with mpl.rc_context(own):
        second = plots.save_all(dataset, found, tmp_path / "b", formats=("png", "pdf"))
        assert {name: mpl.rcParams[name] for name in own} == own
    assert len(first) == len(second) == 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("two axes", ("lr", "weight_decay")),
        ("one configuration", ("lr", None)),
        ("sixty configurations", ("lr", "weight_decay")),
        ("no product", ("lr", "momentum")),
    ],
)
def test_axis_roles(run, name, roles):
    assert plots.axis_roles(run(name)) == roles


def test_colours_are_distinct_and_get_lighter():
    scale = plots.colours(np.array([1.0, 0.1, 1.0, 10.0]))
    assert list(scale) == [0.1, 1.0, 10.0]
    lightness = [np.dot(colour[:3], [0.3, 0.59, 0.11]) for colour in scale.values()]
    assert lightness == sorted(lightness)
    assert np.diff(lightness).min() > 0.2
    assert len(plots.colours(np.array([3.0, 3.0]))) == 1


@pytest.mark.parametrize(("name", "log"), [("train_loss", True), ("test_error", False), ("loss", True)])
def test_curves_draw_every_configuration(run, name, log):
    dataset = run("two axes")
    ax = Figure().subplots()
    assert plots.curves(ax, dataset, name, "weight_decay") is ax
    scale = plots.colours(dataset.weight_decay.values)
    assert len(ax.lines) == 6
    for i, line in enumerate(ax.lines):
        np.testing.assert_array_equal(line.get_xdata(), dataset[dataset[name].dims[-1]])
        np.testing.assert_array_equal(line.get_ydata(), dataset[name][i])
        assert line.get_color() == scale[float(dataset.weight_decay[i])]
    assert ax.get_yscale() == ("log" if log else "linear")
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "step",
        {"train_loss": "training loss [nats]", "test_error": "test error", "loss": "mini-batch loss [nats]"}[name],
    )


def test_phase_diagram_draws_every_configuration(run):
    dataset = run("two axes")
    ax = plots.phase_diagram(Figure().subplots(), dataset)
    for i, (path, start) in enumerate(zip(ax.lines[::2], ax.lines[1::2], strict=True)):
        np.testing.assert_array_equal(path.get_xydata().T, [dataset.effective_lr[i], dataset.effective_grad_norm[i]])
        np.testing.assert_array_equal(start.get_xydata(), path.get_xydata()[:1])
    assert ax.get_xscale() == ax.get_yscale() == "log"


def drawn_panels(figure):
    """The visible panels, after a layout."""
    figure.draw_without_rendering()
    return [ax for ax in figure.axes if ax.get_visible()]


@pytest.mark.parametrize(
    ("name", "titles", "colours"),
    [
        ("two axes", ["0.001", "0.005"], ["0.5", "1", "2"]),
        ("one configuration", [""], ["1"]),
        ("five panels", ["0.0001", "0.000178", "0.000316", "0.000562", "0.001"], ["0.5", "1"]),
        ("more panels than fit", ["0.0001", "0.000147", "0.000215", "0.000464", "0.000681", "0.001"],
         ["0.01", "0.0231", "0.0351", "0.0811", "0.123", "0.285", "0.433", "1"]),
    ],
)  # fmt: skip
def test_panels_and_legend(run, name, titles, colours):
    figure = plots.in_panels(run(name), plots.curves, "weight_norm")
    axes = drawn_panels(figure)
    bar = axes.pop() if name == "more panels than fit" else None  # of colours, beside the panels
    assert [ax.get_title() for ax in axes] == [title and f"weight decay {title}" for title in titles]
    if bar:
        assert [text.get_text() for text in bar.get_yticklabels()] == colours
        assert bar.get_ylabel() == "learning rate"
        assert not figure.legends
    else:
        assert [text.get_text() for text in figure.legends[0].texts] == colours
        assert figure.legends[0].get_title().get_text() == "learning rate"
    assert figure.get_suptitle() == ("6 of 7 values of weight decay" if name == "more panels than fit" else "")
    for ax, value in zip(axes, titles, strict=True):
        part = run(name)
        if value:
            part = part.isel(config=np.isclose(part.weight_decay, float(value), rtol=0.01))
        assert [line.get_ydata()[0] for line in ax.lines] == part.weight_norm.values[:, 0].tolist()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("two axes", (plots.phase_diagram,)),
        ("five panels", (plots.phase_diagram,)),
        ("more panels than fit", (plots.curves, "weight_norm")),
        ("one configuration", (plots.curves, "train_loss")),
    ],
)
def test_words_do_not_overlap_and_axes_are_labelled(run, name, arguments):
    figure = plots.in_panels(run(name), *arguments)
    axes = drawn_panels(figure)
    boxes = [ax.get_tightbbox() for ax in axes] + [legend.get_window_extent() for legend in figure.legends]
    axes = axes[: len(axes) - (not figure.legends)]  # without the bar of colours
    for i, box in enumerate(boxes):
        assert figure.bbox.padded(1).contains(box.x0, box.y0)
        assert figure.bbox.padded(1).contains(box.x1, box.y1)
        for other in boxes[:i]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) < 2  # pixels
    for ax in axes:
        below = [other for other in axes if other.bbox.y1 < ax.bbox.y0 and abs(other.bbox.x0 - ax.bbox.x0) < 1]
        left = [other for other in axes if other.bbox.x1 < ax.bbox.x0]
        numbers = [label.get_text() for label in ax.get_xticklabels() if label.get_visible() and label.get_text()]
        assert bool(numbers) == bool(ax.get_xlabel()) == (not below)
        assert bool(ax.get_ylabel()) == (not left)


def test_one_period_shows_the_clearest(tmp_path):
    """Marked from onset to onset: the one between two jumps of which the lesser grew the norm most."""
    grid = SweepGrid.product(lr=[0.5, 1.0], weight_decay=5e-3)
    small = trajectory(600, [100, 200, 300], lr=0.5, weight_decay=5e-3, growth=1.04)
    large = trajectory(600, [60, 160, 240, 480], weight_decay=5e-3, growth=[1.15, 1.03, 1.08, 1.08])
    dataset = open_flat(tmp_path / "run", grid, stack([small, large]))
    figure = plots.one_period(dataset, analysis.analyze(dataset))
    axes = drawn_panels(figure)
    assert axes[0].get_title() == "learning rate 1, weight decay 0.005: 240 steps"
    for ax, name in zip(axes, ("loss", "weight_norm", "effective_lr"), strict=True):
        curve, *onsets = sorted(ax.lines, key=lambda line: -len(line.get_xdata()))
        assert [line.get_xdata()[0] for line in onsets] == [240, 480]
        x = curve.get_xdata()
        assert x[0] < 240
        assert x[-1] > 485
        np.testing.assert_array_equal(curve.get_ydata(), large[name][x].astype(np.float32))
    words = [text.get_text() for text in figure.legends[0].texts]
    assert words == ["phase A: norm falls, ELR rises", "phase B: destabilisation", "onset"]
    assert figure.legends[0].get_window_extent().y0 > axes[0].get_tightbbox().y1 - 2


@pytest.mark.parametrize(("name", "words"), [("nothing but NaN", ["nothing recorded"]), ("one step", [])])
def test_an_empty_figure_says_so(run, name, words):
    for draw in (lambda ax: plots.curves(ax, run(name), "weight_norm"), lambda ax: plots.phase_diagram(ax, run(name))):
        assert [text.get_text() for text in draw(Figure().subplots()).texts] == words


@pytest.fixture(scope="module")
def periodic(run):
    dataset = run("two axes")
    return dataset, analysis.analyze(dataset)


def test_phases_part_the_trajectory(periodic):
    """Each step is drawn in one of the two colours, those at their borders in both."""
    dataset, found = periodic
    config = int(found.destabilisations.values.argmax())
    fall, burst, start, onsets = plots.phases(Figure().subplots(), dataset, found, config).lines
    x = dataset.effective_lr.values[config]
    inside = np.zeros(len(x), bool)
    onset_steps = found.onset_step.values[config, : int(found.destabilisations[config])].astype(int)
    for first, last in zip(onset_steps, found.end_step.values[config], strict=False):
        inside[first : int(last) + 1] = True
    assert inside.sum() > 5
    drawn = burst.get_xdata()
    np.testing.assert_array_equal(drawn, np.where(inside, x, np.nan))
    assert set(x[~inside]) < set(fall.get_xdata())
    assert start.get_xdata() == x[:1]
    np.testing.assert_array_equal(onsets.get_xdata(), x[onset_steps])


def test_regime_map_colours_and_counts(periodic):
    _, found = periodic
    ax = plots.regime_map(Figure().subplots(), found)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0.5", "1", "2"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.001", "0.005"]
    assert len(ax.patches) == 6
    for bar, text in zip(ax.patches, ax.texts, strict=True):
        column, row = round(bar.get_x() + 0.5), round(bar.get_y() + 0.5)
        (config,) = np.flatnonzero((found.lr == [0.5, 1, 2][column]) & (found.weight_decay == [1e-3, 5e-3][row]))
        regime, count = str(found.regime[config].values), int(found.destabilisations[config])
        assert mpl.colors.to_hex(bar.get_facecolor()).upper() == plots.REGIME_COLOURS[regime]
        assert text.get_text().split() == [regime[0].upper(), *([str(count)] if count else [])]


def test_regime_map_of_many_configurations_has_no_words_and_stripes_for_seeds(run):
    found = analysis.analyze(run("sixty configurations"))
    figure = plots.regimes(found)
    (ax,) = drawn_panels(figure)
    assert len(ax.patches) == 60
    assert figure.get_suptitle() == "stripes in a cell: seed"
    wide = found.assign_coords(lr=("config", np.arange(1.0, 61.0)))
    assert not plots.regime_map(Figure().subplots(), wide).texts


def test_period_lengths_fit_and_prediction(periodic):
    _, found = periodic
    ax = plots.period_lengths(Figure().subplots(), found)
    *points, fit = ax.lines
    measured = np.concatenate([line.get_ydata() for line in points[::2]])
    assert sorted(measured) == sorted(found.period_length.values[np.isfinite(found.period_length.values)])
    predicted = np.concatenate([line.get_ydata() for line in points[1::2]])
    assert sorted(predicted) == sorted(
        found.predicted_fall_steps.values[:, 1:][np.isfinite(found.period_length.values)]
    )
    x = np.concatenate([line.get_xdata() for line in points[::2]])
    slope, intercept = np.polyfit(np.log(x), np.log(measured), 1)
    np.testing.assert_allclose(fit.get_ydata(), np.exp(intercept) * fit.get_xdata() ** slope)
    rates = np.repeat(found.lr * found.weight_decay, np.isfinite(found.period_length).sum("period"))
    np.testing.assert_allclose(x, rates, rtol=1e-5)


def test_equilibria_measured_against_predicted(periodic):
    _, found = periodic
    for ax, name in zip(drawn_panels(plots.equilibria(found)), ("weight_norm", "effective_lr"), strict=True):
        *points, equal = ax.lines
        drawn = np.sort(np.concatenate([line.get_xydata() for line in points]), axis=0)
        both = np.stack([found[f"equilibrium_{name}"], found[f"measured_{name}"]], 1)
        np.testing.assert_allclose(drawn, np.sort(both, axis=0))
        np.testing.assert_array_equal(equal.get_xdata(), equal.get_ydata())


def test_layers_of_some_configurations(run):
    dataset = run("sixty configurations")
    norms = dataset.weight_norm.values[..., None] * np.arange(1, 13)
    names = [f"layer_{k}_$" for k in range(12)]
    dataset = dataset.assign(layer_weight_norm=(("config", "step", "layer"), norms)).assign_coords(layer=names)
    figure = plots.layers(dataset)
    axes = drawn_panels(figure)
    assert len(axes) == 6
    assert figure.get_suptitle() == "6 of 60 configurations"
    assert figure.legends[0].get_title().get_text() == "10 of 12 layers"
    for k, line in enumerate(axes[0].lines):
        np.testing.assert_array_equal(line.get_ydata(), norms[0, :, k])


@pytest.mark.parametrize(
    ("values", "scale", "limits"),
    [
        ([5.0, 5.0000005], "linear", (4.5, 5.5)),
        ([0.0, 0.0], "linear", (-1.0, 1.0)),
        ([np.nan, np.nan], "linear", None),
        ([1.0, 1.2], "linear", None),
        ([1.0, 50.0], "log", None),
        ([1e-6, 1.0], "log", None),
        ([0.0, 1.0, 1e5], "log", None),
    ],
)
def test_scales_suit_the_numbers(values, scale, limits):
    ax = Figure().subplots()
    ax.plot(values)
    plots.fit_scale(ax, True, y=np.array(values))
    assert ax.get_yscale() == scale
    ax.figure.draw_without_rendering()
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert max(map(len, labels)) <= 25  # characters, with the mark-up of powers
    assert ax.yaxis.get_offset_text().get_text() == ""
    if limits:
        assert ax.get_ylim() == pytest.approx(limits)


@pytest.mark.parametrize("peaks", [(1.0, 1.0), (1.0, 100.0), (100.0, 1.0), (0.01, 0.01)])
def test_beside_the_threshold_every_panel_shows_its_peaks(run, peaks):
    """The panels share their scale, which the first one must not settle."""
    dataset = run("two axes")
    scale = np.where(dataset.weight_decay.values == 1e-3, *peaks)[:, None]
    noise = np.random.default_rng(0).lognormal(size=dataset.loss.shape)
    dataset = dataset.assign(elr_times_sharpness=(("config", "step"), noise * scale))
    figure = plots.in_panels(dataset, against_threshold, "elr_times_sharpness")
    assert len(figure.axes) == 2
    for ax in figure.axes:
        low, high = ax.get_ylim()
        for line in ax.lines:
            assert low <= np.min(line.get_ydata()) <= np.max(line.get_ydata()) <= high


def test_long_curves_keep_their_extremes(run):
    steps = 100_000
    loss = np.random.default_rng(0).lognormal(size=(1, steps)).astype(np.float32)
    loss[0, 77_777] = 1e6
    coords = {name: run("one configuration")[name] for name in ("lr", "weight_decay")}
    dataset = xr.Dataset({"loss": (("config", "step"), loss)}, {"step": np.arange(steps), **coords})
    for options, x in ({}, 77_777), ({"steps_per_epoch": 11}, 77_777 / 11), ({"log_steps": True}, 77_778):
        ax = plots.curves(Figure().subplots(), dataset, "loss", **options)
        (line,) = ax.lines
        assert len(line.get_xdata()) <= 3002
        assert line.get_xdata()[np.argmax(line.get_ydata())] == pytest.approx(x)
        assert line.get_ydata().min() == loss.min()
        assert ax.get_xscale() == ("log" if "log_steps" in options else "linear")
        assert ax.get_xlabel() == ("epoch" if "steps_per_epoch" in options else "step")
