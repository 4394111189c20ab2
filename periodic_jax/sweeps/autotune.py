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
from typing import Any

import jax

from periodic_jax.core import files
from periodic_jax.training.vectorize import block_size, check_layout

# Channels of the first layer from which a few configurations fill an accelerator.
WIDE = {"cuda": 24, "rocm": 24, "tpu": 12}
SECONDS = 0.3  # of training in one timing
OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|[Oo]ut of memory")


def candidates(platform: str, configs_per_seed: int, width: int | None = None) -> list[str]:
    """Layouts worth timing on a platform, the one to take without timing first.

    Args:
        platform: one of `models.forms.PLATFORMS`.
        configs_per_seed: that a device trains together.
        width: of the network; None: unknown.

    Returns:
        One layout where there is nothing to find out.

    Example:
        >>> candidates("cpu", 8), candidates("cuda", 8, 16), candidates("tpu", 8, 16)
        (['map'], ['map:8', 'map:4'], ['map', 'map:2'])
    """
    if platform == "cpu":
        return ["map"]
    if configs_per_seed == 1:
        return ["map"]
    wide = width is not None and width >= WIDE[platform]
    if platform == "tpu":
        layouts = ["map", "map:2"] if wide else ["map:4", "map:8"]
    else:
        layouts = ["map:2", "map"] if wide else ["map:8", "map:4"]
    return [layout for layout in layouts if (block_size(layout) or 1) <= configs_per_seed] or ["vmap"]


def smaller(layout: str, configs_per_seed: int) -> str | None:
    """The layout that batches half as many configurations, or None where they run one by one already.

    Example:
        >>> [smaller(layout, 6) for layout in ("vmap", "map:3", "map:2", "map")]
        ['map:3', 'map:1', 'map:1', None]
    """
    if layout in ("map", "unroll") or block_size(layout) == 1:
        return None
    block = min(block_size(layout) or configs_per_seed, configs_per_seed)
    return f"map:{max(block // 2, 1)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether JAX failed for want of memory."""
    return isinstance(error, jax.errors.JaxRuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


def seconds_per_step(train: Callable[[int], None]) -> float:
    """Time of one step: of as many as fill about `SECONDS`, after one to warm up.

    What a chunk begins with is left out, such as the order of an epoch's images: a run has it once for hundreds of
    steps, and here it would be divided among a few.

    Args:
        train: makes that many steps.
    """

    def seconds(count: int) -> float:
        started = time.perf_counter()
        train(count)
        return time.perf_counter() - started

    train(1)
    shortest, count = seconds(1), 1
    while True:
        count *= 4
        more = seconds(count) - shortest
        if more > SECONDS / 3:
            return more / (count - 1)


def seconds_of(program: Callable[..., Any], *arguments: Any) -> float:
    """Time of one call of a compiled program, after one to compile."""
    jax.block_until_ready(program(*arguments))
    started = time.perf_counter()
    jax.block_until_ready(program(*arguments))
    return time.perf_counter() - started


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
