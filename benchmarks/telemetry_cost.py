"""What does recording every step cost?

    python -m benchmarks.telemetry_cost [--shapes 8:4 8:8 32:8] [--optimizer adamw]

Milliseconds per configuration and step of ten configurations: without any measurement (the optimiser's chain measures
nothing and only the loss is kept), with all quantities of every step, and with those of every layer too.

Where a process's memory happens to lie matters by several percent. So all are started anew several times, and figures
are medians over the starts.
"""

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common import Contender, Worker, ratio, save, summary, table, take_turns

WAYS = {"nothing": "loss only", "steps": "every step", "layers": "every step and layer"}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8:4", "8:8", "32:8"], help="size:width")
    parser.add_argument("--configs", type=int, default=10)
    parser.add_argument("--optimizer", default="sgd", help="see periodic-jax sweep")
    parser.add_argument("--starts", type=int, default=7, help="how often all are started")
    parser.add_argument("--rounds", type=int, default=3, help="of each start")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    results, rows = {}, []
    for shape in options.shapes:
        size, width = shape.split(":")
        base = ["--size", size, "--channels", "1" if size == "8" else "3", "--width", width]
        base += ["--configs", str(options.configs), "--optimizer", options.optimizer]
        with tempfile.TemporaryDirectory() as cache:  # of compiled programs
            os.environ.update(JAX_COMPILATION_CACHE_DIR=cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.5")
            starts = [_start(base, options) for _ in range(options.starts)]
        results[shape] = {way: _together([start[way] for start in starts]) for way in WAYS}
        for way, said in WAYS.items():
            found = results[shape][way]
            more = ratio(found, results[shape]["nothing"])
            cells = [f"{100 * (more[of] - 1):+.1f} %" for of in ("of_medians", "min", "max")]
            rows.append((f"{size}x{size}, width {width}", said, found["median"], cells[0], " to ".join(cells[1:])))
    print(table(("network", "recorded", "ms per config-step", "more", "of starts"), rows))
    name = "telemetry_cost" if options.optimizer == "sgd" else f"telemetry_cost-{options.optimizer}"
    print(save(name, results, options.out))


def _start(base: Sequence[str], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    contenders = {
        way: Contender([Worker("train_jax", [*base, "--record", way])], options.configs, options.seconds)
        for way in WAYS
    }
    found = take_turns(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    return found


def _together(starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One way's figures: the median of each start."""
    medians = [start["median"] for start in starts]
    return {**starts[0], **summary(medians), "rounds": medians}


if __name__ == "__main__":
    main()
