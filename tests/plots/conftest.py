import pytest
from helpers.drawn import RUNS
from helpers.synthetic import open_flat

from periodic_jax import analysis


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The flat Dataset of one of `RUNS`, written once."""
    opened = {}

    def get(name):
        if name not in opened:
            opened[name] = open_flat(tmp_path_factory.mktemp("plots") / "run", *RUNS[name])
        return opened[name]

    return get


@pytest.fixture(scope="module")
def periodic(run):
    dataset = run("two axes")
    return dataset, analysis.analyze(dataset)
