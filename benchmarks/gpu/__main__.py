"""How right and how fast is a sweep on this accelerator, against PyTorch and against the machine's limits?

    python -m benchmarks.gpu [--minutes 9.5] [--out DIR] [--layouts vmap map:4] [--only speed bits]

Steps, the most important first: `correct`, `speed`, `grids`, `roofline`, `bits`, `deterministic`, `memory`,
`recording`, `auto`; at 32x32x3, batch 128, ConvNetSI, widths 8 and 32. What each finds is printed and written to the
JSON file at once. A step that fails is written down and left; when the time is over, so are those that were not
reached. Times are of one configuration's step, every step recorded here and nothing in PyTorch.

Programs are compiled one after the other, as they are timed on the device for it. PyTorch starts meanwhile, and waits
while JAX is timed.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu import steps
from benchmarks.gpu.bits import bits
from benchmarks.gpu.report import markdown
from benchmarks.gpu.session import SMOKE, Scale, Session

NAMES = ("correct", "speed", "grids", "roofline", "bits", "deterministic", "memory", "recording", "auto")
# Seconds to leave for later steps: a program more is compiled only with more than that left.
RESERVES = (260, 150, 130, 100)  # of `speed`, in its order
GRIDS_RESERVE = 90


class Step(NamedTuple):
    """A step by its name, the first word of which is its kind."""

    name: str
    find: Callable[[Session], Any]
    reserve: float = 0


def plan(scale: Scale) -> list[Step]:
    """The steps in their order."""

    def by_width(kind: str, step: Callable[..., Any], reserve: float = 0) -> list[Step]:
        return [Step(f"{kind} width {width}", partial(step, width=width), reserve) for width in scale.widths]

    found = [Step("correct", steps.correct)]
    reserves = iter(RESERVES)
    for precision in scale.precisions:
        for step in by_width("speed", partial(steps.speed, precision=precision)):
            found.append(Step(f"{step.name} {precision}", step.find, next(reserves)))
    found += by_width("grids", steps.grids, GRIDS_RESERVE)
    found += [Step("roofline", steps.roofline), Step("bits", bits)]
    found += by_width("deterministic", steps.deterministic)
    found += [Step("memory", steps.memory), *by_width("recording", steps.recording)]
    return [*found, *by_width("auto", steps.auto)]


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
            for name, step, reserve in plan(scale):
                if name.split()[0] in options.only:
                    session.attempt(name, step, reserve)
        finally:
            session.end_jax()
            session.write()
    if session.file:
        print("", markdown(json.loads(session.file.read_text())), session.file, sep="\n")


if __name__ == "__main__":
    main()
