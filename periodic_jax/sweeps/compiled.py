"""The programs of a sweep, sharded over devices. Sweeps of one process that need the same ones trace and compile them
once.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from periodic_jax.models.adapters import LinenNetwork, is_built_in
from periodic_jax.models.labels import LabelTree
from periodic_jax.sweeps.programs import Programs
from periodic_jax.training import xla
from periodic_jax.training.initialisation import seeded_states
from periodic_jax.training.losses import LOSSES
from periodic_jax.training.schedules import SCHEDULES
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.state import TrainState

# Asks XLA to leave out operations whose result depends on the order in which threads finish. What it chooses while it
# compiles may still differ: docs/development/decisions/bits-on-a-gpu.md.
DETERMINISTIC = {"xla_gpu_deterministic_ops": True}
KEPT = 8  # of each kind, for the next sweep: a few networks, or one in the layouts among which the tuner chooses


class ShardedPrograms:
    """`Programs`, sharded over devices and compiled on first use.

    Args:
        programs: of one device.
        mesh: of the devices.
        deterministic: ask for the same bits in every process on a GPU too; see `DETERMINISTIC`.

    Attributes:
        chunk: as `Programs.chunk`; takes over the memory of the states.
        evaluation, eigenvalue: as of `Programs`.
        compilations: how often the chunk program was traced in this process, by all sweeps that share it; 1 after any
            number of chunks.
    """

    def __init__(self, programs: Programs, mesh: Mesh, deterministic: bool = False) -> None:
        self.compilations = 0

        def chunk(*arguments: Any) -> tuple[TrainState, dict[str, Array]]:
            self.compilations += 1
            return programs.chunk(*arguments)

        shard, over = partial(jax.shard_map, mesh=mesh, check_vma=False), P("device")
        results = (over, P(None, "device"))
        sharded = shard(chunk, in_specs=(over, over, over, P(), P(), P()), out_specs=results)
        options = dict(DETERMINISTIC) if deterministic else {}
        if mesh.devices.flat[0].platform == "cpu":
            options |= xla.cpu_options()
        self.chunk = jax.jit(sharded, donate_argnums=0, compiler_options=options)
        self.evaluation, self.eigenvalue = (
            jax.jit(shard(program, in_specs=(over, P()), out_specs=over), compiler_options=options)
            for program in (programs.evaluation, programs.eigenvalue)
        )


@dataclass(frozen=True)
class Initialisation:
    """How the states of step 0 are made, on one device.

    Args:
        model: a network as `training.state.create_train_state` takes it.
        spec: how it is trained.
        batch_shape, dtype: of a mini-batch of images.
        copies: configurations that start from each state.
        has_own_head: the head is that of its own seed.
    """

    model: Any
    spec: TrainingSpec
    batch_shape: tuple[int, ...]
    dtype: Any
    copies: int
    has_own_head: bool

    def sharded(self, labels: LabelTree, mesh: Mesh) -> Any:
        """See `initialiser`."""

        def initialise(seeds: Array) -> TrainState:
            with jax.ensure_compile_time_eval():  # made here, so that what is kept holds no images
                images = jnp.zeros(self.batch_shape, self.dtype)
            states = seeded_states(
                self.model, labels, images, self.spec, copies=self.copies, has_own_head=self.has_own_head
            )
            return states(seeds)

        over = P("device")
        return jax.jit(jax.shard_map(initialise, mesh=mesh, check_vma=False, in_specs=over, out_specs=over))


def initialiser(initialisation: Initialisation, labels: LabelTree, mesh: Mesh) -> Any:
    """A compiled function from the initial seeds to the states of step 0, all that the sweep trains.

    Args:
        initialisation: how they are made.
        labels: of the network's weights; its own ``labels()``, if None.
        mesh: of the devices.
    """
    model = initialisation.model
    labels = model.labels() if labels is None else labels
    if _is_known(model, initialisation.spec) and labels == model.labels():
        return _shared_initialiser(initialisation, mesh, _settings())
    return initialisation.sharded(labels, mesh)


def sharded_programs(
    programs: Programs, mesh: Mesh, deterministic: bool, model: Any, arguments: Any
) -> ShardedPrograms:
    """The programs of a sweep: those of an earlier sweep in this process that had the same ones, or new ones.

    Args:
        programs, mesh, deterministic: as for `ShardedPrograms`.
        model: the network.
        arguments: of the chunk program, or their shapes and dtypes.
    """
    if not _is_known(model, programs.spec):
        return ShardedPrograms(programs, mesh, deterministic)
    leaves, structure = jax.tree.flatten(arguments)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    return _shared_programs(programs, mesh, deterministic, (structure, shapes, _settings()))


def _is_known(model: Any, spec: TrainingSpec) -> bool:
    """Whether programs trace functions of this package alone. One of yours may read what you have changed since it was
    traced, so it is traced again.
    """
    functions = LOSSES.get(spec.loss), SCHEDULES.get(spec.schedule)
    return (
        is_built_in(LinenNetwork(model))
        and isinstance(spec.optimizer, str)
        and all(getattr(function, "__module__", "").startswith("periodic_jax.") for function in functions)
    )


def _settings() -> Hashable:
    """All settings of JAX, and that of Flax, on which a program may depend. The key of `jax.jit` lacks some of them."""
    of_flax = [flag for flag in xla.RANDOM_NUMBERS if flag.startswith("flax")]
    return *jax.config.values.items(), *((flag, getattr(flax.config, flag)) for flag in of_flax)


@lru_cache(maxsize=KEPT)
def _shared_programs(programs: Programs, mesh: Mesh, deterministic: bool, about: Hashable) -> ShardedPrograms:
    return ShardedPrograms(programs, mesh, deterministic)


@lru_cache(maxsize=KEPT)
def _shared_initialiser(initialisation: Initialisation, mesh: Mesh, settings: Hashable) -> Any:
    return initialisation.sharded(initialisation.model.labels(), mesh)
