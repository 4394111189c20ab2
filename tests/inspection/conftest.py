"""A tiny run with saved minima, and their comparison."""

import pytest
from helpers.minima_runs import configured, rises_end_periods

import periodic_jax as pj
from periodic_jax.inspection import minima


@pytest.fixture(scope="module")
def rises():
    """Every rise of the norm ends a period, in all runs of a module."""
    with rises_end_periods():
        yield


@pytest.fixture(scope="module")
def whole(rises, tmp_path_factory):
    """The undisturbed run: two seeds, and two configurations that diverge."""
    return pj.run_sweep(configured(tmp_path_factory.mktemp("minima") / "run")).path


@pytest.fixture(scope="module")
def compared(whole):
    """The comparison of its minima."""
    return minima.compare(whole, points=3)
