"""Learning-rate schedules: the factor on the learning rate as a function of progress, for traced ends and divisors.

Progress s is the share of the schedule that is done, 0 at its start, 1 from its end on.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams

Scalar = Float[Array, ""]


def learning_rate(hparams: HParams, weight_norm: Scalar) -> Scalar:
    """The learning rate at the current weight norm: η, or ELR·ρ² where a fixed effective learning rate is set.

    Args:
        hparams: traced numbers of one configuration.
        weight_norm: ρ of the scale-invariant weights before the step.

    Returns:
        A scalar of the dtype of ``weight_norm``.

    Example:
        >>> float(learning_rate(HParams(lr=0.5), jnp.float32(2)))
        0.5
        >>> float(learning_rate(HParams(elr=0.5), jnp.float32(2)))
        2.0
    """
    fixed = jnp.asarray(hparams.elr * weight_norm**2, weight_norm.dtype)
    return jnp.where(jnp.asarray(hparams.elr) > 0, fixed, jnp.asarray(hparams.lr, weight_norm.dtype))


def check_scalars(hparams: HParams) -> None:
    """Refuse stacked hyperparameters, whose arrays would broadcast against the weights.

    Raises:
        ConfigError: a field that is no scalar.
    """
    for name, value in zip(hparams._fields, hparams, strict=True):
        if jnp.ndim(value):
            given = f"an array of shape {jnp.shape(value)}"
            raise ConfigError(name, given, "one number; jax.vmap over the step takes one for each configuration")


def constant(s: Scalar, _p: Scalar) -> Scalar:
    """The same rate throughout: 1."""
    return jnp.ones_like(s)


def cosine(s: Scalar, _p: Scalar) -> Scalar:
    """Half a cosine down to zero: (1 + cos πs)/2."""
    return 0.5 * (1 + jnp.cos(jnp.pi * s))


def quarter_then_linear(s: Scalar, p: Scalar) -> Scalar:
    """The reference's "c": 1 for a quarter, then linear to 1/p at the end."""
    return 1 - (1 - 1 / p) * jnp.clip((s - 0.25) / 0.75, 0, 1)


def divided_at_quarters(s: Scalar, p: Scalar) -> Scalar:
    """The reference's "d": divided by p at each quarter, p^-⌊4s⌋."""
    return p ** -jnp.minimum(jnp.floor(4 * s), 3)


def half_then_linear(s: Scalar, _p: Scalar) -> Scalar:
    """The reference's default: 1 for a half, then linear to 0.01 at 90 %, and that to the end."""
    return 1 - 0.99 * jnp.clip((s - 0.5) / 0.4, 0, 1)


SCHEDULES: dict[str, Callable[[Scalar, Scalar], Scalar]] = {
    "constant": constant,
    "cosine": cosine,
    "c": quarter_then_linear,
    "d": divided_at_quarters,
    "default": half_then_linear,
}


def check_schedule(name: str) -> None:
    """Refuse an unknown schedule.

    Raises:
        ConfigError: not a key of `SCHEDULES`.
    """
    if name not in SCHEDULES:
        raise ConfigError("--schedule", name, "one of " + ", ".join(SCHEDULES))


def scheduled(hparams: HParams, step: Int[Array, ""], name: str) -> HParams:
    """The hyperparameters in force at a step: all learning rates, the effective one too, times the schedule's factor.

    s = ⌊t / every⌋ every / end, cut off at 1: per epoch where ``schedule_every`` is the number of steps in one.

    Args:
        hparams: traced numbers of one configuration, among them ``schedule_end``, ``schedule_every`` and
            ``schedule_factor``.
        step: t, updates made before.
        name: a key of `SCHEDULES`.

    Returns:
        The same with ``lr``, ``elr`` and ``noninvariant_lr`` scaled; a negative ``noninvariant_lr`` keeps its meaning.

    Example:
        >>> hparams = HParams(lr=0.5, schedule_end=100)
        >>> round(float(scheduled(hparams, 50, "cosine").lr), 6)
        0.25
    """
    if name == "constant":
        return hparams
    dtype = jnp.result_type(hparams.lr, float)
    numbers = hparams.schedule_every, hparams.schedule_end, hparams.schedule_factor
    every, end, p = (jnp.asarray(number, dtype) for number in numbers)
    s = jnp.clip(jnp.floor(step / every) * every / end, 0, 1)
    factor = SCHEDULES[name](s, p)
    return hparams._replace(
        lr=hparams.lr * factor, elr=hparams.elr * factor, noninvariant_lr=hparams.noninvariant_lr * factor
    )
