"""Which layout a sweep runs in: the fastest of its device, timed once and remembered, if it fits the memory.

On CPU the loop over configurations is fastest at every size that was measured, so nothing is timed. On accelerators the
candidates are timed for a moment each on the sweep's own program, once for each network, batch and device.
"""

import contextlib
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from periodic_jax.core import files
from periodic_jax.training.vectorize import check_layout

SECONDS = 0.3  # of training in one timing
OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


def candidates(backend: str, configs_per_seed: int) -> list[str]:
    """Layouts worth timing on a backend.

    Args:
        backend: ``cpu``, ``gpu`` or ``tpu``.
        configs_per_seed: that a device trains together.

    Returns:
        One layout where there is nothing to find out.

    Example:
        >>> candidates("cpu", 8), candidates("gpu", 8)
        (['map'], ['vmap', 'map:4', 'map'])
    """
    if backend == "cpu":
        return ["map"]
    if configs_per_seed == 1:
        return ["vmap"]
    return ["vmap", *(f"map:{block}" for block in (16, 4) if block < configs_per_seed), "map"]


def smaller(layout: str, configs_per_seed: int) -> str | None:
    """The layout that batches half as many configurations, or None where they run one by one already.

    Example:
        >>> [smaller(layout, 6) for layout in ("vmap", "map:3", "map:2", "map")]
        ['map:3', 'map:1', 'map:1', None]
    """
    if layout in ("map", "map:1", "unroll"):
        return None
    block = configs_per_seed if layout == "vmap" else min(int(layout.partition(":")[2]), configs_per_seed)
    return f"map:{max(block // 2, 1)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether JAX failed for want of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def seconds_per_step(train: Callable[[int], None]) -> float:
    """Time of one step: of as many as fill about `SECONDS`, after one to warm up.

    Args:
        train: makes that many steps.
    """
    train(1)
    count = 1
    while True:
        started = time.perf_counter()
        train(count)
        elapsed = time.perf_counter() - started
        if elapsed > SECONDS / 3:
            return elapsed / count
        count *= 4


def fastest(layouts: Sequence[str], time_of: Callable[[str], float], about: object) -> str:
    """The layout that took the least time, now or when last asked the same.

    Args:
        layouts: the candidates.
        time_of: a layout's time; infinite where it does not fit the memory. Not called for a single candidate.
        about: what the answer depends on; its ``repr`` is remembered with it, below `core.files.cache_folder`.

    Returns:
        One of the candidates; the last where none fits.
    """
    if len(layouts) == 1:
        return layouts[0]
    key = hashlib.sha256(repr((about, list(layouts))).encode()).hexdigest()[:32]
    note = files.cache_folder() / "layouts" / f"{key}.json"
    if (known := _remembered(note)) in layouts:
        return known
    times = {layout: time_of(layout) for layout in layouts}
    best = min(times, key=lambda layout: times[layout])
    if math.isinf(times[best]):
        return layouts[-1]
    seconds = {layout: time for layout, time in times.items() if math.isfinite(time)}
    with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
        note.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(note, {"layout": best, "seconds": seconds, "of": repr(about)})
    return best


def _remembered(note: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return check_layout(str(json.loads(note.read_text())["layout"]))
    return ""  # not known, or unreadable: to be found out again
