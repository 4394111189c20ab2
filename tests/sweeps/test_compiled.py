"""Sweeps of one process share the programs of this package's own networks, and no others."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_sweeps import collect, forget_programs, network

from periodic_jax import SweepGrid, models
from periodic_jax.core.grid import HParams
from periodic_jax.sweeps import compiled
from periodic_jax.sweeps.programs import Programs
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training.losses import LOSSES
from periodic_jax.training.spec import TrainingSpec


def grid(*lrs, **axes):
    return SweepGrid.product(**{"lr": lrs, "weight_decay": 1e-2, "seed": [4, 0], **axes})


SPEC, TWO = TrainingSpec(12), grid(0.1, 0.3)


@pytest.fixture
def traces(monkeypatch):
    """A list that grows with each trace of a step."""
    forget_programs()
    traced, gradients = [], Programs._gradients

    def counted(self, batch, state):
        traced.append(1)
        return gradients(self, batch, state)

    monkeypatch.setattr(Programs, "_gradients", counted)
    yield traced
    forget_programs()


class Own(models.ConvNet):
    """A network of somebody else's."""


def own_optimizer(hparams: HParams) -> optax.GradientTransformation:
    return optax.sgd(hparams.lr)


def sweep_of(tiny, configurations, model=None, spec=SPEC, **options):
    options = {"layout": "map", "devices": jax.devices()[:1], **options}
    return Sweep(model or network(jnp.float32), tiny, configurations, spec, **options)


def programs_of(tiny, configurations=TWO, **options):
    """What is not yet traced, and takes no time."""
    sweep = sweep_of(tiny, configurations, **options)
    sweep._lay_out(sweep.layout)
    return sweep._programs, sweep._initialise


def test_other_numbers_take_the_programs_of_the_sweep_before(traces, tiny):
    sweep_of(tiny, TWO).compile()
    again = sweep_of(tiny, grid(0.05, 1.0, seed=[7, 1]))
    found = collect(again, 9)
    assert (len(traces), again.compilations) == (1, 1)
    forget_programs()
    for got, alone in zip(found, collect(sweep_of(tiny, grid(0.05, 1.0, seed=[7, 1])), 9), strict=True):
        for name, values in alone.items():
            np.testing.assert_array_equal(got[name], values, err_msg=name)
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("other", "starts_alike"),
    [
        ({"configurations": grid(0.1, 0.3, 1.0)}, False),  # more copies of each start
        ({"model": network(jnp.float32, affine=True)}, False),
        ({"spec": TrainingSpec(12, loss="squared")}, False),
        ({"labels": {"conv0": "scale_invariant", "conv1": "other", "head": "other"}}, False),
        ({"layout": "vmap"}, True),
        ({"capacity": 10}, True),
        ({"deterministic": True}, True),
    ],
    ids=lambda other: next(iter(other), None) if isinstance(other, dict) else "",
)
def test_other_programs_are_others(traces, tiny, other, starts_alike):
    (programs, start), (others, other_start) = programs_of(tiny), programs_of(tiny, **other)
    assert programs is not others
    assert (start is other_start) == starts_alike
    assert programs_of(tiny) == (programs, start)


def test_programs_of_other_devices_are_others(traces, tiny):
    if len(jax.devices()) < 2:
        pytest.skip("one device")
    assert programs_of(tiny)[0] is not programs_of(tiny, devices=jax.devices()[1:2])[0]


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.default_matmul_precision("high"),
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.threefry_partitionable(False),
        lambda: flax.config.temp_flip_flag("fix_rng_separator", True),
        lambda: jax.enable_x64(True),
    ],
    ids=["precision", "keys", "partitionable", "separator", "x64"],
)
def test_programs_under_other_settings_are_others(traces, tiny, setting):
    """`jax.jit` itself would take the program of other random numbers."""
    programs, start = programs_of(tiny)
    with setting():
        others, other_start = programs_of(tiny)
    assert programs is not others
    assert start is not other_start
    assert programs_of(tiny) == (programs, start)


def test_random_numbers_are_those_of_the_settings(traces, tiny):
    def weights():
        return np.asarray(sweep_of(tiny, TWO).states.params["conv0"]["kernel"])

    before = weights()
    with jax.default_prng_impl("rbg"):
        drawn_otherwise = weights()
    assert np.array_equal(weights(), before)
    assert not np.array_equal(drawn_otherwise, before)


def own_loss(outputs, targets):
    return LOSSES["squared"](outputs, targets)


@pytest.mark.parametrize(
    "own",
    [
        {"model": Own(width=2, depth=1, num_classes=3)},
        {"spec": TrainingSpec(12, optimizer=own_optimizer)},
        {"spec": TrainingSpec(12, loss=own_loss)},
        {"spec": TrainingSpec(12, loss="mine")},
    ],
)
def test_functions_of_yours_are_traced_by_each_sweep(traces, tiny, own, monkeypatch):
    """They may read what you have changed in between."""
    monkeypatch.setitem(LOSSES, "mine", own_loss)
    (programs, start), (others, other_start) = (programs_of(tiny, **own) for _ in range(2))
    assert programs is not others
    assert start is not other_start


def test_no_more_than_a_few_are_kept(traces, tiny):
    first, _ = programs_of(tiny, capacity=1)
    kept = [programs_of(tiny, capacity=k + 2)[0] for k in range(compiled.KEPT)]
    assert programs_of(tiny, capacity=compiled.KEPT + 1)[0] is kept[-1]
    assert programs_of(tiny, capacity=1)[0] is not first
