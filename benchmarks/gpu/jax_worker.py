"""Worker: sweeps in one process, each built, trained and dropped when asked; an error is an answer, not the end.

Each line of input is a request in JSON, ``{"do": ..., ...}``; each is answered by one line.
"""

import json
import sys
import time
from typing import Any

from benchmarks.train_jax import arguments, build, train
from periodic_jax.training import xla


class Sweeps:
    """What the requests are made of: one method for each."""

    def __init__(self) -> None:
        self._sweeps: dict[str, tuple[Any, str]] = {}

    def about(self, configs: int, width: int) -> dict[str, Any]:
        """The platform, and layouts worth timing there."""
        import jax

        from periodic_jax.models import forms
        from periodic_jax.sweeps import autotune

        layouts = list(autotune.candidates(forms.here(), configs, width))
        return {"platform": forms.here(), "device": jax.devices()[0].device_kind, "layouts": layouts}

    def build(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """Compile a sweep and make a step."""
        chosen = arguments().parse_args([])
        vars(chosen).update(options)
        started = time.perf_counter()
        with xla.precision(chosen.precision):
            sweep = build(chosen)
            train(sweep, 1)
        self._sweeps[name] = sweep, chosen.precision
        return {"start_up_s": round(time.perf_counter() - started, 2), "layout": sweep.layout}

    def train(self, name: str, steps: int) -> dict[str, Any]:
        """Some steps of a sweep."""
        sweep, precision = self._sweeps[name]
        started = time.perf_counter()
        with xla.precision(precision):
            train(sweep, steps)
        return {"seconds": time.perf_counter() - started}

    def drop(self, name: str) -> dict[str, Any]:
        """Forget a sweep."""
        self._sweeps.pop(name, None)
        return {}

    def limits(self, precision: str, matrix: int, copied: int) -> dict[str, Any]:
        """FLOP/s of a large product in a precision, of numbers of 16 bits for ``bf16``; bytes/s of a large copy."""
        import jax
        import jax.numpy as jnp

        from benchmarks.roofline import median_seconds

        with xla.precision(precision):
            dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
            a = jax.random.normal(jax.random.key(0), (matrix, matrix)).astype(dtype)
            peak = 2 * matrix**3 / median_seconds(lambda a: a @ a, a)
            x = jnp.ones(copied, jnp.float32)
            return {"peak_flops": peak, "bandwidth": 2 * x.nbytes / median_seconds(lambda x: x + 1, x)}

    def counts(self, width: int, size: int, channels: int, batch: int) -> dict[str, Any]:
        """Operations, and least bytes of numbers of 32 bits, of a configuration's step."""
        from benchmarks.roofline import layers_of
        from periodic_jax import models

        layers = layers_of(models.build("ConvNetSI", width=width), size, channels)
        return {"flops": sum(k.flops(batch) for k in layers), "bytes": sum(k.least_bytes(batch) for k in layers)}


def main() -> None:
    """Answer requests until there are no more."""
    xla.use_cores_as_devices()
    sweeps = Sweeps()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(sweeps, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
