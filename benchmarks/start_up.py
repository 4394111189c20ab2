"""How long does a user wait before training starts?

    python -m benchmarks.start_up

Wall time of whole processes: ``import periodic_jax``, the demo's grid up to its first steps with nothing compiled, and
the same again with the compiled programs that the first start left on disk.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.common import save, summary, table

START = """
from periodic_jax import options, cli, runtime
cli.main(["sweep", "--lr", "0.01", "0.03", "0.1", "0.3", "1", "--weight-decay", "1e-3", "1e-2",
          "--steps", "16", "--out", __import__("sys").argv[1]])
"""
PROGRAMS = {"import": "import periodic_jax", "first start": START, "second start": START}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    figures: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for k in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "XDG_CACHE_HOME": folder, "MPLBACKEND": "Agg"}
            for name, program in PROGRAMS.items():
                run = os.path.join(folder, f"{name}-{k}".replace(" ", "-"))
                started = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", program, run], env=environment, capture_output=True, text=True
                )
                if done.returncode:
                    raise RuntimeError(done.stderr)
                figures[name].append(time.perf_counter() - started)
    results = {name: {**summary(values), "rounds": values} for name, values in figures.items()}
    print(table(("", "median s", "min", "max"), [(n, r["median"], r["min"], r["max"]) for n, r in results.items()]))
    print(save("start_up", results, options.out))


if __name__ == "__main__":
    main()
