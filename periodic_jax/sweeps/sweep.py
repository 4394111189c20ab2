"""Trains all configurations of a grid as one compiled program, in chunks of steps, and yields each chunk's telemetry.

Configurations are arranged and laid out as `training.vectorize` says, and sharded over all devices.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import compress
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams, SweepGrid
from periodic_jax.data.dataset import Dataset
from periodic_jax.landscape.objective import fixed_batches
from periodic_jax.models import forms
from periodic_jax.models.adapters import input_dtype
from periodic_jax.models.labels import LabelTree
from periodic_jax.storage.schema import CORRUPTION, EIGENVALUE, EVALUATIONS
from periodic_jax.sweeps import autotune
from periodic_jax.sweeps.chunks import FIRST_STEPS, Chunk, ChunkEnds
from periodic_jax.sweeps.compiled import Initialisation, ShardedPrograms, initialiser, sharded_programs
from periodic_jax.sweeps.placement import Placement, copied, named_leaves, weights_of
from periodic_jax.sweeps.programs import Programs, recorded_names
from periodic_jax.training import input_pipeline
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.state import TrainState
from periodic_jax.training.vectorize import check_layout


def check_batch_size(batch_size: int, dataset: Dataset) -> None:
    """Refuse a mini-batch that the training set cannot fill.

    Raises:
        ConfigError: below 2, since batch normalisation needs two, or above the number of images.
    """
    count = len(dataset.images)
    if not 2 <= batch_size <= count:
        raise ConfigError("--batch-size", batch_size, f"from 2 to the {count} training images of {dataset.name}")


class Sweep:
    """A grid of configurations of one network on one data set.

    Nothing is compiled by the constructor. `compile` is called by whatever first needs the programs or the states.

    Args:
        model: a network as `training.state.create_train_state` takes it.
        dataset: the images.
        grid: the configurations.
        spec: how they are trained.
        labels: of the network's weights; its own ``labels()``, if None.
        layout: see `training.vectorize`.
        capacity: most steps in a chunk. One program serves all chunks up to that length.
        devices: JAX devices to shard the configurations over; all, if None.
        deterministic: ask for the same bits in every process on a GPU too; see `compiled.DETERMINISTIC`.

    Attributes:
        placement: where the configurations are.
        evaluations: names of what is evaluated; of corrupted and clean labels apart where the data set has corrupted
            ones.
        layout: as given; the chosen one, once compiled.
        step: updates made.
        stopped: what ``stop`` returned, if it ended the last `chunks`; 0 otherwise.

    Raises:
        ConfigError: a batch larger than the data, an unknown layout, images too small for the network.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        grid: SweepGrid,
        spec: TrainingSpec,
        *,
        labels: LabelTree = None,
        layout: str = "auto",
        capacity: int = 1000,
        devices: list[Any] | None = None,
        deterministic: bool = False,
    ) -> None:
        check_batch_size(spec.batch_size, dataset)
        self.grid, self.spec, self.capacity, self.layout = grid, spec, capacity, check_layout(layout)
        self.evaluations = EVALUATIONS + (() if dataset.corrupted is None else CORRUPTION)
        self.placement = Placement.of(grid.seeds_of("data_seed"), devices or jax.devices())
        self.step, self.stopped, self._deterministic = 0, 0, deterministic

        dtype = input_dtype(model)
        self.data = jax.tree.map(self.placement.replicate, input_pipeline.to_device(dataset, dtype))
        fixed = fixed_batches(dataset, spec.batch_size, dtype=dtype) if spec.track_eigenvalue else None
        self._fixed = jax.tree.map(self.placement.replicate, fixed)
        self.seeds = self.placement.shard(self.placement.arrangement.seeds.astype(np.uint32))
        self.initial_seeds = self.placement.shard(self.placement.distinct(grid.initial_seeds()))
        self.hparams = HParams(*(self.placement.shard_configs(h.astype(dtype)) for h in grid.hparams()))
        self._platform = forms.platform_of(self.placement.devices[0])
        if getattr(model, "platform", None) == forms.here():  # and not one that was asked for
            model = model.clone(platform=self._platform)
        self._platform = getattr(model, "platform", self._platform)
        self._model, self._batch_shape = model, (spec.batch_size, *dataset.image_shape)
        copies = self.placement.configs_per_seed // self.initial_seeds.shape[1]
        initialisation = Initialisation(self._model, spec, self._batch_shape, dtype, copies, grid.has_own_head)
        self._initialise = initialiser(initialisation, labels, self.placement.mesh)
        self._abstract_states = self._initialise.eval_shape(self.initial_seeds)
        self._is_compiled = False
        self._programs: ShardedPrograms
        self._states: TrainState

    def compile(self) -> "Sweep":
        """Choose a layout, compile the programs in it, and make the states of step 0. A second call does nothing.

        Where ``layout`` is ``auto``, the candidates are timed; see `sweeps.autotune`. A layout that needs more memory
        than there is gives way to a smaller one.

        Returns:
            The sweep itself.
        """
        if self._is_compiled:
            return self
        device, per_seed = self.placement.devices[0], self.placement.configs_per_seed
        width = getattr(self._model, "width", None)
        layouts = autotune.candidates(self._platform, per_seed, width) if self.layout == "auto" else [self.layout]
        shape, precision = self.placement.arrangement.source.shape, jax.config.values["jax_default_matmul_precision"]
        about = (jax.__version__, device.device_kind, len(self.placement.devices), shape)
        about += (self._model, self._batch_shape, self.hparams.lr.dtype, self.spec, precision, self._deterministic)
        layout = autotune.fastest(layouts, self._time, about)
        while not self._is_compiled:
            self._lay_out(layout)
            try:
                self._train_from_start(0)
                self._is_compiled = True
            except jax.errors.JaxRuntimeError as error:
                smaller = autotune.smaller(layout, per_seed)
                if not autotune.is_out_of_memory(error) or smaller is None:
                    raise
                layout = smaller
        return self

    @property
    def programs(self) -> ShardedPrograms:
        """The compiled programs."""
        return self.compile()._programs

    @property
    def states(self) -> TrainState:
        """The training state of all configurations, stacked ``(seeds, configs per seed, ...)``.

        The compiled chunk takes its memory over: after each chunk this is a new tree and the old arrays are gone.
        """
        return self.compile()._states

    @states.setter
    def states(self, states: TrainState) -> None:
        self.compile()._states = states

    @property
    def compilations(self) -> int:
        """How often the chunk program was traced; 1 after any number of chunks."""
        return self.programs.compilations

    def chunks(
        self,
        steps: int,
        *,
        eval_every: int | None,
        ends: ChunkEnds = ChunkEnds(),
        keep: Callable[[int], bool] = lambda step: False,
        stop: Callable[[], int] = lambda: 0,
    ) -> Iterator[Chunk]:
        """Train for that many more steps.

        The device computes a chunk while the host fetches and writes the one before. Chunks grow until one takes about
        ``ends.seconds``; they end where an evaluation is due.

        Args:
            steps: number of updates.
            eval_every: steps between evaluations, counted from step 0; the last step is always followed by one, and
                the first one preceded by one. None: no evaluations, or those of ``ends``.
            ends: where else chunks end.
            keep: called before each chunk, with the number of updates made after it, whether the states there are
                wanted. Those at the end of the last chunk come anyway.
            stop: called before each chunk; anything but 0 ends the training early.

        Yields:
            Consecutive chunks.
        """
        programs, end, size = self.programs, self.step + steps, min(FIRST_STEPS, self.capacity)
        has_evaluations, measured_every = bool(eval_every or ends.eval_at), self.spec.track_eigenvalue
        pending: tuple[Chunk, int] | None = None
        if self.step == ends.origin and has_evaluations:
            first = jax.tree.map(self.placement.gather, programs.evaluation(self._states, self.data))
            yield Chunk(self.step, self.empty_telemetry(), first, self.placement.gather(self._states.diverged_at))
        started, chunk_number = time.perf_counter(), 0
        while self.step < end:
            due = ends.next_evaluation(self.step, end, eval_every)
            between = ends.mark_every, ends.weights_every, measured_every
            marks = [(self.step // every + 1) * every for every in between if every]
            count = min(size, min(due, *marks) - self.step if marks else due - self.step)
            is_wanted, self.stopped = keep(self.step + count), stop()
            if self.stopped:
                break
            is_measured = measured_every and self.step % measured_every == 0
            eigenvalue = programs.eigenvalue(self._states, self._fixed) if is_measured else None
            first_step, self.step = self.step, self.step + count
            telemetry, is_evaluated = self._run(first_step, count), has_evaluations and self.step == due
            has_weights = ends.weights_every and self.step % ends.weights_every == 0
            computed = Chunk(
                first_step, telemetry,
                evaluation=programs.evaluation(self._states, self.data) if is_evaluated else None,
                diverged_at=copied(self._states.diverged_at),
                weights=copied(weights_of(self._states)) if has_weights else None,
                states=copied(self._states) if self.step < end and is_wanted else None,
                eigenvalue=eigenvalue,
            )  # fmt: skip
            if pending:
                yield self._fetch(*pending)
            pending = computed, count
            now = time.perf_counter()
            if chunk_number > 1 and count == size:  # the first one compiles
                wanted = size * ends.seconds / (now - started)
                size = max(1, min(int(wanted), 4 * size, self.capacity))
            started, chunk_number = now, chunk_number + 1
        if pending:
            yield self._fetch(*pending)._replace(states=self._states)

    def restore(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Continue from what `Placement.fetch` gave, after ``step`` updates.

        Args:
            arrays: of the names, shapes and dtypes of ``placement.fetch(sweep.states)``.
            step: updates made so far.
        """
        self.states, self.step = self.placement.put(arrays, self.states), step

    def seconds_per_step(self) -> float:
        """Time of a step of all configurations, measured from the start; afterwards the sweep is at no step."""
        self.compile()
        return autotune.seconds_per_step(self._train_from_start)

    def seconds_per_evaluation(self) -> float:
        """Time of an evaluation of all configurations, after one to compile."""
        return autotune.seconds_of(self.programs.evaluation, self.states, self.data)

    def seconds_per_eigenvalue(self) -> float:
        """Time of a measurement of the largest eigenvalue, likewise; 0 where there are none."""
        return autotune.seconds_of(self.programs.eigenvalue, self.states, self._fixed) if self._fixed else 0.0

    def bytes_of_temporaries(self) -> int:
        """Memory that the chunk program takes on one device, besides states and results."""
        data = (self.hparams, self.seeds, self.data, np.int32(0), np.int32(0))
        analysis = self.programs.chunk.lower(self.states, *data).compile().memory_analysis()
        return int(getattr(analysis, "temp_size_in_bytes", 0))

    def bytes_of_data(self) -> int:
        """Bytes of the data set on each device."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.data))

    def bytes_of_a_state(self) -> int:
        """Bytes of one configuration's training state."""
        return self._bytes_of_one(self._abstract_states)

    def bytes_of_weights(self) -> int:
        """Bytes of one configuration's parameters and running statistics."""
        return self._bytes_of_one(weights_of(self._abstract_states))

    def _bytes_of_one(self, tree: Any) -> int:
        return sum(leaf.size * leaf.dtype.itemsize // self.hparams.lr.size for leaf in jax.tree.leaves(tree))

    def empty_telemetry(self) -> dict[str, np.ndarray]:
        """No steps yet: for each recorded name an array ``(configs, 0)`` or ``(configs, 0, layers)`` of its dtype."""
        dtype, one_number = self.hparams.lr.dtype, (len(self.grid), 0)
        shapes = {"numbers": one_number, "layers": (*one_number, len(self.layer_names()))}
        names = recorded_names(self.spec)
        empty = {name: np.empty(shapes[kind], dtype) for kind in names for name in names[kind]}
        return empty | {name: np.empty(one_number, dtype) for name in EIGENVALUE if self.spec.track_eigenvalue}

    def abstract_states(self) -> dict[str, np.ndarray]:
        """Arrays of the names, shapes and dtypes that ``placement.fetch(sweep.states)`` gives, which take no memory;
        nothing is compiled.
        """
        configs = len(self.grid)
        return {
            name: np.broadcast_to(np.zeros((), np.dtype(leaf.dtype)), (configs, *leaf.shape[2:]))
            for name, leaf in named_leaves(self._abstract_states)
            if leaf.size
        }

    def layer_names(self) -> list[str]:
        """The scale-invariant leaves of the parameters, as ``conv0/kernel``."""
        states = self._abstract_states
        return list(compress((name for name, _ in named_leaves(states.params, "/")), states.task.labels))

    def _lay_out(self, layout: str) -> None:
        self.layout = layout
        programs = Programs(layout, self.spec, len(self.data.images), self.capacity, self._platform)
        self._programs = sharded_programs(
            programs, self.placement.mesh, self._deterministic, self._model,
            (self._abstract_states, self.hparams, self.seeds, self.data),
        )  # fmt: skip

    def _time(self, layout: str) -> float:
        """Seconds of a step in a layout; infinite where it does not fit the memory."""
        self._lay_out(layout)
        try:
            return autotune.seconds_per_step(self._train_from_start)
        except jax.errors.JaxRuntimeError as error:
            if not autotune.is_out_of_memory(error):
                raise
            return float("inf")

    def _train_from_start(self, count: int) -> None:
        """``count`` steps from initial states, which are the sweep's after none; none take as much memory as many."""
        self._states = self._initialise(self.initial_seeds)
        for first in range(0, max(count, 1), self.capacity):
            self._run(first, min(count - first, self.capacity))
        jax.block_until_ready(self._states)

    def _run(self, first_step: int, count: int) -> dict[str, Array]:
        """Replace the states by those after ``count`` steps, and return what was recorded."""
        self._states, telemetry = self._programs.chunk(
            self._states, self.hparams, self.seeds, self.data, np.int32(first_step), np.int32(count)
        )
        return telemetry

    def _fetch(self, chunk: Chunk, steps: int) -> Chunk:
        arrays = {}
        for kind, buffer in chunk.telemetry.items():
            # Cut on the host: a slice on the device would be compiled again for each length.
            flat = self.placement.gather(buffer, axis=1)[:steps]  # (steps, configs, names, ...)
            for i, name in enumerate(recorded_names(self.spec)[kind]):
                arrays[name] = np.moveaxis(flat[:, :, i], 0, 1)
        if self.spec.track_eigenvalue:
            arrays |= {name: np.full_like(arrays["loss"], np.nan) for name in EIGENVALUE}
            if chunk.eigenvalue is not None:
                arrays[EIGENVALUE[0]][:, 0] = self.placement.gather(chunk.eigenvalue)
        evaluation, diverged_at = jax.tree.map(self.placement.gather, (chunk.evaluation, chunk.diverged_at))
        return chunk._replace(telemetry=arrays, evaluation=evaluation, diverged_at=diverged_at, eigenvalue=None)
