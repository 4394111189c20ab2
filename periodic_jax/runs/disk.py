"""How much room a run takes on disk."""

import shutil
from typing import TYPE_CHECKING

import numpy as np

from periodic_jax.analysis.online import most_periods
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import used_bytes
from periodic_jax.core.formatting import format_bytes
from periodic_jax.core.grid import SweepGrid

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionPlan
    from periodic_jax.sweeps.sweep import Sweep


FRAMING = 2**15  # bytes of a minimum beside its weights


def estimate_disk(sweep: "Sweep", plan: "SessionPlan") -> int:
    """Bytes that a run may take: telemetry as if it could not be compressed, and its checkpoints.

    Args:
        sweep: the configurations.
        plan: the run.
    """
    steps, configs = plan.steps - plan.first_step, len(sweep.grid)
    shapes = sweep.empty_telemetry()
    per_step = sum(array.dtype.itemsize * int(np.prod(array.shape[2:])) for array in shapes.values())
    per_evaluation = shapes["loss"].dtype.itemsize * len(sweep.evaluations)
    state = configs * sweep.bytes_of_a_state()
    kept = plan.keep + 1 + (steps // plan.keep_every if plan.keep_every else 0)
    minima = 0
    if every := plan.keep_period_minima:
        minima = bytes_of_minima(sweep.grid, steps, every, sweep.bytes_of_weights())
        state += configs * (sweep.bytes_of_weights() + 2 * every * shapes["loss"].dtype.itemsize)
    return configs * (steps * per_step + len(plan.eval_steps) * per_evaluation) + kept * state + minima


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


def check_room(sweep: "Sweep", plan: "SessionPlan") -> None:
    """Refuse a run for which there is no room.

    Raises:
        ConfigError: the estimate, less what is there already, is above the free space.
    """
    wanted, free = estimate_disk(sweep, plan) - used_bytes(plan.path), shutil.disk_usage(plan.path).free
    if wanted > free:
        room = f"with {format_bytes(wanted)} free, which the run may take (there are {format_bytes(free)})"
        raise ConfigError("--out", plan.path, f"a folder {room}")
