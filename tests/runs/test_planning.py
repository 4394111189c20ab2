import re
from dataclasses import replace

import numpy as np
import pytest
from helpers.survival import states_at

from periodic_jax import RunConfig, run_sweep
from periodic_jax.core.files import used_bytes
from periodic_jax.runs.planning import describe_plan, fitting_part, plan, split_count
from periodic_jax.storage.reader import open_run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    out = tmp_path_factory.mktemp("planned") / "run"
    return RunConfig(out=out, lr=(0.1, 0.3, 1.0), seed=(0, 1), width=2, depth=1, steps=120, eval_every=50, keep=1)


@pytest.fixture(scope="module")
def planned(small):
    return plan(small)


def test_a_plan_is_what_the_run_takes(small, planned):
    path, takes = run_sweep(small).path, planned.estimate
    dataset = open_run(path, flat=True)
    recorded = [v for v in dataset.data_vars.values() if v.ndim > 1]
    assert planned.configs == dataset.sizes["config"] == 6
    assert takes.telemetry_bytes == sum(variable.nbytes for variable in recorded)
    files = [f for f in (path / "telemetry.zarr").glob("*/c/**/*") if f.is_file()]
    kept = [f for f in files if f.relative_to(path).parts[1] in (*(v.name for v in recorded), "diverged_at")]
    assert takes.telemetry_files == len(kept)
    states = states_at(path, 120)
    assert takes.checkpoint_bytes == 2 * sum(array.nbytes for array in states.values())
    assert planned.devices * planned.seeds_per_device * planned.configs_per_seed == 6
    assert used_bytes(path / "telemetry.zarr") < 2 * takes.telemetry_bytes + 10**5
    assert 0 < takes.seconds < 600
    assert min(takes.temporary_bytes, takes.data_bytes, takes.record_bytes) > 0
    lines = describe_plan(planned, small)
    assert lines[0] == "6 configurations of 120 steps: 720 config-steps"
    assert lines[-1] == "to split it: not needed"


def test_blocks_are_small_enough(small, planned):
    day = replace(small, lr=tuple(np.geomspace(0.01, 1, 64).tolist()))
    long = planned._replace(configs=128, estimate=replace(planned.estimate, seconds=86400 * 3.5))
    assert split_count(long) == 4
    assert "4 independent runs, each with 16 of the 64 values of --lr and a folder" in describe_plan(long, day)[-1]
    assert split_count(planned, device_memory=planned.estimate.data_bytes + planned.estimate.state_bytes) > 1
    assert split_count(planned._replace(estimate=replace(planned.estimate, telemetry_bytes=10**15))) == 6


@pytest.mark.parametrize("days", [1.01, 2, 2.9, 3, 15.8, 999, 1000, 2500])
def test_the_parts_of_a_split_make_the_whole_and_none_is_too_large(small, planned, days):
    config = replace(small, lr=tuple(np.geomspace(0.01, 1, 1000).tolist()))
    long = planned._replace(configs=4000, estimate=replace(planned.estimate, seconds=days * 86400))
    said = describe_plan(long, config)[-1]
    runs, some, more = map(int, re.search(r": (\d+) independent runs, each with (\d+)(?: or (\d+))?", said).groups(0))
    assert runs * some <= 1000 <= runs * max(some, more)
    assert (more == 0) == (runs * some == 1000)
    enough = max(some, more) / 1000 * days <= 1 + 1e-9
    assert enough != ("split a second axis into 3 parts" in said)


def test_more_configurations_than_a_run_may_have_are_planned_in_blocks(small):
    config = replace(small, lr=tuple(np.geomspace(0.01, 1, 1000).tolist()), momentum=tuple(np.arange(100) / 101))
    block, words = fitting_part(config)
    assert words.startswith("200000 configurations, and a run may have 100000: this is of one of 2 runs, ")
    assert words.endswith("with 500 of the 1000 values of --lr")
    assert len(block.grid()) == 100000
    assert fitting_part(small) == (small, "")
