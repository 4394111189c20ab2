"""Analyses recorded trajectories: periods, regimes, agreement with theory, forecasts. NumPy and SciPy only."""

from periodic_jax.analysis.logs import Log, log_dataset, read_log
from periodic_jax.analysis.periods import Cycles, Periods, cycles, detect_periods
from periodic_jax.analysis.pipeline import MOST_IN_MEMORY, analyze
from periodic_jax.analysis.regimes import Regimes, classify_regimes, rotation_pace
from periodic_jax.analysis.theory_checks import Theory, Trajectory, check_theory

__all__ = [  # noqa: RUF022 (grouped)
    "MOST_IN_MEMORY", "analyze", "Periods", "detect_periods", "Cycles", "cycles", "Regimes", "classify_regimes",
    "rotation_pace", "Theory", "Trajectory", "check_theory", "Log", "log_dataset", "read_log",
]  # fmt: skip
