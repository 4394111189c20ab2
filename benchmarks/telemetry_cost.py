"""What does recording every step cost?

    python -m benchmarks.telemetry_cost [--shapes 8:4 8:8 32:8]

Milliseconds per configuration and step of ten configurations: without any measurement (the optimiser's chain measures
nothing and only the loss is kept), with all quantities of every step, and with those of every layer too.
"""

import argparse

from benchmarks.common import Contender, Worker, ratio, save, table, take_turns

WAYS = {"nothing": "loss only", "steps": "every step", "layers": "every step and layer"}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["8:4", "8:8", "32:8"], help="size:width")
    parser.add_argument("--configs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    results, rows = {}, []
    for shape in options.shapes:
        size, width = shape.split(":")
        base = ["--size", size, "--channels", "1" if size == "8" else "3", "--width", width]
        base += ["--configs", str(options.configs)]
        contenders = {
            way: Contender([Worker("train_jax", [*base, "--record", way])], options.configs, options.seconds)
            for way in WAYS
        }
        results[shape] = take_turns(contenders, options.rounds)
        for contender in contenders.values():
            contender.close()
        for way, said in WAYS.items():
            found = results[shape][way]
            more = ratio(found, results[shape]["nothing"])
            rows.append(
                (f"{size}x{size}, width {width}", said, found["median"], f"{100 * (more['of_medians'] - 1):+.1f} %")
            )
    print(table(("network", "recorded", "ms per config-step", "more"), rows))
    print(save("telemetry_cost", results, options.out))


if __name__ == "__main__":
    main()
