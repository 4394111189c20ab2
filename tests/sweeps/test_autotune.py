from types import SimpleNamespace

import jax
import numpy as np
import pytest

from periodic_jax import SweepGrid
from periodic_jax.sweeps import autotune
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training import xla
from periodic_jax.training.spec import TrainingSpec

GRID = SweepGrid.product(lr=[0.05, 0.1, 0.5, 1.0, 2.0], weight_decay=1e-3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "periodic_jax" / "layouts"


def test_the_fastest_is_taken_and_remembered(cache):
    asked = []

    def time_of(layout):
        asked.append(layout)
        return {"vmap": 2.0, "map:4": 1.0, "map": float("inf")}[layout]

    for _ in range(2):
        assert autotune.fastest(["vmap", "map:4", "map"], time_of, ("gpu", 5)) == "map:4"
    assert asked == ["vmap", "map:4", "map"]
    autotune.fastest(["vmap", "map:4", "map"], time_of, ("gpu", 6))
    assert len(asked) == 6


@pytest.mark.parametrize("damage", ["", "[]", '{"layout": "pmap"}', '{"layout": "map:7"}'])
def test_a_damaged_memory_is_asked_again(cache, damage):
    autotune.fastest(["vmap", "map"], lambda layout: len(layout), "key")
    (note,) = cache.iterdir()
    note.write_text(damage)
    assert autotune.fastest(["vmap", "map"], lambda layout: len(layout), "key") == "map"
    assert '"map"' in note.read_text()


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert autotune.fastest(["vmap", "map"], lambda layout: len(layout), "key") == "map"


def test_without_memory_for_any_the_smallest_is_left(cache):
    assert autotune.fastest(["vmap", "map:4", "map"], lambda _: float("inf"), "key") == "map"
    assert not cache.exists()


def test_one_candidate_is_not_timed():
    assert autotune.fastest(["map"], lambda _: pytest.fail("timed"), "key") == "map"


@pytest.mark.parametrize("per_seed", [1, 2, 5, 16, 64])
def test_halving_ends_at_one_by_one(per_seed):
    seen, layout = [], "vmap"
    while (layout := autotune.smaller(layout, per_seed)) is not None:
        seen.append(int(layout.partition(":")[2]))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 1
    assert seen[0] <= max(per_seed / 2, 1)


def sweep_short_of_memory(monkeypatch, tiny, model, most, **options):
    """A sweep on a device that holds ``most`` batched configurations."""
    real = Sweep._train_from_start

    def train(self, count):
        block = {"vmap": 5, "map": 1}.get(self.layout) or int(self.layout.partition(":")[2])
        if block > most:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")
        real(self, count)

    monkeypatch.setattr(Sweep, "_train_from_start", train)
    return Sweep(model, tiny, GRID, TrainingSpec(12), devices=jax.devices()[:1], capacity=4, **options).compile()


def test_want_of_memory_halves_the_block_and_goes_on(tiny, model, monkeypatch):
    expected = next(
        iter(Sweep(model, tiny, GRID, TrainingSpec(12), layout="map:1", capacity=4).chunks(4, eval_every=None))
    )
    sweep = sweep_short_of_memory(monkeypatch, tiny, model, 1, layout="vmap")
    assert sweep.layout == "map:1"
    (chunk,) = sweep.chunks(4, eval_every=None)
    np.testing.assert_allclose(chunk.telemetry["loss"], expected.telemetry["loss"], rtol=1e-4)
    assert sweep.compilations == 1


def test_nothing_is_compiled_before_it_is_needed(tiny, model, monkeypatch):
    compiled, train = [], Sweep._train_from_start
    monkeypatch.setattr(Sweep, "_train_from_start", lambda self, count: compiled.append(count) or train(self, count))
    sweep = Sweep(model, tiny, GRID, TrainingSpec(12), capacity=4)
    sizes = sweep.bytes_of_a_state(), sweep.bytes_of_weights()
    assert (sweep.layout, sweep.layer_names(), compiled) == ("auto", ["conv0/kernel", "conv1/kernel"], [])
    assert sum(chunk.steps for chunk in sweep.chunks(4, eval_every=None)) == 4
    assert sweep.compile() is sweep
    assert (sweep.layout, sweep.compilations, compiled) == ("map", 1, [0])
    states = sweep.placement.fetch(sweep.states)
    assert sizes[0] == sum(array[0].nbytes for array in states.values())
    assert sizes[1] == sum(array[0].nbytes for name, array in states.items() if name.startswith(("params", "batch")))


def test_other_failures_are_not_taken_for_want_of_memory(tiny, model, monkeypatch):
    def fail(self, count):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(Sweep, "_train_from_start", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="broken"):
        Sweep(model, tiny, GRID, TrainingSpec(12), layout="vmap").compile()


def test_candidates_are_timed_on_the_sweeps_own_program(tiny, model, monkeypatch, cache):
    monkeypatch.setattr(autotune, "candidates", lambda platform, configs, width: ["map:2", "map"])
    monkeypatch.setattr(autotune, "SECONDS", 0.01)
    sweep = sweep_short_of_memory(monkeypatch, tiny, model, 1)
    assert sweep.layout == "map"
    assert int(sweep.states.step.max()) == 0
    assert len(list(cache.iterdir())) == 1


def test_a_step_of_a_short_run_is_timed_too(tiny, model, monkeypatch):
    """A chunk of two steps may take less than any timing: as many chunks follow as are needed."""
    sweep, asked = Sweep(model, tiny, GRID, TrainingSpec(12), capacity=2), []
    timed = autotune.seconds_per_step

    def heard(train):
        def train_and_count(count):
            train(count)
            asked.append((count, sweep.states.step.tolist()))

        return timed(train_and_count)

    monkeypatch.setattr(autotune, "seconds_per_step", heard)
    # By a clock on which a step takes a tenth of the least that is timed, however busy the machine is.
    step = autotune.SECONDS / 30
    # Each call has the order of an epoch to make first, which takes longer than several steps.
    clock = SimpleNamespace(perf_counter=lambda: step * sum(count + 7 for count, _ in asked))
    monkeypatch.setattr(autotune, "time", clock)
    assert sweep.seconds_per_step() == pytest.approx(step)
    assert [count for count, _ in asked] == [1, 1, 4, 16]
    assert all(np.all(np.array(steps) == count) for count, steps in asked)
    assert sweep.compilations == 1


def test_compiled_programs_are_kept_unless_the_user_has_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.values["jax_compilation_cache_dir"]
    try:
        xla.keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == before
        jax.config.update("jax_compilation_cache_dir", None)
        xla.keep_compiled_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "periodic_jax" / "compiled")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
