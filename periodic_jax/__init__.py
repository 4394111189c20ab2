"""Periodic training dynamics of scale-invariant networks with weight decay, for whole hyperparameter grids at once.

Names are loaded on first use, so ``import periodic_jax`` is cheap and looking at results needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from periodic_jax._version import __version__
from periodic_jax.runtime import guard_xla_flags

guard_xla_flags()

if TYPE_CHECKING:
    from periodic_jax import analysis, data, dynamics, models, plots, tables
    from periodic_jax.branch import branch_run
    from periodic_jax.errors import ConfigError
    from periodic_jax.grid import HParams, SweepGrid
    from periodic_jax.optim import project_to_sphere, sphere_sgd, track_dynamics
    from periodic_jax.periods import detect_periods
    from periodic_jax.regimes import classify_regimes
    from periodic_jax.results import open_run
    from periodic_jax.run import RunConfig, resume_run, run_sweep
    from periodic_jax.train import Batch, TrainState, create_train_state, eval_step, train_step

_HOME = {
    "ConfigError": "errors",
    "HParams": "grid",
    "SweepGrid": "grid",
    "sphere_sgd": "optim",
    "project_to_sphere": "optim",
    "track_dynamics": "optim",
    "Batch": "train",
    "TrainState": "train",
    "create_train_state": "train",
    "train_step": "train",
    "eval_step": "train",
    "RunConfig": "run",
    "run_sweep": "run",
    "resume_run": "run",
    "branch_run": "branch",
    "open_run": "results",
    "detect_periods": "periods",
    "classify_regimes": "regimes",
}
_MODULES = (
    "analysis",
    "data",
    "dynamics",
    "forecast",
    "grid",
    "minima",
    "models",
    "optim",
    "periods",
    "plots",
    "results",
    "run",
    "regimes",
    "report",
    "sweep",
    "tables",
    "theory",
    "train",
)

__all__ = [  # noqa: RUF022 (in the order of use)
    "HParams", "SweepGrid", "RunConfig", "run_sweep", "resume_run", "branch_run", "open_run",
    "Batch", "TrainState", "create_train_state", "train_step", "eval_step",
    "sphere_sgd", "project_to_sphere", "track_dynamics",
    "detect_periods", "classify_regimes", "ConfigError",
    "analysis", "data", "dynamics", "models", "plots", "tables", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"periodic_jax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"periodic_jax.{_HOME[name]}"), name)
    raise AttributeError(f"module 'periodic_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
