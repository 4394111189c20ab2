"""Cuts the configurations of a run into blocks, so that temporary arrays stay small. NumPy only."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

MOST_AT_ONCE = 2**18  # numbers in one temporary array, or one configuration's: 2 MB in float64 stay in the cache
Result = TypeVar("Result", bound=tuple[Any, ...])


def configs_in_cache(steps: int) -> int:
    """Number of configurations, at least one, whose curves of so many steps have at most `MOST_AT_ONCE` numbers."""
    return max(MOST_AT_ONCE // max(steps, 1), 1)


def map_blocks(compute: Callable[[slice], Result], configs: int, size: int) -> Result:
    """Compute results block by block of configurations, and stack them.

    Args:
        compute: takes a slice of the configurations; returns a NamedTuple of arrays with the configurations first, of
            such NamedTuples, or of None.
        configs: number of configurations.
        size: configurations of a block, at least 1.

    Returns:
        The NamedTuple for all configurations. Arrays ``(block, columns)`` of fewer columns end in NaN.

    Example:
        >>> from typing import NamedTuple
        >>> class Sums(NamedTuple):
        ...     total: np.ndarray
        >>> curves = np.arange(6).reshape(3, 2)
        >>> map_blocks(lambda block: Sums(curves[block].sum(1)), configs=3, size=2).total.tolist()
        [1, 5, 9]
    """
    return _stack([compute(slice(first, min(first + size, configs))) for first in range(0, max(configs, 1), size)])


def _stack(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], tuple):
        return type(parts[0])(*map(_stack, zip(*parts, strict=True)))
    if parts[0] is None or len(parts) == 1:
        return parts[0]
    if parts[0].ndim > 1:
        most = max(part.shape[1] for part in parts)
        parts = [np.pad(p, ((0, 0), (0, most - p.shape[1])), constant_values=np.nan) for p in parts]
    return np.concatenate(parts)
