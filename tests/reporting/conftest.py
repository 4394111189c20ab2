"""A run and its report."""

import pytest
from helpers.reported_runs import GRID, shown_of, telemetry
from helpers.synthetic import open_flat

from periodic_jax.reporting import html
from periodic_jax.reporting.html import contents


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose name is hostile, its Dataset and what the page shows."""
    folder = tmp_path_factory.mktemp("report") / "<img src=x onerror=alert(1)> <script>alert(2)<"
    dataset = open_flat(folder, GRID, telemetry(GRID), model="</script><script>alert(3)</script>&amp;")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contents, "MOST_BUCKETS", 300)  # so that not every step is held
        shown = shown_of(dataset)
    return dataset, shown, html.write(shown, folder)
