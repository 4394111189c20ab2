import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax import ConfigError, HParams
from periodic_jax.training import schedules

# The reference's rules, written out: share of the schedule done, divisor -> factor.
RULES = {
    "constant": lambda s, p: 1.0,
    "cosine": lambda s, p: (1 + math.cos(math.pi * s)) / 2,
    "c": lambda s, p: 1.0 if s < 0.25 else 1 + (1 / p - 1) * (s - 0.25) / 0.75,
    "d": lambda s, p: 1 / p ** min(int(4 * s), 3),
    "default": lambda s, p: 1.0 if s <= 0.5 else (0.01 if s >= 0.9 else 1 - 0.99 * (s - 0.5) / 0.4),
}


def test_every_schedule_has_a_rule():
    assert set(RULES) == set(schedules.SCHEDULES)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("every", [1, 8])
def test_factors_follow_the_rules_per_step_and_per_epoch(float64, name, every):
    steps = jnp.arange(100)
    hparams = HParams(
        lr=0.5, elr=2.0, noninvariant_lr=-1.0, schedule_end=80.0, schedule_factor=7.0, schedule_every=every
    )
    got = jax.jit(jax.vmap(lambda t: schedules.scheduled(hparams, t, name)))(steps)
    expected = [RULES[name](min(t // every * every / 80, 1), 7.0) for t in range(100)]
    np.testing.assert_allclose(got.lr, 0.5 * np.array(expected), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.elr, 2.0 * np.array(expected), rtol=1e-12, atol=1e-15)
    assert (np.asarray(got.noninvariant_lr) <= 0).all()
    assert got.weight_decay.tolist() == [0.0] * 100


def test_ends_and_divisors_are_traced_numbers(float64):
    swept = HParams(
        lr=jnp.ones(3), schedule_end=jnp.array([10.0, 20.0, 40.0]), schedule_factor=jnp.array([2.0, 4.0, 8.0])
    )
    axes = HParams(*(0 if name in ("lr", "schedule_end", "schedule_factor") else None for name in HParams._fields))
    got = jax.vmap(lambda h: schedules.scheduled(h, jnp.int32(40), "d").lr, in_axes=(axes,))(swept)
    np.testing.assert_allclose(got, [1 / 8, 1 / 64, 1 / 512])


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="--schedule: linear is not accepted; expected one of constant, cosine"):
        schedules.check_schedule("linear")
