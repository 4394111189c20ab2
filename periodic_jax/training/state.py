"""The training state of one configuration: arrays, and the static network and labels."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key

from periodic_jax.models.labels import Labels, leaf_labels
from periodic_jax.training.losses import check_loss
from periodic_jax.training.optimizers import MakeOptimizer, check_optimizer, initial_state
from periodic_jax.training.schedules import check_schedule


class Batch(NamedTuple):
    """A mini-batch. ``images`` may be whatever the network's ``prepare`` returned, shared by all configurations that
    see the batch.
    """

    images: Any  # (batch, height, width, channels), normalised
    labels: Int[Array, "batch"]  # class of each image


@dataclass(frozen=True)
class Task:
    """What does not change in training and is no array: hashable, so that a compiled step is keyed by it.

    Attributes:
        model: a Flax module; called as ``model.apply(variables, images, train=...)`` it returns logits ``(batch,
            classes)``.
        labels: for each parameter leaf, whether it is in the scale-invariant group.
        loss: a key of `LOSSES`.
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: ``fixed_norm`` is the norm of each output filter.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function ``HParams -> optax.GradientTransformation``.
    """

    model: nn.Module
    labels: Labels
    loss: str = "cross_entropy"
    schedule: str = "constant"
    per_filter: bool = False
    optimizer: str | MakeOptimizer = "sgd"


class TrainState(struct.PyTreeNode):
    """All arrays that training changes, of one configuration, or of many with the configuration axis first."""

    step: Int[Array, ""]  # updates made
    params: Any
    batch_stats: Any  # running statistics of batch normalisation; {} where there are none
    opt_state: Any  # of the optimiser, without the measurements, which no later step needs
    diverged_at: Int[Array, ""]  # step whose loss or update was not finite; -1 while there was none
    task: Task = struct.field(pytree_node=False)


def create_train_state(
    model: nn.Module,
    labels: Any,
    key: Key[Array, ""],
    images: Any,
    *,
    loss: str = "cross_entropy",
    schedule: str = "constant",
    per_filter: bool = False,
    optimizer: str | MakeOptimizer = "sgd",
) -> TrainState:
    """A freshly initialised state.

    Args:
        model: a Flax module whose ``__call__(images, train)`` returns logits; a ``batch_stats`` collection is optional.
        labels: tree of ``"scale_invariant"`` / ``"other"`` over the parameters, or a prefix of it.
        key: PRNG key of the initialisation; may be traced, so that states of many seeds come from one ``vmap``.
        images: an example mini-batch ``(batch, height, width, channels)``; only its shape and dtype matter.
        loss: a key of `LOSSES`.
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: ``fixed_norm`` is the norm of each output filter, not of all scale-invariant weights together.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function ``HParams -> optax.GradientTransformation``; see
            `training.optimizers.build_optimizer`.

    Returns:
        The state at step 0.

    Raises:
        ConfigError: labels that do not fit the parameters, or an unknown loss, schedule or optimiser.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2)
        >>> state = create_train_state(model, model.labels(), jax.random.key(0), jnp.zeros((4, 8, 8, 1)))
        >>> int(state.step), sum(state.task.labels)
        (0, 4)
    """
    check_loss(loss)
    check_schedule(schedule)
    check_optimizer(optimizer)

    def create(key: Key[Array, ""]) -> TrainState:
        variables = model.init(key, images, train=True)
        marks = leaf_labels(variables["params"], labels)
        return state_of(Task(model, marks, loss, schedule, per_filter, optimizer), variables)

    # As one program: operation by operation the first state would take 10 seconds instead of 1.
    return jax.jit(create)(key)


def state_of(task: Task, variables: Any) -> TrainState:
    """A state at step 0 with given weights and running statistics.

    Args:
        task: what does not change in training.
        variables: ``{"params": ..., "batch_stats": ...}``, the latter optional.

    Returns:
        The state, with a momentum of zero.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=initial_state(task.optimizer, variables["params"], task.labels, task.per_filter),
        diverged_at=jnp.full((), -1, jnp.int32),
        task=task,
    )
