"""Separate seeds of the initial weights, the order of the data and the head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.small_sweeps import collect, network

from periodic_jax import Batch, SweepGrid, create_train_state, train_step
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training import input_pipeline
from periodic_jax.training.spec import TrainingSpec

STEPS, BATCH = 6, 12
# Of two orders of the data: one with four initialisations, one with a single one.
ROWS = [
    {"seed": 3, "data_seed": 1, "lr": 0.1},
    {"seed": 3, "data_seed": 1, "init_seed": 5, "lr": 0.1},
    {"seed": 3, "data_seed": 1, "head_seed": 5, "lr": 1.0},
    {"seed": 1, "init_seed": 0, "head_seed": 2, "lr": 0.5},
    {"seed": 7, "lr": 0.5},
]
SEEDS = [(3, 1, 3), (5, 1, 5), (3, 1, 5), (0, 1, 2), (7, 7, 7)]  # of weights, data, head


def alone(model, dataset, lr, init, data, head, sampling="epochs"):
    """The losses of one configuration trained by itself, with the public functions only."""
    arrays = input_pipeline.to_device(dataset, model.param_dtype)
    images = jnp.zeros((BATCH, *dataset.image_shape), model.param_dtype)

    def state_of(seed):
        key = input_pipeline.purpose_key(jnp.uint32(seed), input_pipeline.INITIALISATION)
        return create_train_state(model, model.labels(), key, images)

    state = state_of(init)
    state = state.replace(params={**state.params, "head": state_of(head).params["head"]})
    rows = input_pipeline.batch_indices(
        jnp.uint32(data),
        jnp.int32(0),
        STEPS,
        capacity=STEPS,
        count=len(dataset.images),
        batch_size=BATCH,
        sampling=sampling,
    )
    hparams = jax.tree.map(lambda h: h[0], SweepGrid.product(lr=lr).hparams())
    step, losses = jax.jit(train_step), []
    for row in rows:
        inputs = input_pipeline.normalise(arrays.images[row], arrays.mean, arrays.std)
        state, metrics = step(state, hparams, Batch(inputs, arrays.labels[row]))
        losses.append(metrics["loss"])
    return losses


@pytest.mark.parametrize("layout", ["map", pytest.param("vmap", marks=pytest.mark.slow)])
def test_each_purpose_has_its_own_seed(float64, tiny, layout):
    model, grid = network(), SweepGrid.of(ROWS)
    sweep = Sweep(model, tiny, grid, TrainingSpec(BATCH), layout=layout)
    groups = sweep.placement.arrangement.seeds
    assert set(groups.tolist()) == {1, 7}  # what shares mini-batches is together
    telemetry, _ = collect(sweep, STEPS)
    for i, (row, seeds) in enumerate(zip(ROWS, SEEDS, strict=True)):
        np.testing.assert_allclose(telemetry["loss"][i], alone(model, tiny, row["lr"], *seeds), rtol=1e-7)


def test_mini_batches_drawn_with_replacement_are_trained_on(float64, tiny):
    model, grid = network(), SweepGrid.product(lr=0.5, seed=3)
    telemetry, _ = collect(Sweep(model, tiny, grid, TrainingSpec(BATCH, sampling="iid"), layout="map"), STEPS)
    np.testing.assert_allclose(telemetry["loss"][0], alone(model, tiny, 0.5, 3, 3, 3, sampling="iid"), rtol=1e-7)


def test_the_seed_of_all_is_that_of_each(tiny, model):
    """Initial states to the bit, where the seeds that it sets are given with the same value."""
    given = {"init_seed": 2, "data_seed": 2, "head_seed": 2}
    of_all, of_each = (
        Sweep(model, tiny, SweepGrid.of([{"seed": 2, **more}]), TrainingSpec(BATCH)) for more in ({}, given)
    )
    assert of_all.seeds.tolist() == of_each.seeds.tolist() == [2]
    states = [sweep.placement.fetch(sweep._initialise(sweep.initial_seeds)) for sweep in (of_all, of_each)]
    assert states[0].keys() == states[1].keys()
    for name, values in states[0].items():
        np.testing.assert_array_equal(states[1][name], values, err_msg=name)


def test_seeds_of_a_grid():
    grid = SweepGrid.of(ROWS)
    assert grid.initial_seeds().tolist() == [[body, head] for body, _, head in SEEDS]
    assert grid.seeds_of("data_seed").tolist() == [data for _, data, _ in SEEDS]
    assert grid.initial_seeds().dtype == grid.seeds_of("seed").dtype == np.uint32
    assert grid.has_own_head
    assert not SweepGrid.product(seed=[0, 1]).has_own_head
    assert [part.tolist() for part in grid.members(2)] == [[0, 1, 2], [3, 4]]
    largest = SweepGrid.product(init_seed=2**32 - 1)
    assert largest.initial_seeds().tolist() == [[2**32 - 1] * 2]
