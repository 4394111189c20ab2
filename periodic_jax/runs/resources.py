"""What a run takes: memory of a device, room on disk, time."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from periodic_jax.analysis.online import most_periods
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import used_bytes
from periodic_jax.core.formatting import format_bytes
from periodic_jax.core.grid import SweepGrid
from periodic_jax.storage.writer import along_steps, regular_chunk
from periodic_jax.sweeps.placement import device_shape

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionPlan
    from periodic_jax.sweeps.sweep import Sweep


FRAMING = 2**15  # bytes of a minimum beside its weights


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


def estimate_resources(sweep: "Sweep", grid: SweepGrid, plan: "SessionPlan") -> ResourceEstimate:
    """What follows from shapes alone; compiles nothing.

    Args:
        sweep: of the run's network, data and devices; it may have fewer configurations.
        grid: the run's configurations.
        plan: what the run does.
    """
    steps, configs = plan.steps - plan.first_step, len(grid)
    groups, per_seed = device_shape(grid.seeds, len(sweep.placement.devices))
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
