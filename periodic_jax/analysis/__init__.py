"""What recorded trajectories say: periods, regimes, theory, forecasts. NumPy and SciPy only."""

from periodic_jax.analysis.periods import Periods, detect_periods
from periodic_jax.analysis.pipeline import MOST_IN_MEMORY, analyze
from periodic_jax.analysis.regimes import Regimes, classify_regimes

__all__ = ["MOST_IN_MEMORY", "Periods", "Regimes", "analyze", "classify_regimes", "detect_periods"]
