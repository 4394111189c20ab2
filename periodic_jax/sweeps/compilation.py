"""The chunk program of a sweep, compiled for a device that is not here.

XLA compiles for a GPU or a TPU on a machine without one. That needs the extra ``aot``; nothing of it is imported before
it is asked for. What follows from such a program is compiled and counted, never measured: on the device libraries may
choose other algorithms.
"""

import contextlib
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from periodic_jax.core.errors import ConfigError, MissingDependencyError, UsageError, first_line
from periodic_jax.sweeps.targets import Target
from periodic_jax.sweeps.traffic import ChunkCost, Cost, chunk_cost
from periodic_jax.training.spec import TrainingSpec

LOG = logging.getLogger("periodic_jax")


def check_installed(target: Target) -> None:
    """Refuse a device for which nothing here can compile.

    Raises:
        MissingDependencyError: XLA's compiler for it is not installed.
    """
    module, package = {"cuda": ("jax_cuda13_plugin", "jax-cuda13-plugin"), "tpu": ("libtpu", "libtpu")}[target.platform]
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(f"compiling for {target.name}", package, "periodic_jax[aot]")


def prepare_jax(target: Target) -> None:
    """Set what the compilers read when they start: only before JAX's first computation.

    Nothing is looked for but the CPU, the TPU's compiler does not ask a cloud where it is, and XLA logs no more of a
    program that is too large than the exception says.
    """
    variables = {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    if target.topology:
        variables |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        variables["TPU_ACCELERATOR_TYPE"] = target.accelerator_type
    for name, value in variables.items():
        os.environ.setdefault(name, value)


class Workload(NamedTuple):
    """A chunk program by its shapes."""

    model: Any
    spec: TrainingSpec
    image_shape: tuple[int, int, int]
    layout: str
    configs: int  # of each seed
    seeds: int = 1
    images: int = 50_000
    test_images: int = 10_000
    capacity: int = 1000
    deterministic: bool = False


@dataclass(frozen=True)
class CompiledChunk:
    """A chunk program for a device.

    Attributes:
        target: the device.
        workload: what it trains.
        text: the optimised program.
        cost: what it does.
        temporary_bytes: memory besides arguments and results.
    """

    target: Target
    workload: Workload
    text: str = field(repr=False)
    cost: ChunkCost
    temporary_bytes: int

    @property
    def step_cost(self) -> Cost:
        """Of one step of one configuration."""
        return self.cost.total * (1 / (self.workload.seeds * self.workload.configs))


def for_platform(model: Any, platform: str) -> Any:
    """A network in the form of a platform, where it has several."""
    return model.clone(platform=platform) if hasattr(model, "platform") else model


def compile_chunk(workload: Workload, target: Target) -> CompiledChunk:
    """Compile the whole chunk program of a sweep for one device, as the sweep does there; makes no arrays.

    Call it within the run's `training.xla.precision`.

    Args:
        workload: what to compile.
        target: for which device.

    Raises:
        MissingDependencyError: nothing here compiles for it.
        ConfigError: the compiler does not start, such as when another process uses it.
    """
    check_installed(target)
    prepare_jax(target)

    import jax

    from periodic_jax.sweeps.compiled import ShardedPrograms
    from periodic_jax.sweeps.programs import Programs

    mesh = jax.sharding.Mesh([_device(target)], ("device",))
    spec = workload.spec
    programs = Programs(workload.layout, spec, workload.images, workload.capacity, target.platform)
    arguments = _abstract_arguments(workload._replace(model=for_platform(workload.model, target.platform)), mesh)
    compiled: Any = ShardedPrograms(programs, mesh, workload.deterministic).chunk.lower(*arguments).compile()
    text = compiled.as_text()
    layers = {*arguments[0].params, *arguments[0].batch_stats}
    cost = chunk_cost(text, layers, measured_every=spec.track_sharpness or 1)
    analysis = compiled.memory_analysis()
    return CompiledChunk(target, workload, text, cost, int(analysis.temp_size_in_bytes))


def compile_layouts(workload: Workload, layouts: Sequence[str], target: Target) -> list[CompiledChunk]:
    """The chunk program in each layout whose program fits the device.

    Args:
        workload: what to compile, in any layout.
        layouts: to compile in.
        target: the device.

    Raises:
        ConfigError: none of them fits; or as `compile_chunk`.
    """
    import jax

    from periodic_jax.sweeps.autotune import is_out_of_memory

    chunks = []
    for layout in layouts:
        LOG.info("compiling for %s with layout %s", target.name, layout)
        try:
            chunks.append(compile_chunk(workload._replace(layout=layout), target))
        except jax.errors.JaxRuntimeError as error:  # compilers for TPUs refuse what is too large
            if not is_out_of_memory(error):
                raise
    if not chunks:
        remedy = "give a device with more memory, more --shards, or a smaller --width or --batch-size"
        raise UsageError("--for", f"no program fits the memory of {target.name}", remedy)
    return chunks


def _device(target: Target) -> Any:
    from jax.experimental import topologies

    options: dict[str, Any] = {"topology_name": target.topology}
    if target.gpu:
        options = {"topology": "1x1x1", "target_config": target.description()}
    with _starting(target):
        return topologies.get_topology_desc(platform=target.platform, **options).devices[0]


@contextlib.contextmanager
def _starting(target: Target) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        accepted = "a device that this installation compiles for, by one process at a time"
        raise ConfigError("--for", f"{target.name} ({first_line(error)})", accepted) from None


def _abstract_arguments(workload: Workload, mesh: Any) -> tuple[Any, ...]:
    """Of `Programs.chunk`: shapes, dtypes and where they are."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from periodic_jax.core.grid import HParams
    from periodic_jax.models.adapters import input_dtype
    from periodic_jax.training.input_pipeline import DeviceData
    from periodic_jax.training.state import create_train_state

    model, spec = workload.model, workload.spec
    dtype = input_dtype(model)
    replicated, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P("device"))
    stacked = workload.seeds, workload.configs

    def array(dtype: Any, *shape: int, sharding: Any = replicated) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def create(images: Any) -> Any:
        return create_train_state(
            model, model.labels(), jax.random.key(0), images, loss=spec.loss, schedule=spec.schedule,
            per_filter=spec.per_filter, optimizer=spec.optimizer,
        )  # fmt: skip

    one = jax.eval_shape(create, array(dtype, 2, *workload.image_shape))
    states = jax.tree.map(lambda leaf: array(leaf.dtype, *stacked, *leaf.shape, sharding=divided), one)
    hparams = HParams(*(array(dtype, *stacked, sharding=divided) for _ in HParams._fields))
    seeds, number = array(jnp.uint32, workload.seeds, sharding=divided), array(jnp.int32)
    images, labels = (
        [array(kind, count, *shape) for count in (workload.images, workload.test_images)]
        for kind, shape in ((jnp.uint8, workload.image_shape), (jnp.int32, ()))
    )
    constants = array(dtype, workload.image_shape[-1])
    data = DeviceData(images[0], labels[0], images[1], labels[1], constants, constants)
    return states, hparams, seeds, data, number, number
