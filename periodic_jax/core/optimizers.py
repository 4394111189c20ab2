"""The built-in optimisers by name: which hyperparameters each reads, and what the analysis must know of it. No JAX."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import HParams


class Optimizer(NamedTuple):
    """What is known of an optimiser beside its update."""

    reads: tuple[str, ...]  # the fields of `HParams` that only some optimisers read, of `SPECIAL`
    is_sgd: bool  # its update is a sum of gradients times η: the effective learning rate is η/ρ²
    is_decoupled: bool  # weight decay is no part of the gradient, so without one the weights shrink by a = 1 - ηλ


SPECIAL = ("momentum", "elr", "beta1", "beta2", "eps")
OPTIMIZERS = {
    "sgd": Optimizer(("momentum", "elr"), is_sgd=True, is_decoupled=False),
    "sgdw": Optimizer(("momentum", "elr"), is_sgd=True, is_decoupled=True),
    "nesterov": Optimizer(("momentum", "elr"), is_sgd=True, is_decoupled=False),
    "adam": Optimizer(("beta1", "beta2", "eps"), is_sgd=False, is_decoupled=False),
    "adamw": Optimizer(("beta1", "beta2", "eps"), is_sgd=False, is_decoupled=True),
    "lion": Optimizer(("beta1", "beta2"), is_sgd=False, is_decoupled=True),
}
UNKNOWN = Optimizer((), is_sgd=False, is_decoupled=False)


def find_optimizer(name: str) -> Optimizer:
    """A built-in optimiser, or `UNKNOWN`, of which nothing is taken for granted."""
    return OPTIMIZERS.get(name, UNKNOWN)


def check_hyperparameters(name: str, axes: Mapping[str, Any]) -> None:
    """Refuse an unknown optimiser, and hyperparameters that it does not read.

    Args:
        name: a key of `OPTIMIZERS`.
        axes: values of each axis of the grid, by name.

    Raises:
        ConfigError: there is no such optimiser, or one of `SPECIAL` that it does not read is not at its default.

    Example:
        >>> check_hyperparameters("adamw", {"beta1": (0.9, 0.95), "momentum": (0.0,)})
    """
    if name not in OPTIMIZERS:
        raise ConfigError("--optimizer", name, "one of " + ", ".join(OPTIMIZERS))
    for axis in SPECIAL:
        given = np.atleast_1d(axes.get(axis, getattr(HParams(), axis)))
        if axis not in OPTIMIZERS[name].reads and (given != getattr(HParams(), axis)).any():
            users = ", ".join(other for other, optimizer in OPTIMIZERS.items() if axis in optimizer.reads)
            raise UsageError(
                flag_of(axis), f"--optimizer {name} does not read it", f"leave it out, or give one of {users}"
            )
