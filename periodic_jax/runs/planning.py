"""What a sweep will take, before it is run: configurations of each device, memory, disk, time, and how to split it.

Bytes and files follow from shapes. Time is measured: a few configurations of the same network and data are trained for
a moment on this machine's devices.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core import formatting
from periodic_jax.core.formatting import counted, flag_of
from periodic_jax.core.limits import MOST_CONFIGS
from periodic_jax.runs import disk
from periodic_jax.runs.build import build_sweep
from periodic_jax.runs.config import RUN_AXES, RunConfig, evaluated_every, planned_steps
from periodic_jax.storage.writer import along_steps, regular_chunk
from periodic_jax.sweeps.placement import device_shape
from periodic_jax.training import xla

MOST_HOURS = 24.0  # of a block, so that it fits a batch system's queue, and little is lost with one
MOST_BYTES = 10**12  # of a block's telemetry
AT_ONCE = 32  # configurations that an accelerator's device trains in the measurement


class SweepPlan(NamedTuple):
    """What a sweep takes. Bytes of memory are those of one device."""

    configs: int
    steps: int
    devices: int
    rows: int  # of each device ...
    members: int  # ... with so many configurations each, padding included
    layout: str
    data_bytes: int
    state_bytes: int  # of training states, their copy for a checkpoint, and candidates for minima
    record_bytes: int  # of what is recorded in a chunk, while the chunk before is fetched
    temporary_bytes: int  # of the program itself
    telemetry_bytes: int  # uncompressed
    telemetry_files: int
    checkpoint_bytes: int  # of all that are kept at a time
    minima_bytes: int  # at most, of the kept minima; 0 where none are
    seconds_per_config_step: float  # of one device
    seconds_per_config_evaluation: float
    evaluations: int

    @property
    def memory_bytes(self) -> int:
        """Memory of one device."""
        return self.data_bytes + self.state_bytes + self.record_bytes + self.temporary_bytes

    @property
    def seconds(self) -> float:
        """From the first step to the last."""
        one = self.steps * self.seconds_per_config_step + self.evaluations * self.seconds_per_config_evaluation
        return self.rows * self.members * one


def plan(config: RunConfig) -> SweepPlan:
    """What a sweep takes on a machine like this one.

    Args:
        config: what to run, checked.
    """
    grid, steps = config.grid(), planned_steps(config)
    per_chunk = regular_chunk(len(grid))
    with xla.precision(config.precision):
        sweep = build_sweep(dataclasses.replace(config, **_few(config, len(grid))))
        local = -(-len(sweep.grid) // len(sweep.placement.devices))
        pace, evaluation = sweep.seconds_per_step() / local, sweep.seconds_per_evaluation() / local
        temporary = sweep.bytes_of_temporaries()
    devices = len(sweep.placement.devices)
    rows, members = device_shape(grid.seeds, devices)
    evaluations = -(-steps // evaluated_every(config)) + 1
    shapes = sweep.empty_telemetry()
    numbers = {name: math.prod(empty.shape[2:]) for name, empty in shapes.items()}
    itemsize, chunks = shapes["loss"].dtype.itemsize, -(-len(grid) // per_chunk)
    files = sum(chunks * -(-steps // along_steps(per_chunk, number)) for number in numbers.values())
    files += chunks * (len(sweep.evaluations) * -(-evaluations // max(evaluations, 100)) + 1)
    kept = config.keep + 1 + (steps // config.keep_every if config.keep_every else 0)
    one, weights, minima = sweep.bytes_of_a_state(), 0, 0
    if every := config.keep_period_minima:
        minima = disk.bytes_of_minima(grid, steps, every, sweep.bytes_of_weights())
        weights = 2 * sweep.bytes_of_weights()  # of the lowest candidates, and the one that is looked at
        one += weights // 2 + 2 * every * itemsize
    return SweepPlan(
        configs=len(grid), steps=steps, devices=devices, rows=rows, members=members,
        layout=sweep.layout, data_bytes=sweep.bytes_of_data(),
        state_bytes=rows * members * (2 * sweep.bytes_of_a_state() + weights),
        record_bytes=2 * rows * members * sweep.capacity * sum(numbers.values()) * itemsize,
        temporary_bytes=temporary * (rows * members // local if sweep.layout in ("vmap", "unroll") else 1),
        telemetry_bytes=len(grid) * itemsize * (steps * sum(numbers.values()) + evaluations * len(sweep.evaluations)),
        telemetry_files=files, checkpoint_bytes=kept * len(grid) * one, minima_bytes=minima,
        seconds_per_config_step=pace, seconds_per_config_evaluation=evaluation, evaluations=evaluations,
    )  # fmt: skip


def fitting_part(config: RunConfig) -> tuple[RunConfig, str]:
    """The first of the runs that a grid must be cut into because a run may not have so many configurations, and which
    it is, in words; the whole where it may.
    """
    configs = math.prod(len(getattr(config, axis)) for axis in RUN_AXES)
    name = max(RUN_AXES, key=lambda axis: len(getattr(config, axis)))
    values = getattr(config, name)
    each = max(MOST_CONFIGS * len(values) // configs, 1)
    if configs <= MOST_CONFIGS:
        return config, ""
    runs = -(-len(values) // each)
    said = (
        f"{configs} configurations, and a run may have {MOST_CONFIGS}: this is of one of {runs} runs, "
        f"with {each} of the {len(values)} values of {flag_of(name)}"
    )
    part: dict[str, Any] = {name: values[:each]}
    return dataclasses.replace(config, **part), said


def split_count(plan: SweepPlan, device_memory: int | None = None) -> int:
    """Into how many independent runs to split a sweep: none takes longer than a day, more than a terabyte, or more
    memory than a device has.

    Args:
        plan: of the whole sweep.
        device_memory: bytes, where they are known.
    """
    return min(max(math.ceil(_parts(plan, device_memory)), 1), plan.configs)


def _parts(plan: SweepPlan, device_memory: int | None) -> float:
    """How many times too large a sweep is for one run."""
    wanted = [plan.seconds / 3600 / MOST_HOURS, plan.telemetry_bytes / MOST_BYTES]
    if device_memory:
        wanted.append((plan.memory_bytes - plan.data_bytes) / max(0.8 * device_memory - plan.data_bytes, 1))
    return max(wanted)


def describe_plan(plan: SweepPlan, config: RunConfig, device_memory: int | None = None) -> list[str]:
    """A plan in words."""
    words = formatting.format_bytes
    each = plan.rows * plan.members
    padding = plan.devices * each - plan.configs
    pace = f"{1e3 * plan.seconds_per_config_step:.3g} ms a config-step of one device, just measured"
    lines = [
        f"{counted(plan.configs, 'configuration')} of {counted(plan.steps, 'step')}: "
        f"{plan.configs * plan.steps:.3g} config-steps",
        f"{counted(plan.devices, 'device')}: {counted(each, 'configuration')} a device, in "
        f"{counted(plan.rows, 'row')} of one seed; {padding} in all are padding",
        f"memory of a device: {words(plan.memory_bytes)}: training states {words(plan.state_bytes)}, records of a "
        f"chunk {words(plan.record_bytes)}, data {words(plan.data_bytes)}, temporaries {words(plan.temporary_bytes)}",
        f"disk: telemetry {words(plan.telemetry_bytes)} before compression, in {plan.telemetry_files} files; "
        f"checkpoints {words(plan.checkpoint_bytes)}"
        + (f", minima of periods at most {words(plan.minima_bytes)}" if plan.minima_bytes else ""),
        f"time: {_duration(plan.seconds)} with evaluations; {pace} with layout {plan.layout}",
    ]
    number = split_count(plan, device_memory)
    if number == 1:
        return [*lines, "to split it: not needed"]
    name = max(RUN_AXES, key=lambda axis: len(getattr(config, axis)))
    values = len(getattr(config, name))
    most = max(int(values / _parts(plan, device_memory)), 1)
    runs = -(-values // most)
    fewest, rest = divmod(values, runs)
    each = f"{fewest} or {fewest + 1}" if rest else f"{fewest}"
    more = "" if runs >= number else f"; that is not enough, so split a second axis into {-(-number // runs)} parts too"
    limits = f"{MOST_HOURS:g} h, {words(MOST_BYTES)} and a device's memory"
    return [
        *lines,
        f"to split it, so that no run takes more than {limits}: {runs} independent runs, each with {each} of the "
        f"{values} values of {flag_of(name)} and a folder of its own{more}",
    ]


def device_memory() -> int | None:
    """Bytes of memory of one device: an accelerator's own, or its part of this machine's; None where unknown."""
    import os

    import jax

    stats = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    except (ValueError, OSError, AttributeError):
        return None


def _few(config: RunConfig, configs: int) -> dict[str, tuple[float, ...]]:
    """Axes of as many configurations as tell the pace: one value of each, but of the learning rate some that are all
    but equal.
    """
    import jax

    devices = min(jax.local_device_count(), configs)
    each = 1 if jax.default_backend() == "cpu" else min(AT_ONCE, -(-configs // devices))
    lr = tuple(config.lr[0] * (1 - 1e-6 * np.arange(max(devices * each, 1))))
    return {**{name: getattr(config, name)[:1] for name in RUN_AXES}, "lr": lr}


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
