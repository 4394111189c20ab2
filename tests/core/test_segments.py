"""Each reduction against a loop over the stretches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax.core import segments


def spike(stretch):
    """The largest of: the rise from the lowest before, or the fall to the lowest after, whichever is less."""
    rises = [v - np.nanmin(stretch[: i + 1]) for i, v in enumerate(stretch) if v == v]
    falls = [v - np.nanmin(stretch[i:]) for i, v in enumerate(stretch) if v == v]
    return max((min(pair) for pair in zip(rises, falls, strict=True)), default=0.0)


ORACLES = {
    "highest": lambda s: np.nanmax(s) if np.isfinite(s).any() else np.nan,
    "totals": lambda s: s.sum(),
    "largest_spike": spike,
    "position_of_highest": lambda s: int(np.argmax(s)),
}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 90)), min_size=1, max_size=8), st.integers(0, 999))
@pytest.mark.parametrize("name", ORACLES)
def test_against_a_loop(name, stretches, seed):
    ends = np.cumsum([n for pair in stretches for n in pair])
    first, last = ends[::2], ends[1::2]
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 50, ends[-1] + seed % 2).astype(float)
    if name in ("highest", "largest_spike"):
        values[rng.random(len(values)) < 0.2] = np.nan
    wanted = [ORACLES[name](values[a:b]) for a, b in zip(first, last, strict=True)]
    found = getattr(segments, name)(values, first, last)
    np.testing.assert_allclose(found, wanted + first if name.startswith("position") else wanted, atol=1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_no_stretch(name):
    nothing = np.zeros(0, int)
    assert getattr(segments, name)(np.ones(3), nothing, nothing).shape == (0,)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 300), st.integers(0, 999))
def test_first_at_least(length, seed):
    rng = np.random.default_rng(seed)
    values = rng.random(300)
    first = rng.integers(0, 300, 5)
    last = np.minimum(first + length, 299)
    level = rng.random(5) ** 0.1
    for a, b, wanted, found in zip(
        first, last, level, segments.first_at_least(values, first, last, level), strict=True
    ):
        assert found == next((i for i in range(a, b) if values[i] >= wanted), b)


def test_median_before():
    values = np.random.default_rng(0).random(60)
    values[[3, 40, 41]] = np.nan
    position, first = np.array([2, 5, 30, 41, 59]), np.array([0, 5, 10, 41, 0])
    found = segments.median_before(values, first, position, 10)
    for value, p, f in zip(found, position, first, strict=True):
        near = values[max(p - 10, f) : p + 1]
        assert value == pytest.approx(np.nanmedian(near) if np.isfinite(near).any() else np.nan, nan_ok=True)


@pytest.mark.parametrize("order", [1, 2])
def test_noise_is_told_whatever_else_the_curve_does(order):
    rng = np.random.default_rng(0)
    curve = 0.01 * np.arange(60_000) + np.where(np.arange(60_000) % 500 < 5, 9, 0)
    noisy = curve + 0.3 * rng.normal(size=60_000)
    noisy[::7] = np.nan
    found = segments.noise(np.r_[noisy, curve, []], np.array([0, 60_000, 120_000]), order)
    np.testing.assert_allclose(found, [0.3, 0.01 * 1.4826 / 2**0.5 if order == 1 else 0, 0], rtol=0.06, atol=1e-12)


def test_padded():
    table = segments.padded(np.array([[1.0, 2, 3, 4]]), np.array([0, 2, 2, 2]), np.array([1, 0, 3]))
    np.testing.assert_array_equal(table, [[[1, np.nan, np.nan], [np.nan] * 3, [2, 3, 4]]])
