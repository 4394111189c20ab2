"""The optimiser as an optax chain, built inside the step from traced hyperparameters, that measures the dynamics as it
goes.

    sphere_sgd = track_dynamics(chain(add_decayed_weights, trace, scale_by_group_lr, project_to_sphere))

State is arrays only, so chains of different hyperparameters stack and ``vmap``; an optimiser object must not outlive
the traced numbers that it closes over: build it, update, and drop it inside the step.
"""

from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from periodic_jax.core.grid import HParams
from periodic_jax.models.labels import LabelTree, leaf_labels
from periodic_jax.ops.reductions import global_norm
from periodic_jax.training.schedules import check_scalars, learning_rate
from periodic_jax.training.tracking import track_dynamics


class ProjectToSphereState(NamedTuple):
    """State of `project_to_sphere`."""

    initial_norms: list[Array]  # of each marked leaf: ρ_0 of them all, or its filters' norms; the radius if negative


def scale_by_group_lr(hparams: HParams, labels: LabelTree) -> optax.GradientTransformation:
    """Multiply updates by -η: `learning_rate` for scale-invariant leaves, ``noninvariant_lr`` for the others.

    Args:
        hparams: traced numbers; a negative ``noninvariant_lr`` means the same rate as the rest, 0 freezes exactly.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.

    Returns:
        A stateless transformation that needs ``params``.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        marks = leaf_labels(params, labels)
        lr = learning_rate(hparams, global_norm(list(compress(jax.tree.leaves(params), marks))))
        other = jnp.asarray(hparams.noninvariant_lr, lr.dtype)
        rates = {True: lr, False: jnp.where(other < 0, lr, other)}

        def scale(u: Array, is_marked: bool) -> Array:
            rate = rates[is_marked].astype(u.dtype)
            return jnp.where(rate == 0, 0, -rate * u)  # a frozen weight stays, whatever its gradient

        leaves, tree = jax.tree.flatten(updates)
        return tree.unflatten(map(scale, leaves, marks)), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def project_to_sphere(fixed_norm: Any, labels: LabelTree, per_filter: bool = False) -> optax.GradientTransformation:
    """Amend updates so that the scale-invariant weights end on a sphere: u <- r (x + u)/|x + u| - x. Last in a chain.

    Args:
        fixed_norm: radius r, a traced scalar; 0 leaves the updates as they are, to the bit, and a negative one means
            the norm at ``init``.
        labels: tree that marks the leaves of the vector x; see `models.leaf_labels`.
        per_filter: put the weights of each output filter (the last axis of a leaf) on a sphere of its own.

    Returns:
        A transformation that needs ``params``.

    Example:
        >>> tx = project_to_sphere(2.0, (True,))
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> u, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
        >>> round(float(jnp.linalg.norm(optax.apply_updates(params, u)["w"])), 5)
        2.0
    """

    def norms(tree: Any) -> list[Array]:
        leaves = list(compress(jax.tree.leaves(tree), leaf_labels(tree, labels)))
        if per_filter:
            return [jnp.sqrt(jnp.einsum("...o,...o->o", leaf, leaf, precision="highest")) for leaf in leaves]
        return [global_norm(leaves)] * len(leaves)

    def init(params: Any) -> ProjectToSphereState:
        return ProjectToSphereState(norms(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moved = jax.tree.map(jnp.add, params, updates)
        radii = iter(zip(norms(moved), state.initial_norms, strict=True))

        def amend(u: Array, x: Array, y: Array, is_marked: bool) -> Array:
            if not is_marked:
                return u
            norm, initial = next(radii)
            wanted = jnp.asarray(fixed_norm, norm.dtype)
            return jnp.where(wanted == 0, u, jnp.where(wanted < 0, initial, wanted) / norm * y - x)

        leaves = zip(*map(jax.tree.leaves, (updates, params, moved)), leaf_labels(params, labels), strict=True)
        return jax.tree.unflatten(jax.tree.structure(updates), [amend(*leaf) for leaf in leaves]), state

    return optax.GradientTransformation(init, update)


def sphere_sgd(hparams: HParams, labels: LabelTree, per_filter: bool = False) -> optax.GradientTransformation:
    """SGD with coupled weight decay, momentum and optional projection on a sphere, which records its dynamics.

    v <- μv + ∇f + λx;  x <- x - ηv;  then x <- r x/|x| where ``fixed_norm`` asks for it, as `torch.optim.SGD` followed
    by a rescaling.

    Args:
        hparams: traced numbers of one configuration (all fields scalars).
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.
        per_filter: ``fixed_norm`` is the norm of each output filter, not of all weights together.

    Returns:
        A transformation whose state carries `Dynamics` of the last step.

    Example:
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> tx = sphere_sgd(HParams(lr=0.5, weight_decay=0.2), (True,))
        >>> u, state = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
        >>> float(jnp.linalg.norm(optax.apply_updates(params, u)["w"]))
        4.5
    """
    check_scalars(hparams)
    chain = optax.chain(
        optax.add_decayed_weights(hparams.weight_decay),
        optax.trace(decay=hparams.momentum),
        scale_by_group_lr(hparams, labels),
        project_to_sphere(hparams.fixed_norm, labels, per_filter),
    )
    return track_dynamics(chain, hparams, labels)
