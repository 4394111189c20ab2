"""The programs that a sweep compiles, of all configurations: a chunk of steps, an evaluation, an eigenvalue."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from periodic_jax.core.grid import HParams
from periodic_jax.landscape.objective import Batches
from periodic_jax.landscape.sharpness import largest_eigenvalue, sphere_sharpness
from periodic_jax.storage.schema import PER_LAYER, SCALARS, SHARPNESS, UPDATES
from periodic_jax.training import input_pipeline
from periodic_jax.training.input_pipeline import DeviceData
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.state import Batch, TrainState
from periodic_jax.training.step import Gradients, eval_step, full_batch_gradients, gradients, update
from periodic_jax.training.vectorize import lay_out, lay_out_joined, over_seeds


def recorded_names(spec: TrainingSpec) -> dict[str, tuple[str, ...]]:
    """Names of what is recorded of each step: a number, or a number of each layer."""
    numbers = SCALARS + (UPDATES if spec.optimizer != "sgd" else ()) + (SHARPNESS if spec.track_sharpness else ())
    return {"numbers": numbers, "layers": PER_LAYER if spec.per_layer else ()}


@dataclass(frozen=True)
class Programs:
    """The programs of a sweep in one layout, on one device.

    Args:
        layout: see `training.vectorize`.
        spec: how the configurations are trained.
        images: number of training images.
        capacity: most steps in a chunk.
        platform: on which they run, one of `models.forms.PLATFORMS`. On a CPU one configuration's whole step runs
            while it is in the cache. On accelerators only the gradients run in a loop, and all configurations are
            updated and measured at once: few large kernels in the place of many small ones.
    """

    layout: str
    spec: TrainingSpec
    images: int
    capacity: int
    platform: str = "cpu"

    def chunk(
        self,
        states: TrainState,
        hparams: HParams,
        seeds: Int[Array, "seeds"],
        data: DeviceData,
        first_step: Int[Array, ""],
        count: Int[Array, ""],
    ) -> tuple[TrainState, dict[str, Array]]:
        """``count`` <= capacity steps; a dynamic bound, so that chunks of every length are one program."""
        indices = jax.vmap(
            lambda seed: input_pipeline.batch_indices(
                seed,
                first_step,
                count,
                capacity=self.capacity,
                count=self.images,
                batch_size=self.spec.batch_size,
                sampling=self.spec.sampling,
            )
        )(seeds)

        whole = self._whole_data(data)  # the compiler drops it unless full batches are asked for

        def step(states: TrainState, t: Array) -> tuple[TrainState, dict[str, Array]]:
            def of_seed(states: TrainState, hparams: HParams, index: Array, seed: Array | None) -> Any:
                batch = whole
                if not self.spec.full_batch:
                    key = None if seed is None else input_pipeline.augmentation_key(seed, first_step + t)
                    images = input_pipeline.mini_batch(data, index, key)
                    batch = Batch(states.task.network.prepare(images), data.labels[index])
                if self.platform == "cpu":
                    return lay_out(lambda s, h: self._advance(s, h, batch, first_step + t), self.layout)(
                        states, hparams
                    )
                due = first_step + t
                sharpness = self._sharpness(states, batch, due) if self.spec.track_sharpness else None
                return lay_out_joined(partial(self._gradients, batch), self.layout)(states), sharpness

            batches = jax.lax.dynamic_index_in_dim(indices, t, axis=1, keepdims=False)
            augmented = seeds if self.spec.augment else None
            out = over_seeds(of_seed, self.layout)(states, hparams, batches, augmented)
            return out if self.platform == "cpu" else jax.vmap(jax.vmap(self._update))(states, hparams, *out)

        buffers = self._unknown_records(states, hparams, (self.capacity, *states.step.shape))

        def body(t: Array, carry: tuple[TrainState, dict[str, Array]]) -> tuple[TrainState, dict[str, Array]]:
            states, records = step(carry[0], t)
            write = jax.lax.dynamic_update_index_in_dim
            return states, {kind: write(carry[1][kind], record, t, 0) for kind, record in records.items()}

        return jax.lax.fori_loop(0, count, body, (states, buffers))

    def _advance(
        self, state: TrainState, hparams: HParams, batch: Batch, step: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """As `_advance_living`, but a configuration that diverged keeps its state, and its records are NaN."""

        def advance(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
            return self._advance_living(state, hparams, batch, step)

        def stay(state: TrainState) -> tuple[TrainState, dict[str, Array]]:
            return state.replace(step=state.step + 1), self._unknown_records(state, hparams)

        return self._unless_diverged(advance, stay, state)

    def _unless_diverged(self, living: Callable[..., Any], diverged: Callable[..., Any], state: TrainState) -> Any:
        """The one or the other, where a conditional leaves the other out.

        Batched it would be a select of both, and on an accelerator the host would wait for it: there what is computed
        of a diverged configuration is dropped by whatever computes it.
        """
        if self.platform == "cpu" and self.layout in ("map", "unroll"):
            return jax.lax.cond(state.diverged_at < 0, living, diverged, state)
        return living(state)

    def _advance_living(
        self, state: TrainState, hparams: HParams, batch: Batch, step: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        """The state after a step, and what is recorded of it as one array of numbers and one of those of each layer.

        Two arrays are written in each step instead of one for each quantity.
        """
        sharpness = None
        if self.spec.track_sharpness:
            # Before the step: to keep its weights until after it costs a tenth of all steps.
            nothing = jnp.full((), jnp.nan, jax.tree.leaves(state.params)[0].dtype)
            due = step % self.spec.track_sharpness == 0
            sharpness = jax.lax.cond(due, lambda: sphere_sharpness(state, self._batches(batch)), lambda: nothing)
        return self._update(state, hparams, self._gradients(batch, state), sharpness)

    def _gradients(self, batch: Batch, state: TrainState) -> Gradients:
        return (full_batch_gradients if self.spec.full_batch else gradients)(state, batch)

    def _update(
        self, state: TrainState, hparams: HParams, terms: Gradients, sharpness: Array | None
    ) -> tuple[TrainState, dict[str, Array]]:
        """The state after a step, and what is recorded of it; see `_advance_living`."""
        new_state, metrics = update(state, hparams, terms)
        if sharpness is not None:
            sharpness = jnp.where(state.diverged_at < 0, sharpness, jnp.nan)
            product = metrics["effective_lr"] * sharpness
            metrics |= {"sphere_sharpness": sharpness, "elr_times_sharpness": product}
        kinds, dtype = recorded_names(self.spec), hparams.lr.dtype
        stacked = {kind: jnp.stack([metrics[n] for n in names]) for kind, names in kinds.items() if names}
        return new_state, {kind: numbers.astype(dtype) for kind, numbers in stacked.items()}

    def _unknown_records(
        self, state: TrainState, hparams: HParams, axes: tuple[int, ...] = ()
    ) -> dict[str, Float[Array, "..."]]:
        """NaN in the place of each number that `_update` records, with leading axes. Found without a trace of a step,
        which takes seconds.
        """
        sizes = {"numbers": (), "layers": (sum(state.task.labels),)}
        kinds, dtype = recorded_names(self.spec), hparams.lr.dtype
        return {
            kind: jnp.full((*axes, len(names), *sizes[kind]), jnp.nan, dtype) for kind, names in kinds.items() if names
        }

    def _sharpness(self, states: TrainState, batch: Batch, step: Array) -> Float[Array, "configs"]:
        """Of all configurations of a seed where a measurement is due, NaN elsewhere."""
        nothing = jnp.full(states.step.shape, jnp.nan, jax.tree.leaves(states.params)[0].dtype)
        measure = lay_out(lambda state: sphere_sharpness(state, self._batches(batch)), self.layout)
        return jax.lax.cond(step % (self.spec.track_sharpness or 1) == 0, lambda: measure(states), lambda: nothing)

    def _batches(self, batch: Batch) -> Batch:
        return batch if self.spec.full_batch else jax.tree.map(lambda leaf: leaf[None], batch)

    def _whole_data(self, data: DeviceData) -> Batch:
        """The training set as stacked mini-batches."""
        number = self.images // self.spec.batch_size

        def split(a: Array) -> Array:
            return a[: number * self.spec.batch_size].reshape(number, self.spec.batch_size, *a.shape[1:])

        return Batch(input_pipeline.normalise(split(data.images), data.mean, data.std), split(data.labels))

    def evaluation(self, states: TrainState, data: DeviceData) -> dict[str, Float[Array, "seeds members"]]:
        """Mean loss and error: on the training set by batch statistics, on the test set by running ones; of the
        corrupted and the clean part of the training set too, where labels were corrupted.
        """
        results: dict[str, Array] = {}
        masks = {} if data.corrupted is None else {"corrupted_train": data.corrupted, "clean_train": ~data.corrupted}
        for split, images, labels, train, parts in (
            ("train", data.images, data.labels, True, masks),
            ("test", data.test_images, data.test_labels, False, {}),
        ):
            sums = self._sums(states, images, labels, data, train, list(parts.values()))
            counts = [len(labels), *(part.sum() for part in parts.values())]
            for name, (loss, wrong), count in zip((split, *parts), sums, counts, strict=True):
                results[f"{name}_loss"], results[f"{name}_error"] = loss / count, wrong / count
        return results

    def eigenvalue(self, states: TrainState, fixed: Batches) -> Float[Array, "seeds members"]:
        """The largest eigenvalue on the same mini-batches for all; NaN of those that diverged."""
        images, labels, _, mean, std = (jnp.asarray(leaf) for leaf in fixed)
        unknown, batches = jnp.full((), jnp.nan, mean.dtype), Batch(input_pipeline.normalise(images, mean, std), labels)
        # Few at a time, whatever the layout of the steps: each has a whole mini-batch in memory.
        few = replace(self, layout="map" if self.platform == "cpu" else "map:2")

        def of_one(state: TrainState) -> Array:
            value = few._unless_diverged(lambda state: largest_eigenvalue(state, batches), lambda _: unknown, state)
            return jnp.where(state.diverged_at < 0, value, unknown)

        return over_seeds(lay_out(of_one, few.layout), few.layout)(states)

    def _sums(
        self, states: TrainState, images: Array, labels: Array, data: DeviceData, train: bool, parts: list[Array]
    ) -> list[tuple[Array, Array]]:
        """Loss and errors summed over all images, each counted once, and over each part, given as a mask.

        The last mini-batch is filled up with images from before it, so that all have one size: one program, and the
        same noise of the batch statistics everywhere.
        """
        count = len(labels)
        size = min(self.spec.batch_size, count)
        unknown = jnp.full((), jnp.nan, data.mean.dtype)
        starts = jnp.minimum(jnp.arange(0, count, size), count - size)
        news = jnp.arange(0, count, size)

        def add(total: Any, where: tuple[Array, Array]) -> tuple[Any, None]:
            start, new = where

            def cut(a: Array) -> Array:
                return jax.lax.dynamic_slice_in_dim(a, start, size)

            normal = input_pipeline.normalise(cut(images), data.mean, data.std)
            batch = Batch(states.task.network.prepare(normal), cut(labels))
            counts = start + jnp.arange(size) >= new
            masks = [counts, *(counts & cut(part) for part in parts)]

            def of_living(state: TrainState) -> list[tuple[Array, Array]]:
                loss, wrong = eval_step(state, batch, train)
                reached = jnp.where(state.diverged_at < 0, 0, jnp.nan)  # a diverged configuration has no result

                def summed(values: Array, mask: Array) -> Array:
                    return jnp.where(mask, values, 0).sum() + reached

                return [(summed(loss, mask), summed(wrong, mask)) for mask in masks]

            def of_one(state: TrainState) -> list[tuple[Array, Array]]:
                return self._unless_diverged(of_living, lambda _: [(unknown, unknown)] * len(masks), state)

            sums = over_seeds(lay_out(of_one, self.layout), self.layout)(states)
            return jax.tree.map(jnp.add, total, sums), None

        zero = jnp.zeros(states.step.shape, data.mean.dtype)
        return jax.lax.scan(add, [(zero, zero)] * (1 + len(parts)), (starts, news))[0]
