"""Trains all configurations of a grid as one compiled program, in chunks of steps, and yields each chunk's telemetry.

Configurations are arranged and laid out as `training.vectorize` says, and sharded over all devices.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from periodic_jax import data as data_module
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams, SweepGrid
from periodic_jax.storage.schema import CORRUPTION, EVALUATIONS, PER_LAYER, SCALARS, SHARPNESS
from periodic_jax.sweeps import autotune
from periodic_jax.sweeps.placement import Placement, choose_where, weights_of
from periodic_jax.sweeps.programs import Programs
from periodic_jax.training import input_pipeline
from periodic_jax.training.state import TrainState, create_train_state
from periodic_jax.training.vectorize import check_layout


def check_batch_size(batch_size: int, dataset: data_module.Dataset) -> None:
    """Refuse a mini-batch that the training set cannot fill.

    Raises:
        ConfigError: below 2, since batch normalisation needs two, or above the number of images.
    """
    count = len(dataset.images)
    if not 2 <= batch_size <= count:
        raise ConfigError("--batch-size", batch_size, f"from 2 to the {count} training images of {dataset.name}")


class Chunk(NamedTuple):
    """Telemetry of consecutive steps, on the host, and the evaluation after the last of them where one was due."""

    first_step: int
    telemetry: dict[str, np.ndarray]  # (configs, steps), or (configs, steps, layers)
    evaluation: dict[str, np.ndarray] | None  # (configs,)
    diverged_at: np.ndarray  # (configs,) step, or -1
    weights: Any = None  # parameters and running statistics at its end, on the device, where candidates were asked for
    states: TrainState | None = None  # at the end of the chunk, on the device, where they were asked for

    @property
    def steps(self) -> int:
        """Number of steps in the chunk."""
        return next(iter(self.telemetry.values())).shape[1]


class Sweep:
    """A grid of configurations of one network on one data set, ready to train.

    Args:
        model: network with ``labels()``; see `models`.
        dataset: the images.
        grid: the configurations.
        batch_size: images in a mini-batch.
        layout: see `training.vectorize`.
        capacity: most steps in a chunk. One program serves all chunks up to that length.
        per_layer: record the layers' dynamics too.
        loss: a key of `training.losses.LOSSES`.
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: a fixed norm is that of each output filter.
        full_batch: each step is full-batch gradient descent, accumulated over mini-batches in the data's own order; the
            images after the last whole one are left out.
        augment: crop and flip the images of each step at random, all configurations of a seed alike.
        track_sharpness: steps between measurements of the sharpness, see `landscape.online`; None: no measurements.
        devices: JAX devices to shard the configurations over; all, if None.

    Attributes:
        placement: where the configurations are.
        evaluations: names of what is evaluated; of corrupted and clean labels apart where the data set has corrupted
            ones.
        states: the training state of all configurations, stacked ``(rows, members, ...)``. The compiled chunk takes
            its memory over: after each chunk the attribute is a new tree and the old arrays are gone.
        stopped: what ``stop`` said, if it ended the last `chunks`; 0 otherwise.
        compilations: how often the chunk program was traced; 1 after any number of chunks.

    Raises:
        ConfigError: a batch larger than the data, an unknown layout, images too small for the network.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: data_module.Dataset,
        grid: SweepGrid,
        *,
        batch_size: int = 128,
        layout: str = "auto",
        capacity: int = 1000,
        per_layer: bool = False,
        loss: str = "cross_entropy",
        schedule: str = "constant",
        per_filter: bool = False,
        full_batch: bool = False,
        augment: bool = False,
        track_sharpness: int | None = None,
        devices: list[Any] | None = None,
    ) -> None:
        check_batch_size(batch_size, dataset)
        check_layout(layout)
        self.grid, self.batch_size, self.capacity = grid, batch_size, capacity
        self.recorded = SCALARS + (SHARPNESS if track_sharpness else ()) + (PER_LAYER if per_layer else ())
        self.evaluations = EVALUATIONS + (() if dataset.corrupted is None else CORRUPTION)
        self.placement = placed = Placement.of(grid.seeds, devices or jax.devices())
        self.compilations = 0
        self.step, self.stopped = 0, 0

        dtype = getattr(model, "param_dtype", jnp.float32)
        self.data = jax.tree.map(placed.everywhere, input_pipeline.to_device(dataset, dtype))
        self.seeds = placed.rows(placed.arrangement.seeds.astype(np.uint32))
        self.hparams = HParams(*(placed.spread(h.astype(dtype)) for h in grid.hparams()))
        shape = jax.ShapeDtypeStruct((batch_size, *dataset.image_shape), dtype)
        create = partial(create_train_state, loss=loss, schedule=schedule, per_filter=per_filter)
        self._fresh_states = self._initialiser(create, model, shape)
        self._programs = partial(
            Programs, batch_size=batch_size, images=len(dataset.images), capacity=capacity, recorded=self.recorded,
            full_batch=full_batch, augment=augment, track_sharpness=track_sharpness,
        )  # fmt: skip
        kind, shown = placed.devices[0].device_kind, placed.arrangement.source.shape
        about = (jax.__version__, kind, len(placed.devices), shown, model)
        about += (shape, per_layer, loss, schedule, per_filter, full_batch, augment, track_sharpness)
        about += (jax.config.values["jax_default_matmul_precision"],)
        members = placed.arrangement.source.shape[1]
        layouts = autotune.candidates(placed.devices[0].platform, members) if layout == "auto" else [layout]
        self._settle(autotune.fastest(layouts, self._time, about), members)

    def _settle(self, layout: str, members: int) -> None:
        """Compile the programs in a layout, or where they need more memory than there is, in a smaller one."""
        self._lay_out_programs(layout)
        try:
            self._train_from_start(0)
        except jax.errors.JaxRuntimeError as error:
            less = autotune.smaller(layout, members)
            if not autotune.is_out_of_memory(error) or less is None:
                raise
            self._settle(less, members)

    def _time(self, layout: str) -> float:
        """Seconds of a step in a layout; infinite where it does not fit the memory."""
        self._lay_out_programs(layout)
        try:
            return self.seconds_per_step()
        except jax.errors.JaxRuntimeError as error:
            if not autotune.is_out_of_memory(error):
                raise
            return float("inf")

    def _train_from_start(self, count: int) -> None:
        """``count`` steps from fresh states, which are the sweep's after none; none take as much memory as many."""
        self.states = self._fresh_states()
        for first in range(0, max(count, 1), self.capacity):
            part = np.int32(first), np.int32(min(count - first, self.capacity))
            self.states, _ = self._run_chunk(self.states, self.hparams, self.seeds, self.data, *part)
        jax.block_until_ready(self.states)

    def _lay_out_programs(self, layout: str) -> None:
        self.layout, self.compilations = layout, 0
        self.programs = programs = self._programs(layout=layout)

        def chunk(*arguments: Any) -> tuple[TrainState, dict[str, Array]]:
            self.compilations += 1
            return programs.chunk(*arguments)

        shard = partial(jax.shard_map, mesh=self.placement.mesh, check_vma=False)
        over = P("device")
        results = (over, P(None, "device"))
        sharded = shard(chunk, in_specs=(over, over, over, P(), P(), P()), out_specs=results)
        self._run_chunk = jax.jit(sharded, donate_argnums=0)
        self._copy = jax.jit(lambda states: jax.tree.map(jnp.copy, states))
        self._choose = jax.jit(choose_where, donate_argnums=1)
        self._run_evaluation = jax.jit(shard(programs.evaluation, in_specs=(over, P()), out_specs=over))

    def chunks(
        self,
        steps: int,
        *,
        eval_every: int | None,
        seconds: float = 1.0,
        origin: int = 0,
        mark_every: int | None = None,
        weights_every: int | None = None,
        keep: Callable[[int], bool] = lambda step: False,
        stop: Callable[[], int] = lambda: 0,
    ) -> Iterator[Chunk]:
        """Train for that many more steps.

        The device computes a chunk while the host fetches and writes the one before. Chunks grow until one takes about
        ``seconds``; they end where an evaluation is due.

        Args:
            steps: number of updates.
            eval_every: steps between evaluations, counted from step 0; the last step is always followed by one, and
                the first one preceded by one. None: no evaluations at all.
            seconds: wanted duration of a chunk.
            origin: the run's first step.
            mark_every: chunks end at its multiples too.
            weights_every: likewise, and there come with the parameters and running statistics.
            keep: asked before each chunk, with the number of updates made after it, whether the states there are
                wanted. Those at the end of the last chunk come anyway.
            stop: asked before each chunk; anything but 0 ends the training early.

        Yields:
            Consecutive chunks.
        """
        import time

        end, size = self.step + steps, min(16, self.capacity)
        pending: tuple[int, Any, int, Any, Any, Any, Any] | None = None
        if self.step == origin and eval_every:
            first = self._fetch_evaluation(self._run_evaluation(self.states, self.data))
            yield Chunk(origin, self.empty_telemetry(), first, self._diverged())
        started, chunk_number = time.perf_counter(), 0
        while self.step < end:
            due = min((self.step // eval_every + 1) * eval_every, end) if eval_every else end
            marks = [(self.step // every + 1) * every for every in (mark_every, weights_every) if every]
            count = min(size, min(due, *marks) - self.step if marks else due - self.step)
            kept_here, self.stopped = keep(self.step + count), stop()
            if self.stopped:
                break
            first_step, self.step = self.step, self.step + count
            self.states, telemetry = self._run_chunk(
                self.states, self.hparams, self.seeds, self.data, np.int32(first_step), np.int32(count)
            )
            evaluation = self._run_evaluation(self.states, self.data) if eval_every and self.step == due else None
            diverged = self._copy(self.states.diverged_at)
            weights = None
            if weights_every and self.step % weights_every == 0:
                weights = self._copy(weights_of(self.states))
            kept = self._copy(self.states) if self.step < end and kept_here else None
            if pending:
                yield self._fetch(*pending)
            pending = (first_step, telemetry, count, evaluation, diverged, weights, kept)
            now = time.perf_counter()
            if chunk_number > 1 and count == size:  # the first one compiles
                wanted = size * seconds / (now - started)
                size = max(1, min(int(wanted), 4 * size, self.capacity))
            started, chunk_number = now, chunk_number + 1
        if pending:
            yield self._fetch(*pending)._replace(states=self.states)

    def copied(self, tree: Any) -> Any:
        """A copy on the devices, which the next chunk leaves alone."""
        return self._copy(tree)

    def choose(self, lower: np.ndarray, weights: Any, lowest: Any) -> Any:
        """The first weights where ``lower`` is true of a configuration ``(configs,)``, the second ones, whose memory is
        taken over, elsewhere.
        """
        return self._choose(self.placement.spread(lower), weights, lowest)

    def seconds_per_step(self) -> float:
        """Time of a step of all configurations, measured from the start; afterwards the sweep is at no step."""
        return autotune.seconds_per_step(self._train_from_start)

    def seconds_per_evaluation(self) -> float:
        """Time of an evaluation of all configurations, after one to compile."""
        import time

        jax.block_until_ready(self._run_evaluation(self.states, self.data))
        started = time.perf_counter()
        jax.block_until_ready(self._run_evaluation(self.states, self.data))
        return time.perf_counter() - started

    def bytes_of_temporaries(self) -> int:
        """Memory that the chunk program takes on one device, besides states and results."""
        data = (self.hparams, self.seeds, self.data, np.int32(0), np.int32(0))
        analysis = self._run_chunk.lower(self.states, *data).compile().memory_analysis()
        return int(getattr(analysis, "temp_size_in_bytes", 0))

    def bytes_of_data(self) -> int:
        """Bytes of the data set on each device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.data))

    def bytes_of_a_state(self) -> int:
        """Bytes of one configuration's training state."""
        return sum(leaf.nbytes // self.hparams.lr.size for leaf in jax.tree.leaves(self.states))

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Continue from what `Placement.fetch` gave, after ``step`` updates.

        Args:
            arrays: of the names, shapes and dtypes of ``placement.fetch(sweep.states)``.
            step: updates made so far.
        """
        self.states, self.step = self.placement.put(arrays, self.states), step

    def bytes_of_weights(self) -> int:
        """Bytes of one configuration's parameters and running statistics."""
        return sum(leaf.nbytes // self.hparams.lr.size for leaf in jax.tree.leaves(weights_of(self.states)))

    def empty_telemetry(self) -> dict[str, np.ndarray]:
        """No steps yet: for each recorded name an array ``(configs, 0)`` or ``(configs, 0, layers)`` of its dtype."""
        dtype, layers = self.hparams.lr.dtype, len(self.layer_names())
        return {n: np.empty((len(self.grid), 0, *((layers,) if n in PER_LAYER else ())), dtype) for n in self.recorded}

    def layer_names(self) -> list[str]:
        """The scale-invariant leaves of the parameters, as ``conv0/kernel``."""
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(self.states.params)]
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        return [name for name, marked in zip(names, self.states.task.labels, strict=True) if marked]

    def _initialiser(
        self, create: Callable[..., TrainState], model: Any, images: jax.ShapeDtypeStruct
    ) -> Callable[[], TrainState]:
        """A function that makes the states of step 0, all that the sweep trains."""

        def of_seed(seed: Array) -> TrainState:
            key = input_pipeline.purpose_key(seed, input_pipeline.INITIALISATION)
            return create(model, model.labels(), key, jnp.zeros(images.shape, images.dtype))

        members = self.placement.arrangement.source.shape[1]

        def spread(leaf: Array) -> Array:
            return jnp.repeat(leaf[:, None], members, axis=1)

        def initialise(seeds: Array) -> TrainState:
            # One row at a time: a seed's initial weights must not depend on how many there are.
            return jax.tree.map(spread, jax.lax.map(of_seed, seeds))

        over = P("device")
        sharded = jax.shard_map(initialise, mesh=self.placement.mesh, in_specs=over, out_specs=over, check_vma=False)
        return partial(jax.jit(sharded), self.seeds)

    def _fetch(
        self, first_step: int, telemetry: Any, count: int, evaluation: Any, diverged: Any, weights: Any, kept: Any
    ) -> Chunk:
        arrays = {}
        for kind, buffer in telemetry.items():
            # Cut on the host: a slice on the device would be compiled again for each length.
            flat = self.placement.flat(buffer, axis=1)[:count]  # (steps, configs, names, ...)
            for i, name in enumerate(self.programs.kinds()[kind]):
                arrays[name] = np.moveaxis(flat[:, :, i], 0, 1)
        evaluated = evaluation and self._fetch_evaluation(evaluation)
        return Chunk(first_step, arrays, evaluated, self.placement.flat(diverged), weights, kept)

    def _fetch_evaluation(self, evaluation: dict[str, Any]) -> dict[str, np.ndarray]:
        return {name: self.placement.flat(value) for name, value in evaluation.items()}

    def _diverged(self) -> np.ndarray:
        return self.placement.flat(self.states.diverged_at)
