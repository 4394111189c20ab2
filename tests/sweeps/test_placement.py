"""Where configurations are placed among seeds and devices."""

import numpy as np
import pytest

from periodic_jax.sweeps.placement import SEED_COST, Arrangement, device_shape


@pytest.mark.parametrize("seeds", [[0], [3, 3, 3], [5, 1, 5, 1, 5], [0, 1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_an_arrangement_shows_every_configuration_in_its_place(seeds, devices):
    seeds = np.array(seeds)
    arranged = Arrangement.of(seeds, devices)
    assert arranged.source.shape[0] % devices == 0
    assert np.array_equal(arranged.source[arranged.row, arranged.column], np.arange(len(seeds)))
    assert (seeds[arranged.source] == arranged.seeds[:, None]).all()
    assert np.array_equal(arranged.flatten(arranged.source), np.arange(len(seeds)))


@pytest.mark.parametrize("devices", [2, 3])
def test_of_the_largest_rates_every_device_has_as_many(devices):
    arranged = Arrangement.of(np.zeros(24, int), devices)
    for first in range(24):
        counts = np.bincount(arranged.row[first:], minlength=devices)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("seed", range(20))
def test_every_configuration_has_a_place_and_no_other_shape_leaves_less_to_do(seed):
    rng = np.random.default_rng(seed)
    seeds, devices = rng.integers(0, rng.integers(1, 6), rng.integers(1, 20)), int(rng.integers(1, 4))
    rows, members = device_shape(seeds, devices)
    arranged = Arrangement.of(seeds, devices)
    assert arranged.source.shape == (rows * devices, members)
    assert (seeds[arranged.source] == arranged.seeds[:, None]).all()
    assert np.array_equal(arranged.flatten(arranged.source), np.arange(len(seeds)))
    sizes = [int((seeds == s).sum()) for s in set(seeds.tolist())]
    least = min((m + SEED_COST) * -(-sum(-(-size // m) for size in sizes) // devices) for m in range(1, 21))
    assert rows * (members + SEED_COST) == pytest.approx(least)
