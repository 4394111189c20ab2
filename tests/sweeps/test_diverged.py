"""Configurations that diverged: not computed any more, and without effect on the others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_sweeps import Probe, collect

from periodic_jax import SweepGrid
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training.spec import TrainingSpec


@pytest.mark.parametrize(
    "layout", [*(pytest.param(layout, marks=pytest.mark.slow) for layout in ("unroll", "map:2")), "map", "vmap"]
)
def test_a_nan_configuration_changes_no_other_by_one_bit(tiny, model, layout):
    grid = SweepGrid.product(lr=[0.05, 0.1, 0.5, 1.0], weight_decay=1e-3)
    sweep = Sweep(model, tiny, grid, TrainingSpec(12), layout=layout).compile()
    start = sweep.states

    def run(poisoned):
        sweep.step, sweep.states = 0, jax.tree.map(jnp.copy, start)  # a step takes the memory of the states it is given
        if poisoned is not None:
            place = (sweep.placement.arrangement.row[poisoned], sweep.placement.arrangement.column[poisoned])
            params = jax.tree.map(lambda leaf: leaf.at[place].set(jnp.nan), sweep.states.params)
            sweep.states = sweep.states.replace(
                params=jax.device_put(params, jax.tree.map(lambda p: p.sharding, sweep.states.params))
            )
        initial = sweep.placement.fetch(sweep.states)
        telemetry, evaluations = collect(sweep, 20)
        return {**telemetry, **evaluations}, initial, sweep.placement.fetch(sweep.states)

    sound, _, sound_states = run(None)
    assert (sound_states["diverged_at"] == -1).all()
    for poisoned in (0, 2):
        broken, initial, states = run(poisoned)
        others = [i for i in range(4) if i != poisoned]
        for name in sound:
            assert np.array_equal(broken[name][others], sound[name][others]), name
            assert np.isnan(broken[name][poisoned][1:]).all(), name
        assert np.isnan(broken["loss"][poisoned]).all()
        initial["step"][poisoned], initial["diverged_at"][poisoned] = 20, 0
        for name in states:
            assert np.array_equal(states[name][others], sound_states[name][others]), name
            assert np.array_equal(states[name][poisoned], initial[name][poisoned], equal_nan=True), name


class Direction(nn.Module):
    """Logits by a matrix of norm 1: a scale-invariant weight without a normalisation layer, quick to compile."""

    param_dtype: jnp.dtype = jnp.float64

    @nn.compact
    def __call__(self, images, train):
        flat = images.reshape(len(images), -1)
        weight = self.param("weight", nn.initializers.normal(), (flat.shape[1], 3), self.param_dtype)
        return flat @ weight / jnp.linalg.norm(weight)

    def labels(self):
        return "scale_invariant"


@pytest.mark.parametrize("layout", ["map", pytest.param("unroll", marks=pytest.mark.slow)])
def test_what_is_left_out_of_a_diverged_configuration_changes_no_result(float64, tiny, layout):
    """Against blocks, which compute all of it and drop what has no result."""
    grid = SweepGrid.product(lr=[0.05, 1e200], weight_decay=0.0, seed=[4, 0])

    def run(layout):
        sweep = Sweep(Direction(), tiny, grid, TrainingSpec(12, per_layer=True), layout=layout)
        results = collect(sweep, 4, eval_every=2)
        return *results, sweep.placement.fetch(sweep.states)

    found, expected = run(layout), run("map:2")
    for these, those in zip(found, expected, strict=True):
        assert these.keys() == those.keys()
        for name, values in those.items():
            np.testing.assert_allclose(these[name], values, rtol=1e-9, atol=1e-12, strict=True, err_msg=name)
    assert found[2]["diverged_at"].tolist() == [-1, -1, 0, 0]
    assert np.isnan(found[0]["layer_weight_norm"][2:, 1:]).all()


def test_a_diverged_configuration_is_not_computed(tiny):
    class Counted(Probe):
        def __call__(self, images, train):
            jax.debug.callback(lambda: calls.append(None))
            return super().__call__(images, train)

    calls: list[None] = []
    sweep = Sweep(Counted(), tiny, SweepGrid.product(lr=[0.1, 0.2, 0.3, 0.4], weight_decay=0.0), TrainingSpec(12))
    states = sweep.states
    dead = sweep.placement.shard_configs(np.array([-1, 0, -1, 0], np.int32))
    sweep.states = states.replace(diverged_at=dead)
    calls.clear()
    list(sweep.chunks(5, eval_every=None))
    jax.effects_barrier()
    assert len(calls) == 2 * 5
