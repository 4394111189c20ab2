import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from periodic_jax.core.segments import extremes

numbers = st.one_of(st.floats(-10, 10, width=32), st.sampled_from([np.nan, np.inf, -np.inf]))


@given(st.data(), st.integers(1, 3), st.integers(0, 60), st.integers(1, 8))
def test_extremes_of_every_stretch_are_kept(data, curves, steps, buckets):
    values = np.array(data.draw(st.lists(numbers, min_size=curves * steps, max_size=curves * steps)))
    values = values.reshape(curves, steps)
    kept = extremes(values, buckets)
    assert np.isfinite(values[:, kept]).any(0).all()
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= max(2 * curves * buckets + 2, 2 * buckets)
    known = [t for t in range(steps) if np.isfinite(values[:, t]).any()]
    assert kept.tolist()[:1] == known[:1]
    assert kept.tolist()[-1:] == known[-1:]
    size = max(-(-steps // buckets), 1)
    for curve in values:
        for first in range(0, steps, size):
            inside = [t for t in kept if first <= t < first + size and np.isfinite(curve[t])]
            all_known = curve[first : first + size][np.isfinite(curve[first : first + size])]
            if len(all_known):
                assert min(curve[inside]) == all_known.min()
                assert max(curve[inside]) == all_known.max()
            else:
                assert not inside
