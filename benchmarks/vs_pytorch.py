"""How many times faster is a grid here than the best way to train it in PyTorch?

    python -m benchmarks.vs_pytorch [--quick] [--sizes 8 32] [--widths 4 8] [--grids 1 4 16 64]

Milliseconds per configuration and step of ConvNetSI, batch 128, float32. PyTorch in every way that a user would try:
eager and compiled, contiguous and channels-last, one process with all cores and two processes with one core each, all
configurations stacked with torch.func, and on a GPU as CUDA graphs. The ratio is against the best of them. All take
turns, round after round. PyTorch records nothing; here every step is recorded.
"""

import argparse
import os

from benchmarks.common import Contender, Worker, ratio, save, table, take_turns


def pytorch_ways(gpu: bool, configs: int, quick: bool) -> dict[str, tuple[list[str], int]]:
    """Name -> (options of the worker, processes at once)."""
    cores = os.cpu_count() or 1
    ways: dict[str, tuple[list[str], int]] = {}
    variants = ["eager", "compiled", "cuda_graph"] if gpu else ["eager", "compiled"]
    for variant in variants:
        for memory in ("", "channels-last"):
            options = ["--variant", variant, *(["--channels-last"] if memory else [])]
            name = f"{variant} {memory}".strip()
            ways[name] = (options, 1)
            if not gpu and configs > 1 and cores > 1:
                ways[f"{name}, {cores} processes"] = ([*options, "--threads", "1"], cores)
    if configs > 1 and not quick:
        ways["stacked"] = (["--variant", "stacked", "--configs", str(configs)], 1)
    return ways


def compare(size: int, channels: int, width: int, configs: int, options: argparse.Namespace) -> dict:
    """All contenders at one network and grid size."""
    shape = ["--size", str(size), "--channels", str(channels), "--width", str(width), "--precision", options.precision]
    ours = ["--configs", str(configs), "--layout", options.layout]
    contenders = {"periodic_jax": Contender([Worker("train_jax", [*shape, *ours])], configs, options.seconds)}
    for name, (more, processes) in pytorch_ways(options.gpu, configs, options.quick).items():
        workers = [
            Worker("train_torch", [*shape, *more], threads=1 if processes > 1 else None) for _ in range(processes)
        ]
        stacked = configs if "stacked" in more else 1
        try:
            contenders[name] = Contender(workers, stacked, options.seconds)
        except RuntimeError as error:  # as when a variant needs more memory than there is
            print(f"{name}: {error}")
            for worker in workers:
                worker.close()
    results = take_turns(contenders, options.rounds)
    for contender in contenders.values():
        contender.close()
    best = min((name for name in results if name != "periodic_jax"), key=lambda name: results[name]["median"])
    speed_up = ratio(results[best], results["periodic_jax"])
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
    parser.add_argument("--quick", action="store_true", help="leave out torch.func")
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
                print(
                    f"{result['speed_up']['of_medians']:.2f} times the best of PyTorch ({result['best']})", flush=True
                )
    rows = []
    for r in results:
        ours, best, up = r["ways"]["periodic_jax"]["median"], r["ways"][r["best"]]["median"], r["speed_up"]
        span = f"{up['min']:.2f} - {up['max']:.2f}"
        rows.append(
            (f"{r['size']}x{r['size']}", r["width"], r["configs"], ours, best, r["best"], up["of_medians"], span)
        )
    print()
    print(
        table(("images", "width", "configs", "periodic_jax", "PyTorch", "its best way", "speed-up", "of rounds"), rows)
    )
    print(save("vs_pytorch", results, options.out))


if __name__ == "__main__":
    main()
