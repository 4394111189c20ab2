"""The losses that a train step can minimise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
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


# A key of `LOSSES`, or a function of (outputs, targets) that gives the loss of each example, or one number for all.
Loss = str | Callable[[Any, Any], Array]


def check_loss(loss: Loss) -> None:
    """Refuse an unknown loss.

    Raises:
        ConfigError: neither a key of `LOSSES` nor a function.
    """
    if not callable(loss) and (not isinstance(loss, str) or loss not in LOSSES):
        raise ConfigError("--loss", loss, "one of " + ", ".join(LOSSES))


def losses(loss: Loss, outputs: Any, targets: Any) -> Array:
    """The loss of each example ``(batch,)``, or what the user's own function returns.

    Args:
        loss: a key of `LOSSES`, or a function.
        outputs: of the network.
        targets: class labels ``(batch,)`` for a key of `LOSSES`.

    Raises:
        ConfigError: outputs or targets that a loss of `LOSSES` does not take, labels that are known and no classes, or
            a function that returns no array.
    """
    if callable(loss):
        values = loss(outputs, targets)
        if not hasattr(values, "dtype") or not jnp.issubdtype(values.dtype, jnp.floating):
            raise ConfigError("loss", f"a result of type {type(values).__name__}", "an array of real numbers")
        return values
    if getattr(outputs, "ndim", None) != 2:
        given = f"outputs {jax.tree.map(jnp.shape, outputs)}"
        raise ConfigError("model", given, f"logits (batch, classes) for the loss {loss}, or a loss of your own")
    if not are_classes(outputs, targets):
        given = f"{jax.tree.map(jnp.shape, targets)} of {getattr(targets, 'dtype', type(targets).__name__)}"
        accepted = f"{len(outputs)} whole numbers, one of each example, or a loss of your own"
        raise ConfigError("labels", given, accepted)
    check_classes(targets, outputs.shape[-1])
    return LOSSES[loss](outputs, targets)


def are_classes(outputs: Any, targets: Any) -> bool:
    """Whether the targets are class labels, of each example or of each of its places: whole numbers ``(batch, ...)``
    for outputs ``(batch, ..., classes)``.
    """
    if not hasattr(outputs, "shape") or not hasattr(targets, "dtype"):
        return False
    return outputs.shape[:-1] == targets.shape != () and jnp.issubdtype(targets.dtype, jnp.integer)


def has_answers(outputs: Any, targets: Any) -> bool:
    """Whether an answer is the class of the largest output: not of networks with one output, or of other targets."""
    return are_classes(outputs, targets) and outputs.shape[-1] > 1


def check_classes(labels: Any, classes: int) -> None:
    """Refuse labels that are no classes, where they are known: within a compiled program they are not, and the loss is
    NaN.

    Raises:
        ConfigError: a label below 0 or from the number of classes on.
    """
    if isinstance(labels, Tracer):
        return
    known = np.asarray(labels)  # and not jnp, whose operations are traced even on what is known
    least, most = int(known.min()), int(known.max())
    if least < 0 or most >= classes:
        accepted = f"whole numbers from 0 to {classes - 1}, for {classes} outputs"
        raise ConfigError("labels", least if least < 0 else most, accepted)
