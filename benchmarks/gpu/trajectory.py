"""Worker: the first steps of two configurations in some precisions, all from the same float32 weights. A precision is
``PRECISION`` or ``PRECISION@STORAGE``.

One line of JSON for each precision, with what was recorded of each step or the error. The weights are drawn and written
by the process with ``--write``; others wait for them.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.train_jax import images_of
from periodic_jax.training import xla

NAMES = ("loss", "weight_norm", "effective_grad_norm")
CONFIGURATIONS = ({"lr": 0.01, "weight_decay": 1e-3}, {"lr": 0.1, "weight_decay": 1e-2})


def sweep_of(options: argparse.Namespace, precision: str, storage: str = "") -> Any:
    """Two configurations, not compiled yet."""
    import jax
    import jax.numpy as jnp

    from periodic_jax import SweepGrid, models
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.training.spec import TrainingSpec

    dtype = jnp.float64 if precision == "float64" else jnp.float32
    layout = "map" if jax.default_backend() == "cpu" else "vmap"
    return Sweep(
        models.build("ConvNetSI", width=options.width, param_dtype=dtype, storage=storage or "float32"),
        images_of(options.size, options.channels), SweepGrid.of(CONFIGURATIONS), TrainingSpec(batch_size=options.batch),
        layout=layout, capacity=options.steps, devices=jax.devices()[:1],
    )  # fmt: skip


def initial_states(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Float32 states of step 0."""
    with xla.precision("float32"):
        sweep = sweep_of(options, "float32")
        return sweep.placement.fetch(sweep._initialise(sweep.initial_seeds))  # without the programs of the steps


def recorded(options: argparse.Namespace, name: str, states: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the steps from those states recorded: name -> (configurations, steps)."""
    precision, _, storage = name.partition("@")
    with xla.precision(precision):
        sweep = sweep_of(options, precision, storage)
        wide = np.float64 if precision == "float64" else np.float32
        cast = {name: a.astype(wide) if a.dtype.kind == "f" else a for name, a in states.items()}
        sweep.restore(cast, 0)
        chunks = list(sweep.chunks(options.steps, eval_every=None))
    return {name: np.concatenate([c.telemetry[name] for c in chunks], 1).astype(float).tolist() for name in NAMES}


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("size", "channels", "width", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--precisions", nargs="+", required=True)
    parser.add_argument("--states", type=Path, required=True, help="file of the weights")
    parser.add_argument("--write", action="store_true", help="draw the weights")
    options = parser.parse_args()
    if options.write:
        partial = options.states.with_suffix(".partial.npz")
        np.savez(partial, **initial_states(options))  # pyright: ignore[reportArgumentType]
        os.replace(partial, options.states)
    else:
        import jax

        jax.devices()  # starts while the weights are drawn
        while not options.states.exists():
            time.sleep(0.1)
    with np.load(options.states) as file:
        states = dict(file)
    for precision in options.precisions:
        try:
            answer = {"precision": precision, "recorded": recorded(options, precision, states)}
        except Exception as error:
            answer = {"precision": precision, "error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
