"""What a sweep will take, before it is run: configurations of a device, memory, disk, time, and how many shards to use.

Bytes and files follow from shapes. Time is measured: a few configurations of the same network and data are trained for
a moment on this machine's devices. For a device that is not here it is a lower bound, from a compiled program.
"""

import dataclasses
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from periodic_jax.analysis.online import most_periods
from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.files import used_bytes
from periodic_jax.core.formatting import counted, format_bytes, format_duration
from periodic_jax.core.grid import RUN_AXES, SweepGrid
from periodic_jax.runs import build
from periodic_jax.runs.config import RunConfig
from periodic_jax.storage.writer import along_steps, regular_chunk
from periodic_jax.sweeps.placement import device_shape
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionPlan
    from periodic_jax.sweeps.compilation import CompiledChunk
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.sweeps.targets import Target


FRAMING = 2**15  # bytes of a minimum beside its weights
MOST_BYTES = 10**12  # of a shard's telemetry
COMPILED = 4096  # configurations, at most, of a program that is compiled to be counted
AT_ONCE = 32  # configurations that an accelerator's device trains in the measurement
USABLE = 0.8  # of a device's memory


class ShardLimits(NamedTuple):
    """What a shard may take."""

    hours: float = 24.0  # so that it fits a batch system's queue, and little is lost with one
    device_memory: int | None = None  # bytes, of which `USABLE` are used; None: not known


USUAL_LIMITS = ShardLimits()


@dataclass(frozen=True)
class ResourceEstimate:
    """What a run takes. Memory is that of one device; what is on disk is taken as if it could not be compressed."""

    data_bytes: int
    state_bytes: int  # of training states, their copy for a checkpoint, and candidates for minima
    record_bytes: int  # of what is recorded in a chunk, while the chunk before is fetched
    telemetry_bytes: int
    telemetry_files: int
    checkpoint_bytes: int  # of all that are kept at a time
    minima_bytes: int  # at most, of the saved minima; 0 where none are saved
    temporary_bytes: int = 0  # of the compiled program; 0 where it was not measured
    seconds: float = math.nan  # from the first step to the last; NaN where it was not measured

    @property
    def memory_bytes(self) -> int:
        """Memory of one device."""
        return self.data_bytes + self.state_bytes + self.record_bytes + self.temporary_bytes

    @property
    def disk_bytes(self) -> int:
        """Room on disk."""
        return self.telemetry_bytes + self.checkpoint_bytes + self.minima_bytes


class SweepPlan(NamedTuple):
    """How a sweep would run, and what it takes."""

    configs: int
    steps: int
    devices: int
    seeds_per_device: int  # groups of configurations of one seed ...
    configs_per_seed: int  # ... and configurations of each, padding included
    layout: str
    seconds_per_config_step: float  # of one device
    estimate: ResourceEstimate
    compiled: "CompiledChunk | None" = None  # of a device that is not here, from which the time follows
    idle: int = 0  # devices without a configuration


def estimate_resources(sweep: "Sweep", grid: SweepGrid, plan: "SessionPlan") -> ResourceEstimate:
    """What follows from shapes alone; compiles nothing.

    Args:
        sweep: of the run's network, data and devices; it may have fewer configurations.
        grid: the run's configurations.
        plan: what the run does.
    """
    steps, configs = plan.steps - plan.first_step, len(grid)
    groups, per_seed = device_shape(grid.seeds_of("data_seed"), len(sweep.placement.devices))
    shapes = sweep.empty_telemetry()
    numbers = [math.prod(empty.shape[2:]) for empty in shapes.values()]
    itemsize, per_chunk = shapes["loss"].dtype.itemsize, regular_chunk(configs)
    files = sum(-(-steps // along_steps(per_chunk, number)) for number in numbers) + len(sweep.evaluations) + 1
    saved, candidates, minima = sweep.bytes_of_a_state(), 0, 0
    if every := plan.keep_period_minima:
        weights = sweep.bytes_of_weights()
        minima = bytes_of_minima(grid, steps, every, weights)
        candidates = 2 * weights  # the lowest ones, and the one that is looked at
        saved += weights + 2 * every * itemsize
    checkpoints = plan.keep + 1 + (steps // plan.keep_every if plan.keep_every else 0)
    return ResourceEstimate(
        data_bytes=sweep.bytes_of_data(),
        state_bytes=groups * per_seed * (2 * sweep.bytes_of_a_state() + candidates),
        record_bytes=2 * groups * per_seed * sweep.capacity * sum(numbers) * itemsize,
        telemetry_bytes=configs * itemsize * (steps * sum(numbers) + len(plan.eval_steps) * len(sweep.evaluations)),
        telemetry_files=files * -(-configs // per_chunk), checkpoint_bytes=checkpoints * configs * saved,
        minima_bytes=minima,
    )  # fmt: skip


def bytes_of_minima(grid: SweepGrid, steps: int, every: int, size: int) -> int:
    """The most that the minima of a run's periods can take; see `analysis.online.most_periods`.

    Args:
        grid: the configurations.
        steps: of the run.
        every: steps between candidates.
        size: bytes of one configuration's weights.
    """
    hparams = grid.hparams()
    shrink = np.minimum(hparams.lr * hparams.weight_decay / (1 - hparams.momentum), 0.99)
    # A fixed effective learning rate sets the rate by the norm: nothing but the windows bounds the periods there.
    rate = np.where(hparams.elr > 0, np.inf, -np.log1p(-shrink))
    return int((most_periods(steps, every, rate) + 1).sum()) * (size + FRAMING)


def check_room(estimate: ResourceEstimate, path: Path) -> None:
    """Refuse a run for which there is no room.

    Args:
        estimate: of the run.
        path: the run directory, which may hold a part of it.

    Raises:
        ConfigError: the estimate, less what is there already, is above the free space.
    """
    wanted, free = estimate.disk_bytes - used_bytes(path), shutil.disk_usage(path).free
    if wanted > free:
        room = f"with {format_bytes(wanted)} free, which the run may take (there are {format_bytes(free)})"
        raise ConfigError("--out", path, f"a folder {room}")


def plan(config: RunConfig) -> SweepPlan:
    """What a sweep takes on a machine like this one.

    Args:
        config: what to run, checked.
    """
    import jax

    grid, session = config.grid(), build.plan_session(config, {})
    with xla.precision(config.precision):
        sweep = build.build_sweep(dataclasses.replace(config, **_few(config, len(grid))))
        devices = len(sweep.placement.devices)
        measured = -(-len(sweep.grid) // devices)  # configurations of a device
        pace, evaluation = sweep.seconds_per_step() / measured, sweep.seconds_per_evaluation() / measured
        temporary, eigenvalue = sweep.bytes_of_temporaries(), sweep.seconds_per_eigenvalue() / measured
    groups, per_seed = device_shape(grid.seeds_of("data_seed"), devices)
    eigenvalues = -(-session.steps // (config.track_eigenvalue or session.steps))
    each = session.steps * pace + len(session.eval_steps) * evaluation + eigenvalues * eigenvalue
    seconds = groups * per_seed * each
    at_once = groups * per_seed // measured if sweep.layout in ("vmap", "unroll") else 1
    estimate = dataclasses.replace(
        estimate_resources(sweep, grid, session), temporary_bytes=temporary * at_once, seconds=seconds
    )
    idle = max(jax.local_device_count() - devices, 0)
    return SweepPlan(len(grid), session.steps, devices, groups, per_seed, sweep.layout, pace, estimate, idle=idle)


def plan_for(config: RunConfig, target: "Target") -> SweepPlan:
    """What a sweep takes on one device that is not here: of each layout's program, the fastest that fits.

    The time is a lower bound, or for a TPU XLA's own estimate.

    Args:
        config: what to run, checked.
        target: the device.

    Raises:
        ConfigError: its compiler does not start, or no program fits its memory.
    """
    from periodic_jax.models.imported import is_import_path
    from periodic_jax.sweeps import autotune, compilation

    if is_import_path(config.model):
        raise UsageError("--for", f"it plans for built-in networks, and not for {config.model}", "leave it out")
    target.check_precision(config.precision)
    grid, session, data = config.grid(), build.plan_session(config, {}), config.data
    groups, per_seed = device_shape(grid.seeds_of("data_seed"), 1)
    each, seeds = groups * per_seed, min(groups, COMPILED)
    configs = min(per_seed, max(COMPILED // seeds, 1))
    tried = autotune.candidates(target.platform, per_seed, config.width)
    layouts = tried if config.layout == "auto" else [config.layout]
    with xla.precision(config.precision):
        sweep = build.build_sweep(dataclasses.replace(config, **_one(config)))
        shapes = compilation.Workload(
            build.network(config, data.num_classes), sweep.spec, data.image_shape, layouts[0], configs, seeds=seeds,
            images=len(data.images), test_images=len(data.test_images), capacity=sweep.capacity,
            deterministic=config.deterministic,
        )  # fmt: skip
        chunks = compilation.compile_layouts(shapes, layouts, target)
    bare = estimate_resources(sweep, grid, session)

    def pace(chunk: "CompiledChunk") -> float:
        return target.cycle_seconds(chunk.step_cost) or target.seconds(chunk.step_cost, config.precision)

    def estimate(chunk: "CompiledChunk") -> ResourceEstimate:
        temporary, seconds = chunk.temporary_bytes * each / (seeds * configs), each * session.steps * pace(chunk)
        return dataclasses.replace(bare, temporary_bytes=int(temporary), seconds=seconds)

    def rank(chunk: "CompiledChunk") -> tuple[bool, float]:
        return estimate(chunk).memory_bytes > USABLE * target.memory, pace(chunk)

    best = min(chunks, key=rank)
    layout = best.workload.layout
    return SweepPlan(len(grid), session.steps, 1, groups, per_seed, layout, pace(best), estimate(best), best)


def shard_count(plan: SweepPlan, limits: ShardLimits = USUAL_LIMITS) -> int:
    """Into how many shards to cut a sweep: none takes longer or more memory than it may, or more than a terabyte of
    disk.

    Args:
        plan: of the whole sweep.
        limits: of a shard.

    Returns:
        The number. More than there are configurations where a shard of one still takes too much.
    """
    estimate = plan.estimate
    wanted = [estimate.seconds / 3600 / limits.hours, estimate.telemetry_bytes / MOST_BYTES]
    if limits.device_memory:
        data = estimate.data_bytes
        room = USABLE * limits.device_memory - data
        wanted.append((estimate.memory_bytes - data) / room if room > 0 else math.inf)
    most = max(wanted)
    return max(math.ceil(most), 1) if math.isfinite(most) else plan.configs + 1


def describe_plan(plan: SweepPlan, config: RunConfig, limits: ShardLimits = USUAL_LIMITS) -> list[str]:
    """A plan in words."""
    each, takes = plan.seeds_per_device * plan.configs_per_seed, plan.estimate
    padding = plan.devices * each - plan.configs
    pace = f"{1e3 * plan.seconds_per_config_step:.3g} ms a config-step of one device, just measured"
    lines = [
        f"{counted(plan.configs, 'configuration')} of {counted(plan.steps, 'step')}: "
        f"{plan.configs * plan.steps:.3g} config-steps",
        f"{counted(plan.devices, 'device')}: {counted(each, 'configuration')} a device, in "
        f"{counted(plan.seeds_per_device, 'group')} of one seed; {padding} in all are padding",
        f"memory of a device: {format_bytes(takes.memory_bytes)}: training states {format_bytes(takes.state_bytes)}, "
        f"records of a chunk {format_bytes(takes.record_bytes)}, data {format_bytes(takes.data_bytes)}, "
        f"temporaries {format_bytes(takes.temporary_bytes)}",
        f"disk: telemetry {format_bytes(takes.telemetry_bytes)} before compression, in {takes.telemetry_files} files; "
        f"checkpoints {format_bytes(takes.checkpoint_bytes)}"
        + (f", minima of periods at most {format_bytes(takes.minima_bytes)}" if takes.minima_bytes else ""),
        f"time: {format_duration(takes.seconds)} with evaluations; {pace} with layout {plan.layout}",
    ]
    if plan.idle:
        there = plan.devices + plan.idle
        lines.insert(2, f"idle: {plan.idle} of {there} devices; {there} configurations would take as long")
    if plan.compiled:
        lines = _as_compiled(lines, plan, plan.compiled)
    number = shard_count(plan, limits)
    if number == 1:
        return [*lines, "shards: not needed" if config.shards is None else "shards: small enough"]
    memory = f"{USABLE:.0%} of {format_bytes(limits.device_memory or 0)} of memory"
    words = f"{limits.hours:g} h, {format_bytes(MOST_BYTES)} of telemetry{f' or {memory}' * bool(limits.device_memory)}"
    shards, whole = number * (config.shards or 1), dataclasses.replace(config, shard=None).size()
    if shards > whole:
        return [*lines, f"shards: even one configuration takes more than {words}"]
    return [*lines, f"shards, so that none takes more than {words}: --shards {shards}"]


def _as_compiled(lines: list[str], plan: SweepPlan, chunk: "CompiledChunk") -> list[str]:
    """The lines of a plan for a device that is not here: whether it fits, and the least time with what it rests on."""
    takes, cost, target = plan.estimate, chunk.step_cost, chunk.target
    # Temporaries grow by no more than in proportion: in a loop one block's are there for all.
    usable, each = USABLE * target.memory, (takes.memory_bytes - takes.data_bytes) / plan.configs
    most, verb = (
        max(int((usable - takes.data_bytes) / each), 0),
        "fits" if takes.memory_bytes <= usable else "does not fit",
    )
    room = f"{USABLE:.0%} of its {format_bytes(target.memory)} hold at least {counted(most, 'configuration')}"
    cycles = f"{1e-6 * cost.cycles:.3g} million cycles, " if cost.cycles else ""
    moved = f"{1e-6 * cost.bytes:.3g} MB, {1e-9 * cost.flops:.3g} GFLOP and {cost.launches:.3g} launches"
    many = counted(chunk.workload.seeds * chunk.workload.configs, "configuration")
    rests = f"{cycles}{moved} a config-step, compiled and counted with {many}, not measured"
    kind = "by XLA's estimated cycles" if target.cycle_seconds(cost) else "at least"
    time = f"{kind} {format_duration(takes.seconds)} without evaluations; {1e3 * plan.seconds_per_config_step:.3g} ms"
    return [
        lines[0],
        f"for {target.title}: {verb}; {room}",
        *lines[1:-1],
        f"time: {time} a config-step of one device with layout {plan.layout}",
        f"which rests on {rests}",
    ]


def device_memory() -> int:
    """Bytes of memory of one device: an accelerator's own, or its part of this machine's."""
    import jax

    stats = jax.devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or build.memory_bytes() // jax.local_device_count())


def _few(config: RunConfig, configs: int) -> dict[str, Any]:
    """Axes of as many configurations as tell the pace: one value of each, but of the learning rate some that are all
    but equal.
    """
    import jax

    devices = min(jax.local_device_count(), configs)
    each = 1 if jax.default_backend() == "cpu" else min(AT_ONCE, -(-configs // devices))
    lr = tuple(config.lr[0] * (1 - 1e-6 * np.arange(max(devices * each, 1))))
    return {**_one(config), "lr": lr}


def _one(config: RunConfig) -> dict[str, Any]:
    """What makes of a grid its first configuration."""
    first = {name: getattr(config, name)[:1] for name in RUN_AXES}
    return {**first, "points": (), "shards": None, "shard": None}
