"""The losses that a train step can minimise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from periodic_jax.core.errors import ConfigError


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """-ln softmax(logits)[label] of each example."""
    # optax's takes the maximum out in another order: a third of the float32 losses differ in the last bit under jit.
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    return -_of_label(log_probabilities, labels)


def squared(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """Squared distance to the one-hot label over the number of classes C: (Σ o² - 2 o_label + 1)/C of each example."""
    return ((logits**2).sum(1) - 2 * _of_label(logits, labels) + 1) / logits.shape[1]


def _of_label(values: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """The value of each example's class; NaN for a label that is none. Without an index, whose gradient scatters."""
    classes = values.shape[1]
    of_class = jnp.where(labels[:, None] == jnp.arange(classes), values, 0).sum(1)
    return jnp.where((labels >= 0) & (labels < classes), of_class, jnp.nan)


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": cross_entropy, "squared": squared}


def check_loss(name: str) -> None:
    """Refuse an unknown loss.

    Raises:
        ConfigError: not a key of `LOSSES`.
    """
    if name not in LOSSES:
        raise ConfigError("--loss", name, "one of " + ", ".join(LOSSES))
