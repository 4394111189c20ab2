"""What does a step take on an accelerator that is not here, as far as its compiled program tells?

    python -m benchmarks.aot --device h100 --width 32 --configs 16 [--layout map:2] [--plain]

The chunk program of a sweep is compiled for the device (`periodic_jax.sweeps.compilation`, with the extra ``aot``) and
counted. Bytes, operations and launches over the rates of the data sheet give the least time: compiled and counted, not
measured. With ``--plain`` a network of `flax.linen` layers of the same sizes goes through the same train step.
"""

import argparse
import time
from typing import Any

from benchmarks.common import save, table
from periodic_jax.core.errors import PeriodicJaxError
from periodic_jax.sweeps import compilation
from periodic_jax.sweeps.targets import TARGETS, Target
from periodic_jax.sweeps.traffic import Cost
from periodic_jax.training import xla

HEADER = ("", "MB", "launches", "GFLOP", "least us", "Mcycles")


def network(options: argparse.Namespace) -> Any:
    """The network that the options describe."""
    from periodic_jax import models

    model = models.build(options.model, width=options.width, storage=options.storage)
    if not options.plain:
        return model
    if options.storage != "float32":
        raise SystemExit(f"--storage: {options.storage} with --plain, whose layers have none; leave one of them out")
    from benchmarks.plain_networks import plain_network

    try:
        return plain_network(model)
    except TypeError as error:
        raise SystemExit(f"--plain: {error}") from None


def layouts(options: argparse.Namespace, target: Target) -> list[str]:
    """What to compile."""
    from periodic_jax.sweeps import autotune
    from periodic_jax.training.vectorize import check_layout

    tried = ["map", "vmap"] if options.plain else autotune.candidates(target.platform, options.configs, options.width)
    return [check_layout(layout) for layout in options.layout or tried]


def row(name: str, cost: Cost, target: Target, precision: str) -> tuple[Any, ...]:
    """A line of the table; a GPU has no estimated cycles."""
    microseconds = 1e6 * target.seconds(cost, precision)
    figures = name, cost.bytes / 1e6, cost.launches, cost.flops / 1e9, microseconds
    return figures if target.gpu else (*figures, cost.cycles / 1e6)


def figures(chunk: compilation.CompiledChunk, precision: str) -> dict[str, Any]:
    """What goes into the JSON file: of a configuration and step."""

    def of(cost: Cost) -> dict[str, Any]:
        seconds, by_cycles = chunk.target.seconds(cost, precision), chunk.target.cycle_seconds(cost)
        return {**vars(cost), "least_s": seconds, "cycles_s": by_cycles}

    configs = chunk.workload.seeds * chunk.workload.configs
    layers = {name: of(cost * (1 / configs)) for name, cost in chunk.cost.step.items()}
    once, memory = vars(chunk.cost.outside), chunk.temporary_bytes
    return {"step": of(chunk.step_cost), "layers": layers, "once_in_a_chunk": once, "temporary_bytes": memory}


def describe(name: str, chunk: compilation.CompiledChunk, precision: str, seconds: float) -> str:
    """The table of one program, with a line below."""
    configs = chunk.workload.seeds * chunk.workload.configs
    costs = {layer: chunk.cost.step[layer] * (1 / configs) for layer in sorted(chunk.cost.step)}
    rows = [row(layer, cost, chunk.target, precision) for layer, cost in [*costs.items(), ("step", chunk.step_cost)]]
    by_cycles = chunk.target.cycle_seconds(chunk.step_cost)
    memory = f"temporaries {chunk.temporary_bytes / 1e6:.0f} MB for {configs} configurations"
    cycles = f"; {1e6 * by_cycles:.0f} us by XLA's estimated cycles" if by_cycles else ""
    once = f"{chunk.cost.outside.bytes / 1e6:.0f} MB once in a chunk"
    return f"{name}: {memory}, {once}{cycles}; compiled in {seconds:.0f} s\n{table(HEADER[: len(rows[0])], rows)}\n"


def main() -> None:
    """Print the tables and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=TARGETS, default="h100")
    for name, default in (("width", 32), ("configs", 16), ("size", 32), ("batch", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="ConvNetSI")
    parser.add_argument(
        "--layout", nargs="+", help="one or more; default: those that a sweep tries, or map and vmap with --plain"
    )
    parser.add_argument("--precision", choices=("tf32", "bf16", "float32"), help="default: tf32, bf16 on TPU")
    parser.add_argument("--storage", default="float32", choices=("float32", "bf16"), help="of activations")
    parser.add_argument("--plain", action="store_true", help="flax.linen layers instead")
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    if min(options.configs, options.size, options.batch) < 1:
        parser.error("--configs, --size and --batch are numbers from 1 on")
    try:
        compile_all(options)
    except PeriodicJaxError as error:
        raise SystemExit(str(error)) from None


def compile_all(options: argparse.Namespace) -> None:
    """Compile, print and write what the options ask for."""
    target = TARGETS[options.device]
    compilation.prepare_jax(target)
    precision = options.precision or ("tf32" if target.gpu else "bf16")
    print(f"{target.title}, {precision} products: compiled and counted, of one configuration and step\n")
    results: dict[str, Any] = {"options": vars(options), "precision": precision, "programs": {}}
    with xla.precision(precision):
        from periodic_jax.training.spec import TrainingSpec

        model, spec = network(options), TrainingSpec(options.batch)
        shape = options.size, options.size, 1 if options.size == 8 else 3
        for layout in layouts(options, target):
            started = time.perf_counter()
            workload = compilation.Workload(model, spec, shape, layout, options.configs)
            chunk = compilation.compile_chunk(workload, target)
            name = f"{'plain flax' if options.plain else options.model} width {options.width}, {layout}"
            name += ", activations in bf16" if options.storage == "bf16" else ""
            print(describe(name, chunk, precision, time.perf_counter() - started), flush=True)
            results["programs"][layout] = figures(chunk, precision)
    kind = f"{'plain-' if options.plain else ''}{options.model}-{options.size}x{options.size}-width-{options.width}"
    kind += "-bf16" if options.storage == "bf16" else ""
    print(save(f"aot-{target.name}-{kind.lower()}", results, options.out))


if __name__ == "__main__":
    main()
