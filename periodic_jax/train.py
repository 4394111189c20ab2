"""The train step of one configuration: pure functions of (state, hparams, batch), to jit, ``vmap`` and scan as one
likes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key

from periodic_jax.grid import HParams
from periodic_jax.models.labels import Labels, leaf_labels
from periodic_jax.optim import dynamics_of, sphere_sgd

Metrics = dict[str, Array]


class Batch(NamedTuple):
    """A mini-batch. ``images`` may be whatever the network's ``prepare`` returned, shared by all configurations that
    see the batch.
    """

    images: Any  # (batch, height, width, channels), normalised
    labels: Int[Array, "batch"]  # class of each image


def cross_entropy(logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]) -> Float[Array, "batch"]:
    """-ln softmax(logits)[label] of each example."""
    log_probabilities = jax.nn.log_softmax(logits, axis=1)
    return -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]


LOSSES: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": cross_entropy}


@dataclass(frozen=True)
class Task:
    """What does not change in training and is no array: hashable, so that a compiled step is keyed by it.

    Attributes:
        model: a Flax module; called as ``model.apply(variables, images, train=...)`` it returns logits ``(batch,
            classes)``.
        labels: for each parameter leaf, whether it is in the scale-invariant group.
        loss: a key of `LOSSES`.
    """

    model: nn.Module
    labels: Labels
    loss: str = "cross_entropy"


class TrainState(struct.PyTreeNode):
    """All arrays that training changes, of one configuration, or of many with the configuration axis first."""

    step: Int[Array, ""]  # updates made
    params: Any
    batch_stats: Any  # running statistics of batch normalisation; {} where there are none
    opt_state: Any
    diverged_at: Int[Array, ""]  # step whose loss or update was not finite; -1 while there was none
    task: Task = struct.field(pytree_node=False)


def create_train_state(
    model: nn.Module,
    labels: Any,
    key: Key[Array, ""],
    images: Any,
    loss: str = "cross_entropy",
) -> TrainState:
    """A freshly initialised state.

    Args:
        model: a Flax module whose ``__call__(images, train)`` returns logits; a ``batch_stats`` collection is optional.
        labels: tree of ``"scale_invariant"`` / ``"other"`` over the parameters, or a prefix of it.
        key: PRNG key of the initialisation; may be traced, so that states of many seeds come from one ``vmap``.
        images: an example mini-batch ``(batch, height, width, channels)``; only its shape and dtype matter.
        loss: a key of `LOSSES`.

    Returns:
        The state at step 0.

    Raises:
        ConfigError: labels that do not fit the parameters.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2)
        >>> state = create_train_state(model, model.labels(), jax.random.key(0), jnp.zeros((4, 8, 8, 1)))
        >>> int(state.step), sum(state.task.labels)
        (0, 4)
    """
    variables = model.init(key, images, train=True)
    params = variables["params"]
    marks = leaf_labels(params, labels)
    opt_state = sphere_sgd(HParams(), marks).init(params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=opt_state,
        diverged_at=jnp.full((), -1, jnp.int32),
        task=Task(model, marks, loss),
    )


def train_step(state: TrainState, hparams: HParams, batch: Batch) -> tuple[TrainState, Metrics]:
    """One step of `sphere_sgd` on one mini-batch.

    The metrics describe the state before the update and the update itself, so that between neighbours of plain SGD
    ρ_{t+1}² = a²ρ_t² + η²g̃_t²/ρ_t². A configuration whose loss or new weights are not finite keeps its last state,
    marks the step, and stays frozen; its metrics are NaN from the next step on.

    Args:
        state: of one configuration.
        hparams: its numbers, scalars.
        batch: images and labels.

    Returns:
        The next state, of the same structure and dtypes, and the metrics: ``loss`` and ``accuracy`` of the mini-batch
        and all fields of `optim.Dynamics`.

    Example:
        >>> from periodic_jax import SweepGrid, models
        >>> model = models.build("ConvNetSI", width=2)
        >>> batch = Batch(jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.arange(4))
        >>> state = create_train_state(model, model.labels(), jax.random.key(0), batch.images)
        >>> states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
        >>> hparams = SweepGrid.product(lr=[0.1, 1.0], weight_decay=1e-3).hparams()
        >>> states, metrics = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None)))(states, hparams, batch)
        >>> metrics["loss"].shape
        (2,)
    """
    task = state.task

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, mutated = task.model.apply(variables, batch.images, train=True, mutable=["batch_stats"])
        return LOSSES[task.loss](logits, batch.labels).mean(), (logits, mutated.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    hparams = HParams(*(jnp.asarray(h, loss.dtype) for h in hparams))
    optimiser = sphere_sgd(hparams, task.labels)
    updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
    dynamics = dynamics_of(opt_state)
    metrics = {
        "loss": loss,
        "accuracy": (logits.argmax(1) == batch.labels).mean(dtype=loss.dtype),
        **dynamics._asdict(),
    }

    # Sums of squares are finite exactly when all their terms are (short of overflow, which is divergence too). The
    # norm of the other weights' gradient counts only where they move: a frozen head may overflow without harm.
    alive = state.diverged_at < 0
    moved = optax.tree.norm(updates)
    sound = jnp.isfinite(loss) & jnp.isfinite(moved)
    proposed = (optax.apply_updates(state.params, updates), batch_stats, opt_state)
    params, batch_stats, opt_state = jax.tree.map(
        lambda new, old: jnp.where(alive & sound, new, old),
        proposed,
        (state.params, state.batch_stats, state.opt_state),
    )
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        diverged_at=jnp.where(alive & ~sound, state.step, state.diverged_at),
    )
    return new_state, {name: jnp.where(alive, value, jnp.nan) for name, value in metrics.items()}


def eval_step(
    state: TrainState, batch: Batch, train: bool = False
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Loss and error of each example of one batch, without changing the state.

    Args:
        state: of one configuration.
        batch: images and labels.
        train: normalise by the batch's statistics, as in training, instead of the running ones.

    Returns:
        The losses, and 1 for each wrong answer, 0 for each right one.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits, _ = state.task.model.apply(variables, batch.images, train=train, mutable=["batch_stats"] if train else [])
    return LOSSES[state.task.loss](logits, batch.labels), (logits.argmax(1) != batch.labels).astype(logits.dtype)
