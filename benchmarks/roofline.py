"""Which fraction of what the machine can do does a step reach, and where is the rest?

    python -m benchmarks.roofline [--size 32] [--width 8]

The floating-point operations and the least bytes of a configuration's step are counted from the network's shapes. Over
the measured rates of a large matrix product and a large copy they give the least time. The layers' own times are those
of each block, forward and backward, compiled by itself on one core (on CPU) or on the device. Where a layer's data stay
in the cache it can be faster than the bytes of memory allow.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.common import save, table
from periodic_jax.training import xla


class Layer(NamedTuple):
    """One convolution of a ConvNet with what follows it."""

    channels_in: int
    channels_out: int
    size: int
    pooled: bool

    def flops(self, batch: int) -> int:
        """Two for each multiplication: the product, and with respect to weights and, but in the first layer, inputs."""
        passes = 3 if self.pooled else 2
        return passes * 2 * 9 * self.channels_in * self.channels_out * self.size**2 * batch

    def least_bytes(self, batch: int, itemsize: int = 4) -> int:
        """Input read twice, its gradient written; output before normalisation written and read twice; what follows it
        and its gradient once each.
        """
        pixels = self.size**2 * batch
        out = self.channels_out * pixels
        after = out // 4 if self.pooled else out
        reads = (3 if self.pooled else 2) * self.channels_in * pixels
        return (reads + 3 * out + 2 * after) * itemsize


def layers_of(model: Any, size: int, channels: int) -> list[Layer]:
    """The convolutions in order, with the sides of their inputs."""
    found = []
    for features, pooled in model.stages():
        found.append(Layer(channels, features, size, pooled))
        channels, size = features, size // 2 if pooled else size
    return found


def median_seconds(function: Callable[..., Any], *args: Any, rounds: int = 15) -> float:
    """Of a compiled function, after a first call."""
    import jax

    compiled = jax.jit(function)
    jax.block_until_ready(compiled(*args))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def machine_rates() -> tuple[float, float]:
    """FLOP/s of a matrix product of 2048 x 2048 numbers; bytes/s, read and written, of copying 256 MB."""
    import jax
    import jax.numpy as jnp

    a = jax.random.normal(jax.random.key(0), (2048, 2048))
    x = jnp.ones(2**26, jnp.float32)
    product = 2 * 2048**3 / median_seconds(lambda a: a @ a, a)
    add, times = jax.jit(lambda x: x + 1, donate_argnums=0), []
    for _ in range(15):  # in place: fresh memory would be timed with its page faults
        started = time.perf_counter()
        x = jax.block_until_ready(add(x))
        times.append(time.perf_counter() - started)
    return product, 2 * x.nbytes / statistics.median(times)


def layer_seconds(layer: Layer, batch: int) -> float:
    """Forward and backward of one block by itself."""
    import jax

    from periodic_jax.ops import fused
    from periodic_jax.ops.layout import to_activations
    from periodic_jax.ops.patches import input_patches

    keys = jax.random.split(jax.random.key(1), 2)
    images = jax.random.normal(keys[0], (batch, layer.size, layer.size, layer.channels_in))
    kernel = jax.random.normal(keys[1], (3, 3, layer.channels_in, layer.channels_out))
    x = jax.jit(to_activations)(images)
    if not layer.pooled:
        patches = jax.jit(input_patches)(x)

        def first(patches: Any, kernel: Any) -> Any:
            z, back = jax.vjp(lambda k: fused.first_conv_bn_relu(patches, k, 1e-5)[0], kernel)
            return back(z)

        return median_seconds(first, patches, kernel)

    def block(x: Any, kernel: Any) -> Any:
        z, back = jax.vjp(lambda x, k: fused.conv_bn_relu(x, k, True, 1e-5)[0], x, kernel)
        return back(z)

    return median_seconds(block, x, kernel)


def step_seconds(model: Any, size: int, channels: int, batch: int, configs: int) -> float:
    """Of one configuration in a sweep with every step recorded."""
    from benchmarks.train_jax import arguments, build

    options = arguments().parse_args([])
    vars(options).update(width=model.width, size=size, channels=channels, configs=configs, batch=batch)
    sweep = build(options)
    steps, elapsed = 1, 0.0
    while elapsed < 1:
        steps *= 2
        started = time.perf_counter()
        for _ in sweep.chunks(steps, eval_every=None):
            pass
        elapsed = time.perf_counter() - started
    return elapsed / steps / configs


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--configs", type=int, default=4)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    xla.add_xla_flag("--xla_force_host_platform_device_count=1")
    xla.use_cores_as_devices()
    from periodic_jax import models

    with xla.precision(options.precision):
        channels = 1 if options.size == 8 else 3
        model = models.build("ConvNetSI", width=options.width)
        peak, bandwidth = machine_rates()
        rows, results = [], []
        for i, layer in enumerate(layers_of(model, options.size, channels)):
            flops, least = layer.flops(options.batch), layer.least_bytes(options.batch)
            bound = max(flops / peak, least / bandwidth)
            seconds = layer_seconds(layer, options.batch)
            results.append({**layer._asdict(), "flops": flops, "bytes": least, "bound_s": bound, "seconds": seconds})
            shape = f"{layer.channels_in} to {layer.channels_out}, {layer.size}x{layer.size}"
            rows.append(
                (f"conv{i}", shape, flops / 1e6, least / 1e6, bound * 1e3, seconds * 1e3, f"{bound / seconds:.0%}")
            )
        step = step_seconds(model, options.size, channels, options.batch, options.configs)
    total = {name: sum(layer[name] for layer in results) for name in ("flops", "bytes", "bound_s", "seconds")}
    fraction = total["bound_s"] / step
    rows.append(
        ("step", "", total["flops"] / 1e6, total["bytes"] / 1e6, total["bound_s"] * 1e3, step * 1e3, f"{fraction:.0%}")
    )
    print(f"matrix product {peak / 1e9:.0f} GFLOP/s, copy {bandwidth / 1e9:.1f} GB/s, on one device")
    print(table(("layer", "", "MFLOP", "MB", "least ms", "ms", "reached"), rows))
    found = {"peak_flops": peak, "bandwidth": bandwidth, "layers": results, "step_s": step, "fraction": fraction}
    print(save(f"roofline-{options.size}x{options.size}-width-{options.width}", found, options.out))


if __name__ == "__main__":
    main()
