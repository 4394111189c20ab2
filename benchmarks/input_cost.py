"""What the input of a step costs against the step itself: gather, normalise, augment; first-layer patches apart.

    python benchmarks/input_cost.py --dataset cifar10 --data-dir DIR --out input_cost.json

Each round times every part once, one after the other, so that slow spells of the machine meet all of them alike. A part
runs as a loop on the device, as in a sweep, with its result written out each time. The step is that of one
configuration: with more of them to a seed the input costs the same and its share is smaller.
"""

import json
import platform
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from periodic_jax import Batch, SweepGrid, create_train_state, data, models, train_step

PARTS = {
    "gather + normalise": "input as it is",
    "gather + augment + normalise": "input with augmentation",
    "gather + augment + normalise + patches": "with the first layer's patches",
    "step": "the whole step with augmentation",
}


def main(
    dataset: str = "synthetic", data_dir: str = "", width: int = 32, batch_size: int = 128, rounds: int = 7,
    input_steps: int = 20, steps: int = 2, out: str = "",
) -> None:  # fmt: skip
    """Print the table, and write it as JSON where --out is given.

    Args:
        dataset: as in periodic-jax sweep.
        data_dir: as in periodic-jax sweep.
        width: channels of ConvNetSI's first layer.
        batch_size: images in a mini-batch.
        rounds: how often each part is timed.
        input_steps: mini-batches in one timing of an input part.
        steps: steps in one timing of the step.
        out: JSON file to write.
    """
    images = data.load(dataset, data_dir=data_dir or None)
    device, model = data.to_device(images), models.build("ConvNetSI", width=width)
    lengths = dict.fromkeys(PARTS, input_steps) | {"step": steps}
    programs = compiled(model, device, images, batch_size, lengths)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    for _ in range(rounds):
        for name, run in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append((time.perf_counter() - started) / lengths[name] * 1e3)
    step = np.array(times["step"])
    table = {
        name: {
            "ms": round(float(np.median(values)), 4),
            "ms_smallest": round(min(values), 4),
            "ms_largest": round(max(values), 4),
            "percent_of_step": round(float(np.median(np.array(values) / step)) * 100, 3),
        }
        for name, values in times.items()
    }
    print(f"{dataset} ({images.source}), width {width}, mini-batches of {batch_size}; {rounds} rounds")
    print(f"{'':40s}{'median ms':>10s}{'from':>10s}{'to':>10s}{'% of step':>11s}")
    for name, row in table.items():
        print(
            f"{name:40s}{row['ms']:10.3f}{row['ms_smallest']:10.3f}{row['ms_largest']:10.3f}{row['percent_of_step']:11.2f}"
        )
    if out:
        settings = {"dataset": dataset, "width": width, "batch_size": batch_size, "rounds": rounds}
        record = {"settings": settings, "parts": table, "about": PARTS, "machine": machine()}
        Path(out).write_text(json.dumps(record, indent=2) + "\n")


def compiled(
    model: Any, device: data.DeviceData, images: data.Dataset, batch_size: int, lengths: dict[str, int]
) -> dict[str, Callable[[], Any]]:
    """The parts as compiled loops over mini-batches."""
    rows = jnp.asarray(np.random.default_rng(0).integers(0, len(images.images), (max(lengths.values()), batch_size)))
    hparams = jax.tree.map(
        lambda h: jnp.asarray(h[0], jnp.float32), SweepGrid.product(lr=0.1, weight_decay=1e-3).hparams()
    )
    shape = jnp.zeros((batch_size, *images.image_shape))
    state = create_train_state(model, model.labels(), jax.random.key(0), shape)

    def key(t: Any) -> Any:
        return data.augmentation_key(jnp.uint32(0), t)

    def plain(carry: Any, given: Any, t: Any) -> Any:
        return data.mini_batch(given, rows[t])

    def augmented(carry: Any, given: Any, t: Any) -> Any:
        return data.mini_batch(given, rows[t], key(t))

    def prepared(carry: Any, given: Any, t: Any) -> Any:
        return model.prepare(data.mini_batch(given, rows[t], key(t)))

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


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    first = jax.devices()[0]
    return {
        "machine": platform.machine(), "processor": processor(), "backend": first.platform,
        "device": first.device_kind, "devices": jax.device_count(), "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
    }  # fmt: skip


def processor() -> str:
    """The processor's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    tyro.cli(main)
