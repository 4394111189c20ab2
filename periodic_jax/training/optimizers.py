"""Optimisers as optax chains, built inside the step from traced hyperparameters, that measure the dynamics as they go.

    sphere_sgd = track_dynamics(chain(add_decayed_weights, trace, scale_by_group_lr, project_to_sphere))

State is arrays only, so chains of different hyperparameters stack and ``vmap``; an optimiser object must not outlive
the traced numbers that it closes over: build it, update, and drop it inside the step.
"""

from collections.abc import Callable, Hashable
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import Literal
from jaxtyping import Array

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import HParams
from periodic_jax.core.optimizers import OPTIMIZERS
from periodic_jax.models.labels import LabelTree, leaf_labels
from periodic_jax.ops.reductions import global_norm
from periodic_jax.training.schedules import check_scalars, learning_rate
from periodic_jax.training.tracking import needs_params, track_dynamics

MakeOptimizer = Callable[[HParams], optax.GradientTransformation]


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
        marks = leaf_labels(needs_params(params), labels)
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
        moved = jax.tree.map(jnp.add, needs_params(params), updates)
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
    return build_optimizer("sgd", hparams, labels, per_filter)


def check_optimizer(optimizer: Any) -> None:
    """Refuse what is no optimiser.

    Raises:
        ConfigError: neither a key of `core.optimizers.OPTIMIZERS` nor a function that a compiled step can be keyed by.
    """
    accepted = f"one of {', '.join(OPTIMIZERS)}, or a function HParams -> optax.GradientTransformation"
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ConfigError("optimizer", optimizer, accepted)
    elif isinstance(optimizer, optax.GradientTransformation) or not callable(optimizer):
        raise ConfigError("optimizer", f"a {type(optimizer).__name__}", accepted)
    elif not isinstance(optimizer, Hashable):
        raise ConfigError("optimizer", f"a {type(optimizer).__name__} that has no hash", accepted)


def build_optimizer(
    optimizer: str | MakeOptimizer, hparams: HParams, labels: LabelTree, per_filter: bool = False
) -> optax.GradientTransformationExtraArgs:
    """An optimiser with optional projection on a sphere, which records its dynamics.

    With d the direction that the gradients make, and λx added to the gradient first where decay is coupled:

        sgd, nesterov, adam:  x <- x - ηd            (coupled, L2)
        sgdw, adamw, lion:    x <- x - η(d + λx)     (decoupled)

    then x <- r x/|x| where ``fixed_norm`` asks for it. A built-in optimiser takes ``noninvariant_lr`` for the weights
    that are not scale-invariant; a function of yours decides by itself what becomes of them.

    ``elr`` above 0 sets η = elr ρ² in each built-in optimiser. A run takes it with SGD's three only, since η/ρ² is no
    effective learning rate of the others; see `core.optimizers.OPTIMIZERS`.

    Args:
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function ``HParams -> optax.GradientTransformation``.
            Its state must not depend on the hyperparameters.
        hparams: traced numbers of one configuration (all fields scalars).
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.
        per_filter: ``fixed_norm`` is the norm of each output filter, not of all weights together.

    Returns:
        A transformation whose state carries `Dynamics` of the last step. It passes arguments by name on, such as
        ``value``.

    Raises:
        ConfigError: no such optimiser, or a function that returns something else.

    Example:
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> tx = build_optimizer(lambda h: optax.adamw(h.lr, weight_decay=0.0), HParams(lr=0.5), (True,))
        >>> u, state = tx.update({"w": jnp.array([-4.0, 3.0])}, tx.init(params), params)
        >>> u["w"].round(3).tolist()
        [0.5, -0.5]
    """
    check_optimizer(optimizer)
    check_scalars(hparams)
    if isinstance(optimizer, str):
        steps = [*_directions(optimizer, hparams), scale_by_group_lr(hparams, labels)]
    else:
        try:
            steps = [optimizer(hparams)]
        except jax.errors.ConcretizationTypeError:
            given = "a function that branches on a hyperparameter"
            raise ConfigError("optimizer", given, "jnp.where in its place: hyperparameters are traced") from None
        if not isinstance(steps[0], optax.GradientTransformation):
            given = f"a function that returns a {type(steps[0]).__name__}"
            raise ConfigError("optimizer", given, "one that returns an optax.GradientTransformation")
    chain = optax.chain(*steps, project_to_sphere(hparams.fixed_norm, labels, per_filter))
    is_sgd = isinstance(optimizer, str) and OPTIMIZERS[optimizer].is_sgd
    return track_dynamics(chain, hparams, labels, by_angle=not is_sgd)


def _directions(name: str, hparams: HParams) -> list[optax.GradientTransformation]:
    """What a built-in optimiser makes of a gradient before the learning rate."""
    decay = optax.add_decayed_weights(hparams.weight_decay)
    adam = optax.scale_by_adam(hparams.beta1, hparams.beta2, hparams.eps)
    return {
        "sgd": [decay, optax.trace(hparams.momentum)],
        "sgdw": [optax.trace(hparams.momentum), decay],
        "nesterov": [decay, optax.trace(hparams.momentum, nesterov=True)],
        "adam": [decay, adam],
        "adamw": [adam, decay],
        "lion": [optax.scale_by_lion(hparams.beta1, hparams.beta2), decay],
    }[name]


def initial_state(optimizer: str | MakeOptimizer, params: Any, labels: LabelTree, per_filter: bool = False) -> Any:
    """The state of an optimiser's chain at step 0, without measurements.

    Args:
        optimizer, labels, per_filter: as for `build_optimizer`.
        params: the weights.

    Raises:
        ConfigError: no such optimiser, or one whose state depends on hyperparameters, as that of
            ``optax.inject_hyperparams``: all configurations begin with the same one.
    """

    def init(hparams: HParams, params: Any) -> Any:
        tracked: Any = build_optimizer(optimizer, hparams, labels, per_filter).init(params)
        return tracked.inner

    hparams = HParams()
    if not isinstance(optimizer, str):
        numbers = HParams(*(jnp.asarray(value, float) for value in hparams))
        closed = jax.make_jaxpr(init)(numbers, params)
        known = set(closed.jaxpr.invars[: len(hparams)])
        for equation in closed.jaxpr.eqns:
            if known.intersection(v for v in equation.invars if not isinstance(v, Literal)):
                known.update(equation.outvars)
        if known.intersection(v for v in closed.jaxpr.outvars if not isinstance(v, Literal)):
            given = "one whose state holds hyperparameters, as that of optax.inject_hyperparams"
            raise ConfigError("optimizer", given, "one that closes over them: they differ between configurations")
    return init(hparams, params)
