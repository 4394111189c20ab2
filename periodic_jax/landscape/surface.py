"""The loss landscape of many configurations on the same mini-batches: products with curvature matrices, gradients.

The mini-batches are shared over the devices; each device makes the part of a product that its own give, of all
configurations, and the parts are added outside. No device waits for another inside a program.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from periodic_jax.landscape.gradient_noise import GradientNoise, Moments, gradient_noise, merge_moments, with_gradient
from periodic_jax.landscape.hvp import PRODUCTS, loss_and_gradient, tangential
from periodic_jax.landscape.objective import Batches, chosen_leaves, to_vector
from periodic_jax.models.labels import Labels
from periodic_jax.training.input_pipeline import normalise
from periodic_jax.training.state import TrainState
from periodic_jax.training.vectorize import lay_out

Vectors = Float[Array, "configs size"]


class Surface:
    """The loss of each configuration as a function of its chosen weights, near where they are.

    Args:
        states: of the configurations, stacked ``(configs, ...)``.
        batches: of `fixed_batches`.
        weights: ``invariant`` or ``all``.

    Raises:
        ConfigError: as `chosen_leaves`.
    """

    def __init__(self, states: TrainState, batches: Batches, weights: str = "invariant") -> None:
        devices = jax.devices()
        self._chosen = chosen_leaves(states.task.labels, weights)
        self._layout = "map" if devices[0].platform == "cpu" else "map:2"  # few: each has a whole mini-batch in memory
        number = len(batches.labels)
        shared = min(len(devices), number)
        self._device = devices[0]
        self._mesh = Mesh(np.array(devices[:shared]), ("batches",))
        self._everywhere, self._apart = (NamedSharding(self._mesh, P(*axes)) for axes in ((), ("batches",)))
        fill = np.arange(-(-number // shared) * shared) % number
        padded = [a[fill] for a in (batches.images, batches.labels, batches.shares)]
        padded[2] = padded[2] * (np.arange(len(fill)) < number)[:, None].astype(batches.shares.dtype)
        self._batches = [jax.device_put(a, self._apart) for a in padded]
        self._constants = jax.device_put((batches.mean, batches.std), self._everywhere)
        self._images = np.count_nonzero(batches.shares) / max(np.count_nonzero(batches.shares.any(1)), 1)
        self._states = jax.device_put(states, self._everywhere)
        self.weights: Vectors = jax.jit(jax.vmap(partial(to_vector, chosen=self._chosen)))(
            jax.device_put(states.params, self._device)
        )

    def product(self, kind: str, *, sphere: bool = False) -> Callable[[Vectors], Vectors]:
        """Products of each configuration's curvature matrix with its vector.

        Args:
            kind: a key of `products.PRODUCTS`.
            sphere: of ρ² P A P instead, the matrix at x/ρ projected on the sphere's tangents; see `products.on_sphere`.

        Returns:
            A function of ``(configs, size)``.
        """

        def product(vectors: Vectors) -> Vectors:
            parts = self._accumulate(kind, vectors)
            of_devices = (jax.device_put(shard.data[0], self._device) for shard in parts.addressable_shards)
            return sum(of_devices, start=jnp.zeros_like(vectors))

        if not sphere:
            return product
        return lambda vectors: _scaled_tangential(self.weights, product(_tangential(self.weights, vectors)))

    def gradient_noise(self) -> list[GradientNoise]:
        """Loss and statistics of the mini-batches' gradients, of each configuration."""
        parts = self._accumulate("gradient", self.weights)
        parts = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parts)  # (devices, configs, ...)
        noise = []
        for k in range(len(self.weights)):
            of_devices = [jax.tree.map(lambda leaf, d=d, k=k: leaf[d, k], parts) for d in range(len(parts.share))]
            noise.append(gradient_noise(functools.reduce(merge_moments, of_devices), self._images))
        return noise

    def _accumulate(self, name: str, vectors: Vectors) -> Any:
        """Run a program on all mini-batches; its results have an axis of devices first."""
        vectors = jax.device_put(vectors, self._everywhere)
        program = _program(name, self._chosen, self._layout, self._mesh)
        return program(self._states, vectors, self._batches, self._constants)


@functools.cache
def _program(name: str, chosen: Labels, layout: str, mesh: Mesh) -> Callable[..., Any]:
    """A function that goes through each device's mini-batches, compiled once for all checkpoints."""

    def of_config(state: TrainState, vector: Array, batch: Any) -> Any:
        if name == "gradient":
            return batch[2].sum(), *loss_and_gradient(state, batch, chosen)
        return PRODUCTS[name](state, vector, batch, chosen)

    def local(states: TrainState, vectors: Array, batches: Any, constants: Any) -> Any:
        def add(total: Any, batch: Any) -> tuple[Any, None]:
            images, labels, shares = batch
            prepared = states.task.network.prepare(normalise(images, *constants))
            new = lay_out(lambda s, v: of_config(s, v, (prepared, labels, shares)), layout)(states, vectors)
            return jax.vmap(with_gradient)(total, *new) if name == "gradient" else total + new, None

        start: Any = jnp.zeros_like(vectors)
        if name == "gradient":
            zero = start[:, 0]
            start = Moments(zero, zero, zero, start, zero, zero)
        total, _ = jax.lax.scan(add, start, tuple(batches))
        return jax.tree.map(lambda leaf: leaf[None], total)

    specs = (P(), P(), P("batches"), P())
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("batches"), check_vma=False))


_tangential = jax.jit(jax.vmap(tangential))
_scaled_tangential = jax.jit(jax.vmap(lambda x, v: jnp.vdot(x, x) * tangential(x, v)))
