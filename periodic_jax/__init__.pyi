from . import analysis, data, dynamics, models, plots
from ._version import __version__
from .analysis.periods import detect_periods
from .analysis.regimes import classify_regimes
from .core.errors import (
    ConfigError,
    CorruptedRunError,
    MissingDependencyError,
    PeriodicJaxError,
    RunInterrupted,
    RunNotFoundError,
)
from .core.grid import HParams, SweepGrid
from .inspection import minima
from .reporting import tables
from .runs.branch import branch_run
from .runs.callbacks import RunCallbacks
from .runs.config import RunConfig
from .runs.run import RunResult, resume_run, run_sweep
from .storage.reader import open_run
from .training.optimizers import project_to_sphere, sphere_sgd
from .training.state import Batch, TrainState, create_train_state
from .training.step import eval_step, train_step
from .training.tracking import track_dynamics

__all__ = [
    "Batch",
    "ConfigError",
    "CorruptedRunError",
    "HParams",
    "MissingDependencyError",
    "PeriodicJaxError",
    "RunCallbacks",
    "RunConfig",
    "RunInterrupted",
    "RunNotFoundError",
    "RunResult",
    "SweepGrid",
    "TrainState",
    "__version__",
    "analysis",
    "branch_run",
    "classify_regimes",
    "create_train_state",
    "data",
    "detect_periods",
    "dynamics",
    "eval_step",
    "minima",
    "models",
    "open_run",
    "plots",
    "project_to_sphere",
    "resume_run",
    "run_sweep",
    "sphere_sgd",
    "tables",
    "track_dynamics",
    "train_step",
]
