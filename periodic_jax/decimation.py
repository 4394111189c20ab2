"""Which steps of long curves to draw, so that every jump stays visible. NumPy only."""

import numpy as np


def extremes(curves: np.ndarray, buckets: int) -> np.ndarray:
    """Positions of the lowest and the highest value of each curve in each of ``buckets`` equal stretches, and of the
    first and last known one.

    Curves drawn through these points alone have the same extremes in every stretch as the whole ones.

    Args:
        curves: ``(curves, steps)`` of floats; NaN and infinities are unknown.
        buckets: stretches, from 1.

    Returns:
        Positions in ascending order, each once: all known ones where the steps are no more than two a stretch.

    Example:
        >>> extremes(np.array([[3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 0.0, 5.0]]), 2).tolist()
        [0, 1, 3, 4, 6, 7]
    """
    known = np.isfinite(curves)
    somewhere = np.flatnonzero(known.any(0))
    if not len(somewhere) or curves.shape[1] <= 2 * buckets:
        return somewhere
    size = -(-curves.shape[1] // buckets)
    padding = ((0, 0), (0, -curves.shape[1] % size))
    chosen = [somewhere[:1], somewhere[-1:]]
    for missing, choose in ((np.inf, np.argmin), (-np.inf, np.argmax)):
        filled = np.pad(np.where(known, curves, missing), padding, constant_values=missing)
        places = choose(filled.reshape(len(curves), -1, size), axis=2) + size * np.arange(filled.shape[1] // size)
        chosen.append(np.unique(places))
    places = np.unique(np.concatenate(chosen))
    # A stretch in which nothing is known answers with its first place, which may lie behind the last step.
    return places[np.isin(places, somewhere, assume_unique=True)]
