"""Effective learning rate times sharpness before destabilisations, against the threshold of theory. NumPy only.

Near a minimum of sharpness S on the unit sphere a step multiplies the tangent component by 1 - (η̃/a)S, so the minimum
is left where η̃S/a exceeds 2, or about 2(1+μ) with momentum. Each measurement is of one mini-batch; what decides is
their mean over some mini-batches.
"""

from typing import NamedTuple

import numpy as np

from periodic_jax.analysis.periods import Periods

AT_ONSET = 0.1  # of a fall, its last part, counts as the onset
CALM = 0.5  # of a fall, its first part, counts as phase A
LEAST = 3  # measurements that make a mean


class Stability(NamedTuple):
    """Means over measurements before each destabilisation, ``(configs, most)``; NaN where there are too few."""

    onset_elr_times_sharpness: np.ndarray  # over the last tenth of the fall, and at least the last `LEAST` measurements
    fall_elr_times_sharpness: np.ndarray  # over the first half of the fall


def before_onsets(elr_times_sharpness: np.ndarray, periods: Periods) -> Stability:
    """What was measured before each destabilisation.

    Args:
        elr_times_sharpness: ``(configs, steps)``, NaN where nothing was measured.
        periods: the destabilisations of the same configurations.

    Example:
        >>> curve = np.where(np.arange(100) % 2 == 0, np.arange(100) / 50, np.nan)[None]
        >>> periods = Periods(*(np.full((1, 1), np.nan) for _ in Periods._fields))
        >>> periods = periods._replace(found=np.ones(1), onset=np.full((1, 1), 98.0), fall=np.zeros((1, 1)))
        >>> [round(float(part[0, 0]), 2) for part in before_onsets(curve, periods)]
        [1.88, 0.48]
    """
    at_onset, calm = np.full((2, *periods.onset.shape), np.nan)
    measured = np.isfinite(elr_times_sharpness)
    for i, k in zip(*np.nonzero(np.isfinite(periods.onset) & np.isfinite(periods.fall)), strict=True):
        onset, fall = int(periods.onset[i, k]), int(periods.fall[i, k])
        steps = np.flatnonzero(measured[i, fall : onset + 1]) + fall
        if len(steps) < 2 * LEAST:
            continue
        late = max(int((steps >= onset - AT_ONSET * (onset - fall)).sum()), LEAST)
        early = steps[steps <= fall + CALM * (onset - fall)]
        at_onset[i, k] = elr_times_sharpness[i, steps[-late:]].mean()
        if len(early) >= LEAST:
            calm[i, k] = elr_times_sharpness[i, early].mean()
    return Stability(at_onset, calm)
