"""What the analysis must know of each configuration's optimiser, besides its curves. NumPy only."""

from typing import NamedTuple

import numpy as np
import xarray as xr

from periodic_jax import dynamics
from periodic_jax.core.grid import AXES, SEED_AXES
from periodic_jax.core.optimizers import find_optimizer


class Hyperparameters(NamedTuple):
    """Of each configuration, ``(configs,)``."""

    lr: np.ndarray  # η
    weight_decay: np.ndarray  # λ
    pacing_decay: np.ndarray  # λ where it sets a pace; 0 where norm or effective learning rate are fixed
    pacing_momentum: np.ndarray  # μ of the heavy ball whose weights shrink as fast without gradients
    rotation_momentum: np.ndarray  # μ of the heavy ball that turns as far in equilibrium
    is_free: np.ndarray  # whether the norm is not projected
    is_held: np.ndarray  # whether norm or effective learning rate are fixed
    is_sgd: np.ndarray  # whether the update is a sum of gradients times η
    is_plain: np.ndarray  # whether each step is one of plain SGD, but for a projection
    equilibrium_angle: np.ndarray  # θ*, radians; NaN where it is not known
    equilibrium_gain: np.ndarray  # that of `dynamics.RotationalEquilibrium`
    stability_threshold: np.ndarray  # η̃S at which minima are left

    def select(self, block: slice) -> "Hyperparameters":
        """Those of some configurations."""
        return Hyperparameters(*(values[block] for values in self))


def hyperparameters_of(dataset: xr.Dataset) -> Hyperparameters:
    """Read the hyperparameters of a run.

    Args:
        dataset: a run opened with ``open_run(path, flat=True)``; its optimiser is ``attrs["optimizer"]``, ``sgd`` if
            that is missing.

    Returns:
        The numbers. Where decay sets no pace that is known, as under Adam with coupled decay, ``pacing_decay`` is 0.
    """
    axes = {name: np.asarray(dataset[name].values) for name in AXES if name not in SEED_AXES}
    lr, weight_decay, momentum = axes["lr"], axes["weight_decay"], axes["momentum"]
    name = str(dataset.attrs.get("optimizer", "sgd"))
    optimizer = find_optimizer(name)
    with np.errstate(all="ignore"):  # without decay
        found = dynamics.rotational_equilibrium(name, lr, weight_decay, momentum, axes["beta1"], axes["beta2"])
        equivalent = dynamics.equivalent_momentum(found.angular_step, lr, weight_decay)
        threshold = dynamics.sharpness_limit(1.0, lr, weight_decay, momentum)
    if name == "nesterov":
        threshold = threshold / (1 + 2 * momentum)
    is_free = axes["fixed_norm"] == 0
    is_held = ~is_free | (axes["elr"] != 0)
    is_paced = ~is_held & (optimizer.is_sgd | optimizer.is_decoupled)
    return Hyperparameters(
        lr=lr, weight_decay=weight_decay, pacing_decay=np.where(is_paced, weight_decay, 0.0),
        pacing_momentum=np.where(optimizer.is_decoupled, 0.0, momentum),
        rotation_momentum=momentum if name == "sgd" else np.where(np.isfinite(equivalent), equivalent, 0.0),
        is_free=is_free, is_held=is_held, is_sgd=np.full(lr.shape, optimizer.is_sgd),
        is_plain=(momentum == 0) & optimizer.is_sgd,
        equilibrium_angle=found.angular_step, equilibrium_gain=found.gain,
        stability_threshold=np.where(optimizer.is_sgd, threshold, np.nan),
    )  # fmt: skip
