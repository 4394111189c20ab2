"""The train step of one configuration: pure functions of (state, hparams, batch), to jit, ``vmap`` and scan as one
likes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams
from periodic_jax.models.adapters import STATISTICS
from periodic_jax.ops.reductions import global_norm
from periodic_jax.training.losses import has_answers, losses
from periodic_jax.training.optimizers import build_optimizer
from periodic_jax.training.schedules import check_scalars, scheduled
from periodic_jax.training.state import Batch, TrainState
from periodic_jax.training.tracking import TrackDynamicsState

Metrics = dict[str, Array]


def train_step(state: TrainState, hparams: HParams, batch: Batch | tuple[Any, Any]) -> tuple[TrainState, Metrics]:
    """One step of the optimiser on one mini-batch.

    The metrics describe the state before the update and the update itself, so that between neighbours of plain SGD
    ρ_{t+1}² = a²ρ_t² + η²g̃_t²/ρ_t². A configuration whose loss or new weights are not finite keeps its last state,
    marks the step, and stays frozen; its metrics are NaN from the next step on.

    Args:
        state: of one configuration.
        hparams: its numbers, scalars; momentum and betas that the optimiser does not read have no effect. ``elr`` above
            0 sets the learning rate of every built-in optimiser.
        batch: images and labels, a `Batch` or a pair of the two; a label that is no class makes the loss NaN, and is
            refused where it is known, outside of ``jit``.

    Returns:
        The next state, of the same structure and dtypes, and the metrics: ``loss`` and ``accuracy`` of the mini-batch
        and all fields of `training.tracking.Dynamics`. The accuracy is NaN where the targets are no class labels.

    Raises:
        ConfigError: stacked states or arrays of hyperparameters outside of ``vmap``, or a batch, outputs or labels that
            do not fit.

    Example:
        >>> from periodic_jax import Batch, SweepGrid, create_train_state, models
        >>> model = models.build("ConvNetSI", width=2)
        >>> batch = Batch(jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.arange(4))
        >>> state = create_train_state(model, model.labels(), jax.random.key(0), batch.images)
        >>> states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), state)
        >>> hparams = SweepGrid.product(lr=[0.1, 1.0], weight_decay=1e-3).hparams()
        >>> states, metrics = jax.jit(jax.vmap(train_step, in_axes=(0, 0, None)))(states, hparams, batch)
        >>> metrics["loss"].shape
        (2,)
    """
    return update(state, hparams, gradients(state, as_batch(batch)))


def full_batch_step(state: TrainState, hparams: HParams, batches: Batch) -> tuple[TrainState, Metrics]:
    """One step of full-batch gradient descent: the mean of the mini-batches' gradients, each with its own statistics.

    Args:
        state: of one configuration.
        hparams: its numbers, scalars.
        batches: mini-batches of one size, stacked: every leaf has an axis ``(batches, ...)`` in front.

    Returns:
        As `train_step`; ``loss`` and ``accuracy`` are over all images, and the running statistics have seen each
        mini-batch once, in order.
    """
    return update(state, hparams, full_batch_gradients(state, batches))


class Gradients(NamedTuple):
    """What the update needs of a mini-batch. The images reach it through nothing else, so a program may compute the
    gradients of many configurations in a loop, and update all of them at once.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    of_params: Any
    collections: Any  # what the network changes, after the mini-batch: running statistics above all


def gradients(state: TrainState, batch: Batch) -> Gradients:
    """Mean loss, accuracy, gradients and new running statistics of one mini-batch."""
    check_single(state)
    return _gradients(state, state.collections, batch, state.step_key)


def full_batch_gradients(state: TrainState, batches: Batch) -> Gradients:
    """The same over stacked mini-batches; see `full_batch_step`."""
    check_single(state)
    batches, step_key = as_batch(batches), state.step_key
    count = len(jax.tree.leaves(batches)[0])

    def add(carry: Any, counted: tuple[Batch, Array | None]) -> tuple[Any, None]:
        collections, total = carry
        batch, i = counted
        key = None if step_key is None or i is None else jax.random.fold_in(step_key, i)
        *terms, collections = _gradients(state, collections, batch, key)
        return (collections, jax.tree.map(jnp.add, total, tuple(terms))), None

    first = jax.tree.map(lambda leaf: leaf[0], batches)
    shapes = jax.eval_shape(lambda batch: _gradients(state, state.collections, batch, step_key)[:3], first)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    numbers = None if step_key is None else jnp.arange(count)
    (collections, total), _ = jax.lax.scan(add, (state.collections, zeros), (batches, numbers))
    loss, accuracy, grads = jax.tree.map(lambda leaf: leaf / count, total)
    return Gradients(loss, accuracy, grads, collections)


def _gradients(state: TrainState, collections: Any, batch: Batch, key: Any) -> Gradients:
    task = state.task

    def loss_of(params: Any) -> tuple[Array, tuple[Any, Any]]:
        outputs, mutated = task.network.apply({"params": params, **collections}, batch.images, train=True, key=key)
        for name, tree in collections.items():
            if jax.tree.structure(mutated[name]) != jax.tree.structure(tree):
                raise ConfigError("model", f"a collection {name} that grows in a step", "those whose structure stays")
        # Flax keeps statistics in float32, and returns those of wider numbers in their dtype.
        mutated = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), mutated, collections)
        return losses(task.loss, outputs, batch.labels).mean(), (outputs, mutated)

    (loss, (outputs, collections)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    if not has_answers(outputs, batch.labels):
        return Gradients(loss, jnp.full_like(loss, jnp.nan), grads, collections)
    return Gradients(loss, (outputs.argmax(-1) == batch.labels).mean(dtype=loss.dtype), grads, collections)


def check_single(state: TrainState) -> None:
    """Refuse stacked states outside of ``vmap``.

    Raises:
        ConfigError: the states of several configurations.
    """
    if state.step.ndim:
        given = f"one of {len(state.step)} configurations"
        raise ConfigError("state", given, "that of one; jax.vmap(train_step, in_axes=(0, 0, None)) takes many")


def as_batch(batch: Any) -> Batch:
    """A `Batch`, also of a plain pair of images and labels.

    Raises:
        ConfigError: something else.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(*batch)
    raise ConfigError("batch", f"a {type(batch).__name__}", "a Batch, or a pair (images, labels)")


def update(state: TrainState, hparams: HParams, terms: Gradients) -> tuple[TrainState, Metrics]:
    """Apply the optimiser, measure, and freeze what diverged: the second half of `train_step`."""
    task, (loss, accuracy, grads, collections) = state.task, terms
    check_scalars(hparams)
    hparams = scheduled(HParams(*(jnp.asarray(h, loss.dtype) for h in hparams)), state.step, task.schedule)
    chain: Any = build_optimizer(task.optimizer, hparams, task.labels, task.per_filter)
    updates, tracked = chain.update(grads, TrackDynamicsState(state.opt_state, None), state.params, value=loss)
    metrics = {"loss": loss, "accuracy": accuracy, **tracked.dynamics._asdict()}

    # A sum of squares is finite exactly when all its terms are, short of an overflow, which is divergence too. Only the
    # update counts, not the gradient: a frozen head's may overflow without harm.
    alive = state.diverged_at < 0
    is_finite = jnp.isfinite(loss) & jnp.isfinite(global_norm(jax.tree.leaves(updates)))
    proposed = optax.apply_updates(state.params, updates), collections, tracked.inner
    present = state.params, state.collections, state.opt_state
    params, collections, opt_state = jax.tree.map(
        lambda new, old: jnp.where(alive & is_finite, new, old), proposed, present
    )
    batch_stats = collections.pop(STATISTICS)
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        other=collections,
        diverged_at=jnp.where(alive & ~is_finite, state.step, state.diverged_at),
    )
    return new_state, _known(metrics, alive)


def _known(metrics: Metrics, alive: Array) -> Metrics:
    """The metrics, or NaN. All scalars are chosen at once, which is one loop instead of one for each."""
    names = [name for name, value in metrics.items() if value.ndim == 0]
    scalars = jnp.where(alive, jnp.stack([metrics[name] for name in names]), jnp.nan)
    layers = {name: jnp.where(alive, value, jnp.nan) for name, value in metrics.items() if value.ndim}
    return {**dict(zip(names, scalars, strict=True)), **layers}


def eval_step(
    state: TrainState, batch: Batch | tuple[Any, Any], train: bool = False
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Loss and error of each example of one batch, without changing the state.

    Args:
        state: of one configuration.
        batch: images and labels.
        train: normalise by the batch's statistics, as in training, instead of the running ones.

    Returns:
        The losses, and the share of wrong answers of each example: 1 or 0 for one answer, NaN where the targets are no
        class labels. What a loss of your own returns is returned as it is.
    """
    task, pair = state.task, as_batch(batch)
    variables = {"params": state.params, **state.collections}
    outputs, _ = task.network.apply(variables, pair.images, train=train, key=state.step_key if train else None)
    values = losses(task.loss, outputs, pair.labels)
    if not has_answers(outputs, pair.labels):
        return values, jnp.full_like(values, jnp.nan)
    wrong = (outputs.argmax(-1) != pair.labels).astype(outputs.dtype)
    return values, wrong.mean(range(1, wrong.ndim)) if wrong.ndim > 1 else wrong
