"""Worker: trains a grid with `periodic_jax.Sweep`, recording included, as ``periodic-jax sweep`` does."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from benchmarks.common import serve
from periodic_jax.training import xla


def images_of(size: int, channels: int, count: int = 1500):
    """Random images of that shape: the time of a step does not depend on what they show."""
    from periodic_jax.data import Dataset

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, size, size, channels), np.uint8)
    labels = rng.integers(0, 10, count, np.int32)
    return Dataset("random", images, labels, images[:256], labels[:256], 10, (0.5,) * channels, (0.25,) * channels)


def build(options: argparse.Namespace):
    """The sweep to be timed."""
    import jax.numpy as jnp

    from periodic_jax import SweepGrid, models
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.training.spec import TrainingSpec

    dtype = jnp.float64 if options.precision == "float64" else jnp.float32
    more = {"storage": options.storage} if options.storage else {}
    model = models.build(options.model, width=options.width, param_dtype=dtype, **more)
    rates = list(np.geomspace(1e-3, 1e-1, options.configs))
    with _measuring_nothing() if options.record == "nothing" else contextlib.nullcontext():
        return Sweep(
            model, images_of(options.size, options.channels), SweepGrid.product(lr=rates, weight_decay=1e-3),
            TrainingSpec(
                batch_size=options.batch, per_layer=options.record == "layers",
                optimizer=options.optimizer,
            ),
            layout=options.layout, capacity=options.capacity, deterministic=options.deterministic,
        ).compile()  # fmt: skip


@contextlib.contextmanager
def _measuring_nothing() -> Iterator[None]:
    """Take the measurements out of the optimiser's chain: the step as it would be without recording."""
    import jax
    import jax.numpy as jnp

    from periodic_jax.training import tracking

    measure = tracking.measure

    def nothing(params: Any, *rest: Any) -> Any:
        shapes = jax.eval_shape(lambda *some: measure(*some, *rest[2:]), params, *rest[:2])
        return jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    tracking.measure = nothing
    try:
        yield
    finally:
        tracking.measure = measure


def train(sweep: Any, steps: int) -> None:
    """So many steps, chunk by chunk, each fetched as a run would."""
    for _ in sweep.chunks(steps, eval_every=None):
        pass


def arguments() -> argparse.ArgumentParser:
    """What is to be trained."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (
        ("size", 8),
        ("channels", 1),
        ("width", 4),
        ("configs", 1),
        ("batch", 128),
        ("capacity", 1000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("model", "ConvNetSI"), ("layout", "auto"), ("precision", "float32")):
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--storage", help="of what is kept for the backward pass, where the network has a choice")
    parser.add_argument("--deterministic", action="store_true", help="see periodic-jax sweep")
    parser.add_argument("--optimizer", default="sgd", help="see periodic-jax sweep")
    parser.add_argument("--record", choices=("steps", "layers", "nothing"), default="steps")
    parser.add_argument("--devices", type=int, default=0, help="cores to spread over; 0: all")
    return parser


def main() -> None:
    """Serve steps of a sweep."""
    options = arguments().parse_args()
    if options.devices:
        xla.add_xla_flag(f"--xla_force_host_platform_device_count={options.devices}")
    xla.use_cores_as_devices()
    with xla.precision(options.precision):
        started = time.perf_counter()
        sweep = build(options)
        train(sweep, 1)
        said = {"start_up_s": round(time.perf_counter() - started, 2), "layout": sweep.layout}
        serve(partial(train, sweep), jax=metadata.version("jax"), **said)


if __name__ == "__main__":
    main()
