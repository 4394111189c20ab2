"""How many times faster is a grid here than the best way to train it in PyTorch?

    python -m benchmarks.vs_pytorch [--quick] [--sizes 8 32] [--widths 4 8] [--grids 1 4 16 64] [--python PYTHON ...]

Milliseconds per configuration and step of ConvNetSI, batch 128, float32. PyTorch in every way that a user would try:
eager and compiled, contiguous and channels-last, one process with all cores and two processes with one core each, all
configurations as one network of grouped convolutions (as HFTA does, arXiv 2102.02344) or stacked with torch.func, and
on a GPU as CUDA graphs. The ratio is against the best of them. All take turns, round after round. PyTorch records
nothing; here every step is recorded.
"""

import argparse
import os
import sys
from typing import NamedTuple

from benchmarks.common import Contender, Worker, ratio, save, table, take_turns


class Way(NamedTuple):
    """One way to train a grid in PyTorch."""

    options: list[str]  # of a worker
    processes: int = 1
    configs: int = 1  # that a worker trains side by side


def pytorch_ways(gpu: bool, configs: int, quick: bool) -> dict[str, Way]:
    """All ways that make sense for so many configurations, by name."""
    cores = 1 if gpu or configs == 1 else os.cpu_count() or 1
    one_by_one = ["eager", "compiled", *["cuda_graph"] * gpu]
    together = ["fused", *["fused_graph"] * gpu] if configs > 1 and not quick else []
    ways: dict[str, Way] = {}
    for variant in [*one_by_one, *together]:
        beside = configs if variant in together else 1
        for memory in ("", "channels-last"):
            name, options = f"{variant} {memory}".strip(), ["--variant", variant, *["--channels-last"] * bool(memory)]
            ways[name] = Way([*options, "--configs", str(beside)], 1, beside)
            share = 1 if beside == 1 else beside // cores
            if cores > 1 and (beside == 1 or beside == share * cores):
                alone = [*options, "--configs", str(share), "--threads", "1"]
                ways[f"{name}, {cores} processes"] = Way(alone, cores, share)
    if configs > 1 and not quick:
        ways["stacked"] = Way(["--variant", "stacked", "--configs", str(configs)], 1, configs)
    return ways


def compare(size: int, channels: int, width: int, configs: int, options: argparse.Namespace) -> dict:
    """All contenders at one network and grid size."""
    shape = ["--size", str(size), "--channels", str(channels), "--width", str(width), "--precision", options.precision]
    ours = [*shape, "--configs", str(configs), "--layout", options.layout]
    contenders = {}
    for python in [sys.executable, *options.python]:
        one = Contender([Worker("train_jax", ours, python=python)], configs, options.seconds)
        contenders[f"JAX {one.said['jax']}"] = one
    jax_lines = list(contenders)
    for name, way in pytorch_ways(options.gpu, configs, options.quick).items():
        threads = 1 if way.processes > 1 else None
        workers = [Worker("train_torch", [*shape, *way.options], threads=threads) for _ in range(way.processes)]
        try:
            contenders[name] = Contender(workers, way.configs, options.seconds)
        except RuntimeError as error:  # as when a variant needs more memory than there is
            print(f"{name}: {error}")
            for worker in workers:
                worker.close()
    results = take_turns(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    best = min((name for name in results if name not in jax_lines), key=lambda name: results[name]["median"])
    speed_up = {name: ratio(results[best], results[name]) for name in jax_lines}
    return {"size": size, "width": width, "configs": configs, "best": best, "speed_up": speed_up, "ways": results}


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32], help="8: one channel, as digits; else three")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--grids", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement")
    parser.add_argument("--python", nargs="+", default=[], help="interpreters with other versions of JAX, compared too")
    parser.add_argument("--quick", action="store_true", help="leave out grouped convolutions and torch.func")
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    import torch

    options.gpu = torch.cuda.is_available()
    results = []
    for size in options.sizes:
        for width in options.widths:
            for configs in options.grids:
                result = compare(size, 1 if size == 8 else 3, width, configs, options)
                results.append(result)
                ways = sorted(result["ways"].items(), key=lambda item: item[1]["median"])
                print(f"\n{size}x{size}, width {width}, {configs} configurations, ms per configuration and step")
                print(table(("", "median", "min", "max"), [(n, w["median"], w["min"], w["max"]) for n, w in ways]))
                for name, up in result["speed_up"].items():
                    print(f"{name}: {up['of_medians']:.2f} times the best of PyTorch ({result['best']})", flush=True)
    rows = []
    for r in results:
        for name, up in r["speed_up"].items():
            ours, best = r["ways"][name]["median"], r["ways"][r["best"]]["median"]
            span = f"{up['min']:.2f} - {up['max']:.2f}"
            images = f"{r['size']}x{r['size']}"
            rows.append((images, r["width"], r["configs"], name, ours, best, r["best"], up["of_medians"], span))
    print()
    header = "images", "width", "configs", "JAX", "periodic_jax", "PyTorch", "its best way", "speed-up", "of rounds"
    print(table(header, rows))
    print(save("vs_pytorch", results, options.out))


if __name__ == "__main__":
    main()
