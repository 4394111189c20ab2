"""How long the page of a report takes to open, and to answer a click or a key, in headless Chromium.

    python -m benchmarks.report_speed --rounds 60

Writes a synthetic run of a grid as large as the report is made for, and its report, into a temporary folder, which is
deleted afterwards; opens it a few times, and clicks cells and presses arrow keys in turn. An answer is counted from the
browser's own time stamp of the event to the message after the frame in which the last picture was drawn.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.analysis_cost import write_run
from benchmarks.common import HERE, save
from periodic_jax.core.grid import SweepGrid

# Notes for each event when the curves and when all pictures are painted: a message posted in a frame comes after it.
WATCH = """
window.answers = [];
let begun = null, painted = {};
const draw = Plotly.react;
Plotly.react = (place, ...more) => draw(place, ...more).then((made) => {
  const of = begun;
  requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { painted[place] = performance.now() - of;
      if (Object.keys(painted).length === 2) { window.answers.push(painted); painted = {}; } };
    channel.port2.postMessage(0);
  });
  return made;
});
for (const kind of ["pointerup", "keydown"])
  document.addEventListener(kind, (event) => { begun = event.timeStamp; painted = {}; }, true);
"""


def make_page(path: Path, steps: int) -> Path:
    """The report of a run of 100 configurations."""
    from periodic_jax import analysis
    from periodic_jax.reporting import html
    from periodic_jax.storage.reader import open_run

    grid = SweepGrid.product(lr=np.geomspace(0.5, 2, 10).tolist(), weight_decay=np.geomspace(1e-4, 1e-2, 10).tolist())
    write_run(path, grid, steps)
    begun = time.perf_counter()
    dataset = open_run(path, flat=True)
    page = html.write(html.report_contents(dataset, analysis.analyze(dataset)), path)
    print(f"{len(grid)} configurations x {steps} steps: analysed and written in {time.perf_counter() - begun:.1f} s")
    return page


@contextmanager
def browser(folder: Path) -> Iterator[Any]:
    """Chromium without a window, driven by chromedriver."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile",
                     "--window-size=1300,1000", "--disable-dev-shm-usage"):  # fmt: skip
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def measure(page: Any, address: str, rounds: int, opened: int) -> dict[str, list[float]]:
    """Milliseconds of each opening, and of each click and key until the curves and until all pictures are painted."""
    from selenium.webdriver.common.keys import Keys

    took: dict[str, list[float]] = {name: [] for name in ("open", "click", "click_curves", "key", "key_curves")}
    for _ in range(opened):
        page.get("about:blank")
        page.get(address)
        # The script draws before the page counts as loaded; what follows the load is the first frame.
        took["open"].append(page.execute_async_script(
            "const done = arguments[0]; requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0))"
        ))  # fmt: skip
    page.execute_script(WATCH)
    cells = page.find_elements("css selector", "#map button")
    order = np.random.default_rng(0).permutation(len(cells))
    for k in range(rounds):
        for kind in ("click", "key"):
            if kind == "click":
                cells[order[k % len(order)]].click()
            else:
                focused = page.switch_to.active_element
                leftmost = int(focused.get_attribute("data-config")) < 10  # of the first of ten learning rates
                focused.send_keys(Keys.ARROW_RIGHT if leftmost else Keys.ARROW_LEFT)
            for _ in range(100):
                time.sleep(0.03)
                if answer := page.execute_script("return window.answers.pop()"):
                    break
            else:
                raise RuntimeError(f"no answer to a {kind}")
            if k >= 5:  # after the browser has compiled its script
                took[kind].append(max(answer.values()))
                took[f"{kind}_curves"].append(answer["curves"])
    return took


def main() -> None:
    """Write a run and its report, use it, print and save what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60, help="clicks and keys")
    parser.add_argument("--opened", type=int, default=7, help="times the page is opened")
    parser.add_argument("--page", default="", help="measure this page, of a grid of 10 x 10, and write none")
    parser.add_argument("--out", default=str(HERE / "results"), help="folder for the JSON file")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        page = Path(options.page).resolve() if options.page else make_page(Path(folder) / "run", options.steps)
        size = page.stat().st_size / 1e6
        with browser(Path(folder)) as driver:
            took = measure(driver, page.as_uri(), options.rounds + 5, options.opened)
    print(f"{size:.1f} MB")
    figures = {}
    for name, values in took.items():
        ends = np.quantile(values, [0.1, 0.9])
        figures[name] = {
            "median": round(statistics.median(values), 1),
            "p10": round(ends[0], 1),
            "p90": round(ends[1], 1),
        }
        print(f"{name:13s} median {figures[name]['median']:7.1f} ms   10 - 90 %: {ends[0]:.0f} - {ends[1]:.0f} ms")
    content = {"steps": options.steps, "mb": round(size, 2), "ms": figures}
    print(save("report_speed", content, Path(options.out)))


if __name__ == "__main__":
    main()
