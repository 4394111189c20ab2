"""Sweeps of one process share the programs of this package's own networks, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.small_sweeps import collect, network

from periodic_jax import SweepGrid, models
from periodic_jax.core.grid import HParams
from periodic_jax.sweeps import compiled
from periodic_jax.sweeps.programs import Programs
from periodic_jax.sweeps.sweep import Sweep
from periodic_jax.training.spec import TrainingSpec


def grid(*lrs, **axes):
    return SweepGrid.product(**{"lr": lrs, "weight_decay": 1e-2, "seed": [4, 0], **axes})


SPEC, TWO = TrainingSpec(12), grid(0.1, 0.3)


def forget():
    compiled._shared_programs.cache_clear()
    compiled._shared_initialiser.cache_clear()


@pytest.fixture
def traces(monkeypatch):
    """A list that grows with each trace of a step."""
    forget()
    traced, gradients = [], Programs._gradients

    def counted(self, batch, state):
        traced.append(1)
        return gradients(self, batch, state)

    monkeypatch.setattr(Programs, "_gradients", counted)
    yield traced
    forget()


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
    forget()
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
        ({"devices": jax.devices()[1:2]}, False),
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


def test_another_precision_of_products_is_another_program(traces, tiny):
    found = []
    for precision in ("highest", "high", "highest"):
        with jax.default_matmul_precision(precision):
            found.append(programs_of(tiny)[0])
    assert found[0] is found[2] is not found[1]


@pytest.mark.parametrize(
    "own", [{"model": Own(width=2, depth=1, num_classes=3)}, {"spec": TrainingSpec(12, optimizer=own_optimizer)}]
)
def test_functions_of_yours_are_traced_by_each_sweep(traces, tiny, own):
    """They may read what you have changed in between."""
    (programs, start), (others, other_start) = (programs_of(tiny, **own) for _ in range(2))
    assert programs is not others
    assert start is not other_start


def test_no_more_than_a_few_are_kept():
    for kept in (compiled._shared_programs, compiled._shared_initialiser):
        assert kept.cache_info().maxsize == compiled.KEPT
