"""The training state of one configuration: arrays, and the static network and labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Int, Key, UInt32

from periodic_jax.models.adapters import STATISTICS, Network, initialise, needs_key
from periodic_jax.models.invariance import measure_labels
from periodic_jax.models.labels import AUTO, Labels, leaf_labels
from periodic_jax.training.losses import Loss, check_loss
from periodic_jax.training.optimizers import MakeOptimizer, check_optimizer, initial_state
from periodic_jax.training.schedules import check_schedule

DRAWS = 1  # purpose of the key from which a network's random numbers are drawn


class Batch(NamedTuple):
    """A mini-batch. ``images`` may be whatever the network's ``prepare`` returned, shared by all configurations that
    see the batch. Both may be any tree of arrays whose first axis is the batch, for a network and a loss that take it.
    """

    images: Any  # (batch, height, width, channels), normalised; or other inputs
    labels: Any  # (batch,) class of each image, whole numbers; or other targets


@dataclass(frozen=True)
class Task:
    """What does not change in training and is no array: hashable, so that a compiled step is keyed by it.

    Attributes:
        network: the adapter of a network; see `models.adapters`.
        labels: for each parameter leaf, whether it is in the scale-invariant group.
        loss: a key of `LOSSES`, or a function of (outputs, targets).
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: ``fixed_norm`` is the norm of each output filter.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function ``HParams -> optax.GradientTransformation``.
    """

    network: Network
    labels: Labels
    loss: Loss = "cross_entropy"
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
    other: Any = struct.field(default_factory=dict)  # collections besides the two that the network changes
    key: UInt32[Array, "2"] | None = None  # data of the key of random numbers; None: the network draws none

    @property
    def collections(self) -> dict[str, Any]:
        """What the network changes in training, by name."""
        return {STATISTICS: self.batch_stats, **self.other}

    @property
    def step_key(self) -> Key[Array, ""] | None:
        """The key of the network's random numbers in the next step: of the state's and the step alone."""
        if self.key is None:
            return None
        return jax.random.fold_in(jax.random.wrap_key_data(self.key, impl="threefry2x32"), self.step)


def create_train_state(
    model: Any,
    labels: Any,
    key: Key[Array, ""],
    images: Any,
    *,
    loss: Loss = "cross_entropy",
    schedule: str = "constant",
    per_filter: bool = False,
    optimizer: str | MakeOptimizer = "sgd",
) -> TrainState:
    """A freshly initialised state.

    Args:
        model: a Linen module; an NNX module, or a class or function of ``rngs`` that makes one; or a pair of functions
            ``init(key, inputs)``, ``apply(variables, inputs, train, rngs) -> (outputs, mutated)``. Modules are called
            with ``(inputs)``, or ``(inputs, train)``. An NNX instance keeps its weights; all else is initialised by the
            key.
        labels: tree of ``"scale_invariant"`` / ``"other"`` over the parameters, or a prefix of it; or ``"auto"``:
            measured at the initial weights on the images, and printed. See `models.measure_labels`.
        key: PRNG key of the initialisation, and of what the network draws in each step, such as for dropout; may be
            traced, so that states of many seeds come from one ``vmap``.
        images: an example mini-batch ``(batch, height, width, channels)``, or any tree of inputs with the batch first;
            only shapes and dtypes matter, unless labels are measured.
        loss: a key of `LOSSES`, or a function of (outputs, targets) that returns the loss of each example, or one
            number for all.
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: ``fixed_norm`` is the norm of each output filter, not of all scale-invariant weights together.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function ``HParams -> optax.GradientTransformation``; see
            `training.optimizers.build_optimizer`.

    Returns:
        The state at step 0.

    Raises:
        ConfigError: a network that is none or is called otherwise, labels that do not fit the parameters, or an unknown
            loss, schedule or optimiser.

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
    if isinstance(labels, str) and labels == AUTO:
        measured = measure_labels(model, images, key)
        print(measured)
        labels = measured.labels

    def create(key: Key[Array, ""]) -> TrainState:
        network, variables = initialise(model, key, images)
        marks = leaf_labels(variables["params"], labels)
        state = state_of(Task(network, marks, loss, schedule, per_filter, optimizer), variables)
        if needs_key(network, variables, images):
            state = state.replace(key=jax.random.bits(jax.random.fold_in(key, DRAWS), (2,), jnp.uint32))
        return state

    # As one program: operation by operation the first state would take 10 seconds instead of 1.
    return jax.jit(create)(key)


def state_of(task: Task, variables: Mapping[str, Any]) -> TrainState:
    """A state at step 0 with given weights and running statistics, of a network that draws no random numbers.

    Args:
        task: what does not change in training.
        variables: ``{"params": ..., "batch_stats": ...}``, the latter optional, and other collections.

    Returns:
        The state, with a momentum of zero.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables.get(STATISTICS, {}),
        opt_state=initial_state(task.optimizer, variables["params"], task.labels, task.per_filter),
        diverged_at=jnp.full((), -1, jnp.int32),
        task=task,
        other={name: tree for name, tree in variables.items() if name not in ("params", STATISTICS)},
    )
