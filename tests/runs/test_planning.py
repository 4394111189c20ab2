from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.survival import states_at

from periodic_jax import RunConfig, run_sweep
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import used_bytes
from periodic_jax.runs.planning import ShardLimits, describe_plan, plan, plan_for, shard_count
from periodic_jax.runs.shards import fitting_part
from periodic_jax.storage.reader import open_run
from periodic_jax.sweeps.targets import TARGETS


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
    assert lines[-1] == "shards: not needed"


def test_devices_without_a_configuration_are_told(small, planned):
    if len(jax.devices()) != 2:
        pytest.skip("not two devices")
    config = replace(small, lr=(0.1,), seed=(0,))
    assert describe_plan(plan(config), config)[2] == "idle: 1 of 2 devices; 2 configurations would take as long"
    assert not any(line.startswith("idle") for line in describe_plan(planned, small))


def test_shards_are_small_enough(small, planned):
    day = replace(small, lr=tuple(np.geomspace(0.01, 1, 64).tolist()))
    long = planned._replace(configs=128, estimate=replace(planned.estimate, seconds=86400 * 3.5))
    assert shard_count(long) == 4
    assert describe_plan(long, day)[-1].endswith("--shards 4")
    tight = ShardLimits(device_memory=planned.estimate.data_bytes + planned.estimate.state_bytes)
    assert shard_count(planned, tight) > 1


def test_shards_are_counted_for_the_hours_and_the_memory_that_are_given(small, planned):
    many = replace(small, lr=tuple(np.geomspace(0.01, 1, 64).tolist()))
    takes = replace(planned.estimate, seconds=36_000, data_bytes=10**9, state_bytes=6 * 10**9, record_bytes=0)
    long = planned._replace(configs=128, estimate=replace(takes, temporary_bytes=0))
    assert [shard_count(long, ShardLimits(hours)) for hours in (0.5, 3.0, 10.0, 24.0)] == [20, 4, 1, 1]
    # Each shard has the data: of 10 GB, 8 are used and 7 are left; of 5 GB, 4 and 3.
    assert [shard_count(long, ShardLimits(device_memory=most * 10**9)) for most in (10, 5)] == [1, 2]
    assert describe_plan(long, many, ShardLimits(3.0, 5 * 10**9))[-1] == (
        "shards, so that none takes more than 3 h, 1 TB of telemetry or 80% of 5 GB of memory: --shards 4"
    )
    for limits, words in (
        (ShardLimits(0.01), "0.01 h, 1 TB of telemetry"),
        (ShardLimits(24.0, 10**9), "24 h, 1 TB of telemetry or 80% of 1 GB of memory"),
    ):
        assert describe_plan(long, many, limits)[-1] == f"shards: even one configuration takes more than {words}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--shard-hours", "3"], "--shard-hours: given without --dry-run; give both"),
        (["--dry-run", "--shard-hours", "0"], "--shard-hours: 0 is not accepted; expected a number above 0"),
        (["--dry-run", "--shard-memory", "inf"], "--shard-memory: inf is not accepted; expected a number above 0"),
        (["--dry-run", "--shard-memory", "80GB"], "--shard-memory: 80GB is not accepted; expected a number"),
    ],
)
def test_limits_of_shards_that_cannot_be_used_are_refused(capsys, options, words):
    from periodic_jax.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["sweep", *options])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_shard_is_planned_as_the_run_that_it_is(small, planned):
    shard = plan(replace(small, shards=2, shard=1))
    assert shard.configs == 3
    assert 2 * shard.estimate.telemetry_bytes == planned.estimate.telemetry_bytes
    assert 2 * shard.estimate.checkpoint_bytes == planned.estimate.checkpoint_bytes
    long = shard._replace(estimate=replace(shard.estimate, seconds=86400 * 1.5))
    assert describe_plan(long, replace(small, shards=2, shard=1))[-1].endswith("--shards 4")
    assert describe_plan(shard, replace(small, shards=2, shard=1))[-1] == "shards: small enough"


@pytest.mark.parametrize("days", [1.01, 2, 2.9, 3, 15.8, 999, 1000, 2500])
def test_the_shards_of_a_long_sweep_take_a_day_each(small, planned, days):
    config = replace(small, lr=tuple(np.geomspace(0.01, 1, 1000).tolist()), seed=(0, 1, 2, 3))
    long = planned._replace(configs=4000, estimate=replace(planned.estimate, seconds=days * 86400))
    shards = int(describe_plan(long, config)[-1].rpartition("--shards ")[2])
    assert days / shards <= 1 < days / (shards - 1)
    assert sum(map(len, config.grid().members(shards))) == 4000


def test_more_configurations_than_a_run_may_have_are_planned_in_blocks(small):
    config = replace(small, lr=tuple(np.geomspace(0.01, 1, 1000).tolist()), momentum=tuple(np.arange(100) / 101))
    block, words = fitting_part(config)
    assert words.startswith("200000 configurations, and a run may have 100000: this is of one of 2 runs, ")
    assert words.endswith("with 500 of the 1000 values of --lr")
    assert len(block.grid()) == 100000
    assert fitting_part(small) == (small, "")


@pytest.fixture
def compiled(monkeypatch):
    """Programs as if compiled: fewer bytes and launches in blocks, more memory all at once."""
    from periodic_jax.sweeps import autotune, compilation
    from periodic_jax.sweeps.traffic import ChunkCost, Cost

    def compile_chunk(workload, target):
        megabytes, launches, temporary = {"vmap": (5, 2, 10**12), "map": (4, 9, 10**7)}.get(
            workload.layout, (4, 4, 10**8)
        )
        step = {"conv0": Cost(1e6 * megabytes, launches, 1e9) * (workload.seeds * workload.configs)}
        return compilation.CompiledChunk(target, workload, "", ChunkCost(step, Cost()), temporary)

    monkeypatch.setattr(compilation, "compile_chunk", compile_chunk)
    monkeypatch.setattr(autotune, "candidates", lambda platform, configs, width: ["vmap", "map:4", "map"])


def test_a_device_that_is_not_here_is_planned_from_the_compiled_program(small, compiled):
    config = replace(small, lr=tuple(np.geomspace(0.01, 1, 40).tolist()), precision="tf32")
    planned = plan_for(config, TARGETS["h100"])
    assert (planned.configs, planned.devices, planned.configs_per_seed) == (80, 1, 40)
    assert planned.layout == "map:4"  # vmap has fewer launches, but does not fit
    step = 4e6 / 3.35e12 + 4 * 2e-6  # bytes take longer than products
    assert planned.seconds_per_config_step == pytest.approx(max(step, 1e9 / 494.7e12 + 8e-6))
    assert planned.estimate.seconds == pytest.approx(80 * 120 * planned.seconds_per_config_step)
    lines = describe_plan(planned, config, ShardLimits(device_memory=TARGETS["h100"].memory))
    assert lines[1].startswith("for NVIDIA H100 SXM5, 80 GB: fits; 80% of its 84.9 GB hold at least ")
    assert lines[-3].startswith("time: at least ")
    assert lines[-2].endswith(
        "4 MB, 1 GFLOP and 4 launches a config-step, compiled and counted with 80 configurations, not measured"
    )
    assert lines[-1] == "shards: not needed"


def test_a_sweep_too_large_for_a_device_is_cut(small, compiled):
    config = replace(small, lr=(0.1, 0.3, 1.0), layout="vmap", precision="bf16")
    lines = describe_plan(plan_for(config, TARGETS["v5e"]), config, ShardLimits(device_memory=TARGETS["v5e"].memory))
    assert lines[1] == "for Cloud TPU v5e, 16 GB: does not fit; 80% of its 16 GB hold at least 0 configurations"
    assert lines[-1] == (
        "shards: even one configuration takes more than 24 h, 1 TB of telemetry or 80% of 16 GB of memory"
    )
    with pytest.raises(ConfigError, match="float64 for v5e"):
        plan_for(replace(config, precision="float64"), TARGETS["v5e"])
