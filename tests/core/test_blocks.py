"""Blocks of configurations: whatever their size, the stacked result is that of all configurations at once."""

from typing import NamedTuple

import numpy as np
import pytest

from periodic_jax.core import blocks
from periodic_jax.core.blocks import configs_in_cache, map_blocks


class Inner(NamedTuple):
    events: np.ndarray
    nothing: None


class Outer(NamedTuple):
    total: np.ndarray
    inner: Inner


CURVES = np.arange(20.0).reshape(5, 4)
COUNTS = np.array([2, 0, 1, 4, 3])


def compute(rows):
    """Sums, and as many events as the block's longest configuration has, NaN behind each configuration's last."""
    most = COUNTS[rows].max(initial=0)
    events = np.where(np.arange(most) < COUNTS[rows, None], CURVES[rows, :most], np.nan)
    return Outer(CURVES[rows].sum(1), Inner(events, None))


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 9])
def test_blocks_are_stacked_as_if_there_were_one(rows):
    sizes = []
    result = map_blocks(lambda block: sizes.append(len(CURVES[block])) or compute(block), 5, rows)
    assert max(sizes) <= rows
    assert sum(sizes) == 5
    np.testing.assert_array_equal(result.total, CURVES.sum(1))
    np.testing.assert_array_equal(result.inner.events, compute(slice(None)).inner.events)
    assert result.inner.nothing is None


def test_no_configuration_is_one_empty_block():
    assert map_blocks(lambda block: Outer(CURVES[block].sum(1), compute(block).inner), 0, 3).total.shape == (0,)


def test_a_block_holds_at_most_so_many_numbers_but_one_configuration(monkeypatch):
    monkeypatch.setattr(blocks, "MOST_AT_ONCE", 100)
    assert [configs_in_cache(steps) for steps in (0, 10, 30, 100, 101)] == [100, 10, 3, 1, 1]
