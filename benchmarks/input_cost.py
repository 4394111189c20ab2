"""What the input of a step costs against the step itself: gather, normalise, augment; first-layer patches apart.

    python -m benchmarks.input_cost [--dataset cifar10 --data-dir DIR] [--width 32]

Each round times every part once, one after the other, so that slow spells of the machine meet all of them alike. A part
runs as a loop on the device, as in a sweep, with its result written out each time. The step is that of one
configuration: with more of them to a seed the input costs the same and its share is smaller.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import ratio, save, summary, table
from periodic_jax import Batch, SweepGrid, create_train_state, data, models, train_step
from periodic_jax.training import input_pipeline

INPUT = ("gather, normalise", "gather, augment, normalise", "gather, augment, normalise, patches")
STEP = "whole step, with augmentation"


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", help="as in periodic-jax sweep")
    parser.add_argument("--data-dir", help="as in periodic-jax sweep")
    parser.add_argument("--width", type=int, default=32, help="channels of ConvNetSI's first layer")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--input-steps", type=int, default=20, help="mini-batches in one timing of an input part")
    parser.add_argument("--steps", type=int, default=2, help="steps in one timing of the step")
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()

    images = data.load(options.dataset, data_dir=options.data_dir)
    device, model = (
        input_pipeline.to_device(images),
        models.build("ConvNetSI", width=options.width, num_classes=images.num_classes),
    )
    lengths = dict.fromkeys(INPUT, options.input_steps) | {STEP: options.steps}
    programs = compiled(model, device, images, options.batch_size, lengths)
    times: dict[str, list[float]] = {name: [] for name in lengths}
    for _ in range(options.rounds):
        for name, run in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - started) / lengths[name] * 1e3)
    parts: dict[str, dict[str, Any]] = {name: {**summary(rounds), "rounds": rounds} for name, rounds in times.items()}
    shares = {name: ratio(part, parts[STEP]) for name, part in parts.items()}
    header = ["part", "ms", "min", "max", "% of the step", "min", "max"]
    rows = [
        [name, *(parts[name][k] for k in ("median", "min", "max")), *(100 * share for share in shares[name].values())]
        for name in parts
    ]
    print(f"{options.dataset}, {images.image_shape}, width {options.width}, mini-batches of {options.batch_size}")
    print(table(header, rows))
    print(save("input_cost", {"options": vars(options), "parts": parts, "shares": shares}, options.out))


def compiled(
    model: Any, device: input_pipeline.DeviceData, images: data.Dataset, batch_size: int, lengths: dict[str, int]
) -> dict[str, Callable[[], Any]]:
    """The parts as compiled loops over mini-batches."""
    rows = jnp.asarray(np.random.default_rng(0).integers(0, len(images.images), (max(lengths.values()), batch_size)))
    hparams = jax.tree.map(
        lambda h: jnp.asarray(h[0], jnp.float32), SweepGrid.product(lr=0.1, weight_decay=1e-3).hparams()
    )
    shape = jnp.zeros((batch_size, *images.image_shape))
    state = create_train_state(model, model.labels(), jax.random.key(0), shape)

    def key(t: Any) -> Any:
        return input_pipeline.augmentation_key(jnp.uint32(0), t)

    def plain(carry: Any, given: Any, t: Any) -> Any:
        return input_pipeline.mini_batch(given, rows[t])

    def augmented(carry: Any, given: Any, t: Any) -> Any:
        return input_pipeline.mini_batch(given, rows[t], key(t))

    def prepared(carry: Any, given: Any, t: Any) -> Any:
        return model.prepare(input_pipeline.mini_batch(given, rows[t], key(t)))

    def step(state: Any, given: Any, t: Any) -> Any:
        batch = Batch(prepared(None, given, t), given.labels[rows[t]])
        return train_step(state, hparams, batch)[0]

    programs = {}
    for (name, length), body in zip(lengths.items(), (plain, augmented, prepared, step), strict=True):
        start = state if body is step else jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(body, None, device, jnp.int32(0))
        )  # fmt: skip

        def loop(start: Any, given: Any, count: Any, body: Any = body) -> Any:
            return jax.lax.fori_loop(0, count, lambda t, carry: body(carry, given, t), start)

        program = jax.jit(loop).lower(start, device, jnp.int32(length)).compile()
        programs[name] = lambda program=program, start=start, length=length: program(start, device, jnp.int32(length))
        jax.block_until_ready(programs[name]())
    return programs


if __name__ == "__main__":
    main()
