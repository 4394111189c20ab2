import numpy as np
import pytest
import xarray as xr
from helpers.drawn import drawn_panels
from matplotlib.figure import Figure

from periodic_jax import plots
from periodic_jax.plots.curvature import against_threshold


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


@pytest.mark.parametrize(("name", "words"), [("nothing but NaN", ["nothing recorded"]), ("one step", [])])
def test_an_empty_figure_says_so(run, name, words):
    for draw in (lambda ax: plots.curves(ax, run(name), "weight_norm"), lambda ax: plots.phase_diagram(ax, run(name))):
        assert [text.get_text() for text in draw(Figure().subplots()).texts] == words


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


def test_errors_are_drawn_in_per_cent(run):
    dataset = run("two axes")
    ax = plots.curves(Figure().subplots(), dataset, "test_error")
    assert ax.yaxis.get_major_formatter()(0.25, 0).endswith("%")
    assert (
        not plots.curves(Figure().subplots(), dataset, "train_loss").yaxis.get_major_formatter()(0.25, 0).endswith("%")
    )
