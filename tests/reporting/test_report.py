"""What a report shows of a run, and how it is written and served."""

import builtins
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import xarray as xr
from helpers.reported_runs import EDGES, GRID, shown_of, telemetry, unpack
from helpers.synthetic import write_run

from periodic_jax import analysis
from periodic_jax.core.errors import CorruptedRunError, MissingDependencyError
from periodic_jax.core.grid import SweepGrid
from periodic_jax.reporting import html
from periodic_jax.reporting.html import contents
from periodic_jax.reporting.html.page import as_json


def test_every_drawn_point_is_recorded_and_extremes_are_kept(run):
    dataset, shown, _ = run
    for i, config in enumerate(shown["configs"]):
        steps = unpack(config["steps"], "<u4")
        assert 300 < len(steps) < dataset.sizes["step"]
        for quantity, text in zip(shown["curves"], config["curves"], strict=True):
            whole, drawn = dataset[quantity["name"]].values[i], unpack(text)
            np.testing.assert_array_equal(drawn, whole[steps])
            for first in range(0, 900, shown["bucket"]):
                part = slice(first, first + shown["bucket"])
                inside = drawn[(steps >= part.start) & (steps < part.stop)]
                assert (inside.min(), inside.max()) == (whole[part].min(), whole[part].max())
        for quantity, text in zip(shown["evaluations"], config["evaluations"], strict=True):
            np.testing.assert_array_equal(unpack(text), dataset[quantity["name"]].values[i])
        place = {axis["name"]: axis["values"][k] for axis, k in zip(shown["axes"], config["at"], strict=True)}
        assert place == {name: dataset[name].values[i] for name in ("lr", "weight_decay", "seed")}


def test_numbers_are_those_of_the_analysis(run):
    dataset, shown, _ = run
    found = analysis.analyze(dataset)
    for i, config in enumerate(shown["configs"]):
        assert config["regime"] == found.regime[i]
        for name, value in zip(contents.NUMBERS, config["numbers"], strict=True):
            expected = float(found[name][i])
            assert value == expected if np.isfinite(expected) else value is None
        onsets = found.onset_step.values[i]
        np.testing.assert_array_equal(unpack(config["onsets"], "<u4"), onsets[np.isfinite(onsets)])
        assert config["checks"] == [None if np.isnan(v) else v for v in found.check_violations.values[i]]


def test_shares_are_per_cent_as_in_the_tables(run):
    """Numbers and evaluations of the page carry the mark that the script formats them by."""
    shown = run[1]
    marked = dict(zip(contents.NUMBERS, shown["formats"]["numbers"], strict=True))
    assert {name for name, kind in marked.items() if kind == "percent"} == {"final_test_error", "lowest_test_error"}
    assert {q["name"]: q["percent"] for q in shown["evaluations"]} == {"train_loss": False, "test_error": True}


def test_every_quantity_of_the_page_is_explained(run):
    shown = run[1]
    sentences = [q["help"] for q in (*shown["curves"], *shown["evaluations"])] + shown["help"]["numbers"]
    for sentence in sentences + shown["help"]["theory"]:
        assert sentence.endswith(".")


def found_with(regimes, lengths):
    """An analysis of configurations of several learning rates, the period lengths of each given, NaN-padded."""
    grid = SweepGrid.product(lr=[0.1 * 2**k for k in range(len(regimes))], weight_decay=[1e-3])
    onsets = np.cumsum(np.pad(np.array(lengths, float), ((0, 0), (1, 0)), constant_values=10.0), axis=1)
    growth = np.where(np.isfinite(onsets), 2.0 + np.arange(len(regimes))[:, None], np.nan)  # of the norm: the last most
    events = {"onset_step": onsets, "onset_weight_norm": np.ones_like(onsets), "peak_weight_norm": growth}
    events["spike"] = np.where(np.isfinite(onsets), 1.0, np.nan)
    return xr.Dataset(
        {
            "regime": ("config", np.array(regimes, object)),
            "confidence": ("config", np.linspace(0.9, 0.5, len(regimes))),
            "period_length": (("config", "period"), np.array(lengths, float)),
            **{name: (("config", "destabilisation"), values) for name, values in events.items()},
        },
        {name: ("config", values) for name, values in grid.coords.items()},
    )


NAN = float("nan")
HEADLINES = {
    "several periods": (
        ["converging", "periodic", "periodic"], [[NAN] * 3, [100, 110, 120], [1000, 1400, NAN]], 2,
        "2 of 3 configurations are periodic; the clearest: learning rate 0.4, weight decay 0.001, a period of "
        "1200 ± 280 steps (mean and standard deviation of 2 periods).",
    ),
    "one period": (
        ["converging", "periodic", "equilibrium"], [[NAN], [101], [30]], 1,
        "1 of 3 configurations is periodic; "
        "the clearest: learning rate 0.2, weight decay 0.001, a period of 101 steps.",
    ),
    "none": (["undecided", "converging", "converging"], [[NAN]] * 3, 0,
             "No configuration is periodic: 2 converging, 1 undecided."),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADLINES)
def test_the_headline_and_the_first_configuration_are_of_the_clearest_period(name):
    regimes, lengths, first, sentence = HEADLINES[name]
    found = found_with(regimes, lengths)
    assert contents.most_telling(found) == first
    assert contents.headline(found) == sentence


@pytest.mark.parametrize("name", EDGES)
def test_any_run_has_a_report(tmp_path, name):
    dataset = EDGES[name](tmp_path / "run")
    shown = shown_of(dataset)
    assert len(shown["configs"]) == dataset.sizes["config"]
    assert shown["summary"][0].endswith({"unfinished": "250 recorded so far.", "nothing recorded": "0 recorded so far.",
        "all diverged": "3 recorded so far."}.get(name, "all recorded."))  # fmt: skip
    assert json.loads(as_json(shown)) == shown


def test_the_size_is_bounded():
    """100 configurations of any length stay below 12 MB, beside the 4.8 MB of plotly."""
    for marks in (0, 100_000):
        parts = contents.buckets(100, 5, marks)
        assert parts >= 40
        assert 100 * parts * 2 * 5 * 24 * 4 / 3 + marks * 8 * 4 / 3 < 6e6
    assert contents.buckets(1, 5, 0) == contents.MOST_BUCKETS
    assert contents.buckets(10**6, 5, 0) == contents.LEAST_BUCKETS


def test_text_of_the_run_is_escaped(run):
    _, shown, file = run
    text = file.read_text()
    assert "alert(1)" in shown["name"]
    assert "alert(3)" in shown["summary"][0]
    for marker in ("<img src=x", "<script>alert", "</script><script>alert"):
        assert marker not in text
    assert as_json({"a": "</script>&\u2028"}) == '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'


def test_without_plotly_one_line_says_what_to_install(run, monkeypatch):
    actual = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("plotly"):
            raise ImportError(name)
        return actual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"periodic_jax\[report\]"):
        html.render(run[1])


def test_a_running_sweep_is_served_on_loopback_and_refreshed(tmp_path):
    path = write_run(tmp_path / "run", GRID, telemetry(GRID), written=250)
    looks = []

    def look():
        from periodic_jax.storage.reader import open_run

        looks.append(1)
        if len(looks) == 3:
            raise CorruptedRunError(path, "a chunk that is being written", "look again")
        return shown_of(open_run(path, flat=True))

    def get(place, **headers):
        address = f"http://127.0.0.1:{server.server_port}{place}"
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20) as answer:
            return answer.read().decode()

    with html.serve(look, port=0, every=0) as server:
        assert server.server_address[0] == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            first = json.loads(get("/data.json"))
            assert first["summary"][0].endswith("250 recorded so far.")
            assert json.loads(get("/data.json")) == first  # the run could not be read
            assert "connect-src 'self'" in html.render(first, live=5)
            assert "connect-src 'none'" in html.render(first)
            for place, headers in (("/config.json", {}), ("/", {"Host": "evil.example"})):
                with pytest.raises(urllib.error.HTTPError):
                    get(place, **headers)
        finally:
            server.shutdown()
            thread.join()
    assert len(looks) >= 3
