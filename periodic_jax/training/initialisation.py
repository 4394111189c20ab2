"""Initial states from seeds: of the body of a network, and of its head."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from periodic_jax.training.input_pipeline import INITIALISATION, purpose_key
from periodic_jax.training.optimizers import initial_state
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.state import TrainState, create_train_state

HEAD = "head"  # the parameters of the last layer


def seeded_state(
    model: Any,
    labels: Any,
    seeds: Int[Array, "2"],
    images: Any,
    spec: TrainingSpec,
    *,
    has_own_head: bool = False,
) -> TrainState:
    """The state of step 0 of one configuration.

    Args:
        model, labels, images: as for `create_train_state`.
        seeds: of the initialisation, and of the head's.
        spec: how it is trained.
        has_own_head: the head is that of its own seed; otherwise the first seed is of the whole network.

    Example:
        >>> from periodic_jax import models
        >>> model, images = models.build("ConvNetSI", width=2, depth=1), jnp.zeros((2, 8, 8, 1))
        >>> def of(*seeds):
        ...     both = jnp.array(seeds, jnp.uint32)
        ...     return seeded_state(model, model.labels(), both, images, TrainingSpec(), has_own_head=True).params
        >>> one, other = of(0, 1), of(2, 1)
        >>> [bool((one[name]["kernel"] == other[name]["kernel"]).all()) for name in ("conv0", "head")]
        [False, True]
    """

    def of_seed(seed: Array) -> TrainState:
        return create_train_state(
            model, labels, purpose_key(seed, INITIALISATION), images, loss=spec.loss, schedule=spec.schedule,
            per_filter=spec.per_filter, optimizer=spec.optimizer,
        )  # fmt: skip

    state = of_seed(seeds[0])
    if not has_own_head:
        return state
    params = {**state.params, HEAD: of_seed(seeds[1]).params[HEAD]}
    task = state.task
    return state.replace(params=params, opt_state=initial_state(task.optimizer, params, task.labels, task.per_filter))


def seeded_states(model: Any, labels: Any, images: Any, spec: TrainingSpec, *, copies: int, has_own_head: bool) -> Any:
    """A function from seeds ``(groups, states of a group, 2)`` to stacked states ``(groups, configurations, ...)``.

    Args:
        model, labels, images, spec, has_own_head: as for `seeded_state`.
        copies: configurations that start from each state.
    """

    def initialise(seeds: Array) -> TrainState:
        # One state at a time: its weights must not depend on how many there are.
        states = jax.lax.map(
            lambda pair: seeded_state(model, labels, pair, images, spec, has_own_head=has_own_head),
            seeds.reshape(-1, 2),
        )
        return jax.tree.map(
            lambda leaf: jnp.repeat(leaf.reshape(*seeds.shape[:2], *leaf.shape[1:]), copies, axis=1), states
        )

    return initialise
