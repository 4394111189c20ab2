"""The page of a report, driven in a browser."""

import itertools

import numpy as np
import pytest
from helpers.browser import chromium, complaints, requests
from helpers.reported_runs import EDGES, shown_of, unpack

from periodic_jax import analysis
from periodic_jax.reporting import html
from periodic_jax.reporting.html import contents


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


def test_opens_from_a_file_without_network_and_complaints(page, run):
    check(page, run, run[1]["first"])
    assert page.find_element("id", "headline").text == run[1]["headline"]
    assert requests(page) == []
    assert complaints(page) == []
    assert page.find_element("id", "name").text == run[1]["name"]
    assert page.execute_script("return document.querySelectorAll('img').length") == 0
    took = page.execute_script("const t = performance.timing; return t.loadEventEnd - t.navigationStart")
    assert took < 10_000  # 1 s on an idle machine


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
