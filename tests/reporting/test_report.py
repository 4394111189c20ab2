import base64
import builtins
import itertools
import json
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import xarray as xr
from helpers.browser import chromium, complaints, requests
from helpers.synthetic import EVALUATIONS, cut, open_flat, stack, trajectory, write_run

from periodic_jax import analysis
from periodic_jax.core.errors import CorruptedRunError, MissingDependencyError
from periodic_jax.core.grid import SweepGrid
from periodic_jax.reporting import html
from periodic_jax.reporting.html import contents
from periodic_jax.reporting.html.page import as_json

GRID = SweepGrid.product(lr=[0.5, 1.0], weight_decay=[1e-3, 5e-3], seed=[0, 1])


def telemetry(grid, steps=900, bursts=(100, 300, 500, 700), change=lambda curve: curve):
    pairs = zip(grid.coords["lr"], grid.coords["weight_decay"], strict=True)
    curves = [trajectory(steps, bursts, lr=float(a), weight_decay=float(b), seed=i) for i, (a, b) in enumerate(pairs)]
    return stack([change(curve) for curve in curves])


def shown_of(dataset):
    return html.report_contents(dataset, analysis.analyze(dataset))


def unpack(text, dtype="<f4"):
    return np.frombuffer(base64.b64decode(text), dtype)


def diverged(curve):
    curve = cut(curve, 3)
    curve["loss"][2] = np.inf
    return curve


ONE = SweepGrid.product(lr=1.0, weight_decay=5e-3)
EDGES = {
    "one configuration": lambda path: open_flat(path, ONE, telemetry(ONE)),
    "all diverged": lambda path: open_flat(path, GRID, telemetry(GRID, change=diverged)),
    "unfinished": lambda path: open_flat(path, GRID, telemetry(GRID), written=250),
    "nothing recorded": lambda path: open_flat(path, GRID, telemetry(GRID), written=0),
    "no evaluations": lambda path: open_flat(path, GRID, telemetry(GRID)).drop_vars(EVALUATIONS),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose name is hostile, its Dataset and what the page shows."""
    folder = tmp_path_factory.mktemp("report") / "<img src=x onerror=alert(1)> <script>alert(2)<"
    dataset = open_flat(folder, GRID, telemetry(GRID), model="</script><script>alert(3)</script>&amp;")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "MOST_BUCKETS", 300)  # so that not every step is held
        shown = shown_of(dataset)
    return dataset, shown, html.write(shown, folder)


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


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        browser.get(run[2].as_uri())
        yield browser


def cell(page, i):
    return page.find_element("css selector", f'#map button[data-config="{i}"]')


def drawn(page):
    """What the page draws and says: x and y of the loss, the facts, and the cell that is pressed."""
    plot = "document.getElementById('curves').data[1]"
    x, y, config = page.execute_script(f"return [{plot}.x, {plot}.y, {plot}.name]")
    facts = {
        row.find_element("css selector", "th").text: [td.text for td in row.find_elements("css selector", "td")]
        for row in page.find_elements("css selector", "#facts tr")
    }
    pressed = page.find_elements("css selector", '#map button[aria-pressed="true"]')
    assert [button.get_attribute("data-config") for button in pressed] == [config]
    return np.array(x), np.array(y), facts, int(config)


def check(page, run, i):
    dataset, _, _ = run
    found = analysis.analyze(dataset)
    x, y, facts, config = drawn(page)
    assert config == i
    np.testing.assert_array_equal(y.astype(np.float32), dataset.loss.values[i, x])
    assert facts["destabilisations"][0] == str(int(found.destabilisations[i]))
    for word, name in (("mean period [steps]", "mean_period"), ("final weight norm", "final_weight_norm")):
        assert float(facts[word][0]) == pytest.approx(float(found[name][i]), rel=6e-3)  # three digits
    assert facts["final test error"][0].endswith(" %")
    assert float(facts["final test error"][0][:-2]) == pytest.approx(100 * float(found.final_test_error[i]), abs=0.06)
    assert f"learning rate {float(dataset.lr[i]):g}" in page.find_element("id", "chosen").text


def test_curves_are_drawn_through_their_extremes_and_finer_on_fewer_steps(page, run):
    """Of each stretch of the chosen steps, the lowest and highest loss that the page holds."""
    dataset, shown, _ = run
    cell(page, 0).click()
    held = unpack(shown["configs"][0]["steps"], "<u4")
    assert len(held) > 400
    for first, last in ((0, 900), (200, 650), (100, 250)):
        for name, step in (("to", last), ("from", first)):
            page.execute_script(
                f"const r = document.getElementById('{name}'); r.value = {step}; r.dispatchEvent(new Event('input'))"
            )
        x, y, _, _ = drawn(page)
        inside = held[(held >= first) & (held <= last)]
        assert set(x) <= set(inside)
        assert len(x) <= 402
        if len(inside) <= 400:
            np.testing.assert_array_equal(x, inside)
        edges = first + np.arange(201) * (last - first) / 200
        for low, high in itertools.pairwise(edges):
            some = inside[(inside >= low) & (inside < high)]
            if len(some):
                there = y[(x >= low) & (x < high)].astype(np.float32)
                loss = dataset.loss.values[0, some]
                assert (there.min(), there.max()) == (loss.min(), loss.max())
        said = page.find_element("id", "decimated").text
        assert ("choose fewer steps" in said) == (last - first > 200 * shown["bucket"])
        assert f"of every {max(shown['bucket'], -(-(last - first) // 200))} steps" in said
    page.find_element("id", "all").click()
    assert complaints(page) == []


def test_opens_from_a_file_without_network_and_complaints(page, run):
    check(page, run, run[1]["first"])
    assert page.find_element("id", "headline").text == run[1]["headline"]
    assert requests(page) == []
    assert complaints(page) == []
    assert page.find_element("id", "name").text == run[1]["name"]
    assert page.execute_script("return document.querySelectorAll('img').length") == 0
    took = page.execute_script("const t = performance.timing; return t.loadEventEnd - t.navigationStart")
    assert took < 10_000  # 1 s on an idle machine


def test_a_click_and_keys_change_the_configuration(page, run):
    from selenium.webdriver.common.keys import Keys

    cell(page, 6).click()  # learning rate 1, decay 5e-3, seed 0
    check(page, run, 6)
    page.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    check(page, run, 2)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    check(page, run, 0)
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)  # nothing there
    check(page, run, 0)
    page.find_element("id", "select-seed").send_keys(Keys.TAB)
    assert page.switch_to.active_element.get_attribute("data-config") == "0"
    page.find_element("css selector", "#select-seed option:nth-child(2)").click()
    check(page, run, 1)
    page.find_element("css selector", "#select-seed option:nth-child(1)").click()
    assert complaints(page) == []


def test_two_cells_are_compared_and_steps_chosen(page, run):
    cell(page, 4).click()
    page.switch_to.active_element.send_keys("c")
    cell(page, 0).click()
    check(page, run, 0)
    _, _, facts, _ = drawn(page)
    assert len(facts["destabilisations"]) == 2
    second = page.execute_script("return document.getElementById('curves').data.map((t) => t.name)")
    assert {"0", "4"} <= set(second)
    page.execute_script("const r = document.getElementById('from'); r.value = 450; r.dispatchEvent(new Event('input'))")
    x, _, _, _ = drawn(page)
    assert 450 <= x[0] < 470
    header, *lines = [line.split(",") for line in page.execute_script("return report.csv()").splitlines()]
    assert header == ["config", "lr", "weight_decay", "seed", "step", *contents.CURVES, *contents.EVALUATIONS]
    dataset = run[0]
    for words in lines:
        row = dict(zip(header, words, strict=True))
        i, step = int(row["config"]), int(row["step"])
        assert i in (0, 4)
        assert step >= 450
        if row["loss"]:
            assert np.float32(row["loss"]) == dataset.loss.values[i, step]
        else:
            assert np.float32(row["test_error"]) == dataset.test_error.sel(eval_step=step).values[i]
    assert {row[0] for row in lines} == {"0", "4"}
    page.switch_to.active_element.send_keys("\ue00c")  # escape
    assert len(drawn(page)[2]["destabilisations"]) == 1
    page.find_element("id", "all").click()
    check(page, run, 0)
    assert complaints(page) == []


def test_fits_a_phone_and_follows_dark_mode(page):
    light = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    wide, back, text = page.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor,"
        " document.getElementById('curves').layout.font.color]"
    )
    assert wide <= 360
    assert back != light
    assert text == "#e8e8e8"
    assert complaints(page) == []


def test_edges_open_too(page, tmp_path):
    for name, make in EDGES.items():
        folder = tmp_path / name.replace(" ", "-")
        page.get(html.write(shown_of(make(folder)), folder).as_uri())
        assert page.find_elements("css selector", "#map button"), name
        assert complaints(page) == [], name


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
