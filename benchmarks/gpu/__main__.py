"""How right and how fast is a sweep on this accelerator, against PyTorch and against the machine's limits?

    python -m benchmarks.gpu [--minutes 9.5] [--out DIR] [--layouts vmap map:4] [--only speed bits]

Steps, the most important first: `correct`, `speed`, `auto`, `grids`, `roofline`, `bits`, `recording`, `memory`; at
32x32x3, batch 128, ConvNetSI, widths 8 and 32. What each finds is printed and written to the JSON file at once. A step
that fails is written down and left; when the time is over, so are those that were not reached. Times are of one
configuration's step, every step recorded here and nothing in PyTorch.

Programs are compiled one after the other, as they are timed on the device for it. PyTorch starts meanwhile, and waits
while JAX is timed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import steps
from benchmarks.gpu.bits import bits
from benchmarks.gpu.report import markdown
from benchmarks.gpu.session import SMOKE, Scale, Session

NAMES = ("correct", "speed", "auto", "grids", "roofline", "bits", "recording", "memory")


def plan(scale: Scale) -> list[tuple[str, Callable[[Session], Any]]]:
    """Names and steps in their order; the first word of a name is its kind."""
    found: list[tuple[str, Callable[[Session], Any]]] = [("correct", steps.correct)]
    for precision in scale.precisions:
        for width in scale.widths:
            step = partial(steps.speed, width=width, precision=precision)
            found.append((f"speed width {width} {precision}", step))
    for name, step in (("auto", steps.auto), ("grids", steps.grids)):
        found += [(f"{name} width {width}", partial(step, width=width)) for width in scale.widths]
    found += [("roofline", steps.roofline), ("bits", bits)]
    found += [(f"recording width {width}", partial(steps.recording, width=width)) for width in scale.widths]
    return [*found, ("memory", steps.memory)]


def main() -> None:
    """Print the lines and the tables, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.5, help="until the end, at most")
    parser.add_argument("--out", type=Path, help="folder for the JSON file")
    parser.add_argument("--layouts", nargs="+", default=[], help="to be timed; LAYOUT, or LAYOUT@STORAGE")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, help="these steps")
    parser.add_argument("--smoke", action="store_true", help="everything small, to see that it works")
    options = parser.parse_args()
    scale = SMOKE if options.smoke else Scale()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        session = Session(scale, options.minutes, Path(folder), options.out, options.layouts)
        try:
            for name, step in plan(scale):
                if name.split()[0] in options.only:
                    session.attempt(name, step)
        finally:
            session.end_jax()
            session.write()
    if session.file:
        print("", markdown(json.loads(session.file.read_text())), session.file, sep="\n")


if __name__ == "__main__":
    main()
