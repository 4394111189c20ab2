"""How does the time of a configuration's step change with the number of configurations, the width, the batch and the
devices?

    python -m benchmarks.scaling [--size 8] [--width 4]

Milliseconds per configuration and step in the layout that the sweep chooses, every step recorded. One column at a time
varies; all points of a column take turns.
"""

import argparse
import os

from benchmarks.common import Contender, Worker, save, table, take_turns


def column(name: str, values: list[int], base: dict[str, int], options: argparse.Namespace) -> dict:
    """The points of one column."""
    contenders = {}
    for value in values:
        point = {**base, name: value}
        words = [word for key, number in point.items() for word in (f"--{key}", str(number))]
        contenders[str(value)] = Contender([Worker("train_jax", words)], point["configs"], options.seconds)
    found = take_turns(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    return found


def main() -> None:
    """Print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--columns", nargs="+", default=["configs", "width", "batch", "devices"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    channels = 1 if options.size == 8 else 3
    base = {"size": options.size, "channels": channels, "width": options.width, "configs": 16, "batch": 128}
    points = {
        "configs": [1, 2, 4, 16, 64],
        "width": [options.width, 2 * options.width, 4 * options.width],
        "batch": [32, 128, 512],
        "devices": list(range(1, (os.cpu_count() or 1) + 1)),
    }
    results = {}
    for name in options.columns:
        results[name] = column(name, points[name], base, options)
        rows = [(value, way["median"], way["min"], way["max"], way["layout"]) for value, way in results[name].items()]
        print(f"\n{options.size}x{options.size}, width {options.width} unless varied")
        print(table((name, "median", "min", "max", "layout"), rows), flush=True)
    print(save(f"scaling-{options.size}x{options.size}-width-{options.width}", results, options.out))


if __name__ == "__main__":
    main()
