"""The optimiser as an optax chain, built inside the step from traced hyperparameters, that measures the dynamics as it
goes.

    sphere_sgd = track_dynamics(chain(add_decayed_weights, trace, scale_by_group_lr, project_to_sphere))

State is arrays only, so chains of different hyperparameters stack and ``vmap``; an optimiser object must not outlive
the traced numbers that it closes over: build it, update, and drop it inside the step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from periodic_jax.grid import HParams
from periodic_jax.models.labels import leaf_labels
from periodic_jax.sums import global_norm, in_groups, of_leaves, over_groups, over_leaves

Scalar = Float[Array, ""]
LabelTree = Any  # a tree of words as `models.leaf_labels` takes it, or `Labels`


class Dynamics(NamedTuple):
    """What one step did, and the state of the weights before it. All scalars but the ``layer_`` arrays ``(layers,)``.

    A layer is one scale-invariant leaf of the parameters, in `jax.tree.leaves` order.
    """

    weight_norm: Scalar  # ρ, of the scale-invariant weights
    grad_norm: Scalar  # |∇f|, of the loss alone (no decay), over the scale-invariant weights
    effective_grad_norm: Scalar  # g̃ = ρ|∇f|
    effective_lr: Scalar  # η̃ = η/ρ²
    angular_step: Scalar  # θ, radians, between the scale-invariant weights before and after
    radial_leak: Scalar  # |⟨∇f, x⟩| / (|∇f| ρ): 0 for exact scale invariance
    noninvariant_weight_norm: Scalar
    noninvariant_grad_norm: Scalar
    layer_weight_norm: Float[Array, "layers"]
    layer_effective_grad_norm: Float[Array, "layers"]
    layer_effective_lr: Float[Array, "layers"]
    layer_angular_step: Float[Array, "layers"]


class ProjectToSphereState(NamedTuple):
    """State of `project_to_sphere`."""

    initial_norms: list[Array]  # of each marked leaf: ρ_0 of them all, or its filters' norms; the radius if negative


class TrackDynamicsState(NamedTuple):
    """State of `track_dynamics`: that of the wrapped transformation, and the last step's measurements."""

    inner: Any
    dynamics: Any  # `Dynamics` of the last step, or None: the next step needs none


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


def scale_by_group_lr(hparams: HParams, labels: LabelTree) -> optax.GradientTransformation:
    """Multiply updates by -η: `learning_rate` for scale-invariant leaves, ``noninvariant_lr`` for the others.

    Args:
        hparams: traced numbers; a negative ``noninvariant_lr`` means the same rate as the rest, 0 freezes exactly.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.

    Returns:
        A stateless transformation that needs ``params``.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        lr = learning_rate(hparams, global_norm(_group(params, labels)))
        other = jnp.asarray(hparams.noninvariant_lr, lr.dtype)
        rates = {True: lr, False: jnp.where(other < 0, lr, other)}

        def scale(u: Array, marked: bool) -> Array:
            rate = rates[marked].astype(u.dtype)
            return jnp.where(rate == 0, 0, -rate * u)  # a frozen weight stays, whatever its gradient

        return _map_group(scale, updates, labels), state

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
        leaves = _group(tree, labels)
        if per_filter:
            return [jnp.sqrt(jnp.einsum("...o,...o->o", leaf, leaf)) for leaf in leaves]
        return [global_norm(leaves)] * len(leaves)

    def init(params: Any) -> ProjectToSphereState:
        return ProjectToSphereState(norms(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        moved = jax.tree.map(jnp.add, params, updates)
        radii = iter(zip(norms(moved), state.initial_norms, strict=True))

        def amend(u: Array, x: Array, y: Array, marked: bool) -> Array:
            if not marked:
                return u
            norm, initial = next(radii)
            wanted = jnp.asarray(fixed_norm, norm.dtype)
            return jnp.where(wanted == 0, u, jnp.where(wanted < 0, initial, wanted) / norm * y - x)

        leaves = zip(*map(jax.tree.leaves, (updates, params, moved)), leaf_labels(params, labels), strict=True)
        return jax.tree.unflatten(jax.tree.structure(updates), [amend(*leaf) for leaf in leaves]), state

    return optax.GradientTransformation(init, update)


def track_dynamics(
    inner: optax.GradientTransformation, hparams: HParams, labels: LabelTree
) -> optax.GradientTransformation:
    """Wrap a transformation and measure each step: norms, effective learning rate and gradient norm, angular step.

    The angle comes from the tangential part of the update, u_t = u - x⟨u, x⟩/ρ²: tan θ = |u_t| / (ρ + ⟨u, x⟩/ρ). That
    holds for any update (momentum, projection) and never subtracts nearly equal numbers, as 1 - cos θ would.

    Args:
        inner: the transformation from gradients to updates.
        hparams: traced numbers, for the learning rate.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.

    Returns:
        A transformation with the updates of ``inner`` and a `TrackDynamicsState`.

    Example:
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> tx = track_dynamics(optax.sgd(1.0), HParams(lr=1.0), (True,))
        >>> _, state = tx.update({"w": jnp.array([-4.0, 3.0])}, tx.init(params), params)
        >>> float(state.dynamics.weight_norm), round(float(state.dynamics.angular_step), 6)
        (5.0, 0.785398)
    """

    def init(params: Any) -> TrackDynamicsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return TrackDynamicsState(inner.init(params), measure(params, zeros, zeros, hparams, labels))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        amended, inner_state = inner.update(updates, state.inner, params)
        return amended, TrackDynamicsState(inner_state, measure(params, updates, amended, hparams, labels))

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
    chain = optax.chain(
        optax.add_decayed_weights(hparams.weight_decay),
        optax.trace(decay=hparams.momentum),
        scale_by_group_lr(hparams, labels),
        project_to_sphere(hparams.fixed_norm, labels, per_filter),
    )
    return track_dynamics(chain, hparams, labels)


def measure(params: Any, grads: Any, updates: Any, hparams: HParams, labels: LabelTree) -> Dynamics:
    """`Dynamics` of one step.

    Args:
        params: weights before the step.
        grads: gradients of the loss alone, as ``params``.
        updates: what is added to the weights, as ``params``.
        hparams: traced numbers, for the learning rate.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.
    """
    leaves, marks = jax.tree.leaves(params), np.array(leaf_labels(params, labels))
    if not any(marks):
        return _nothing_to_measure(params, grads)
    x, g, u = in_groups(*map(jax.tree.leaves, (params, grads, updates)))
    products = over_leaves(leaves, (x, x), (g, g), (g, x), (u, x))
    x_x, g_g, g_x, u_x = products[:, marks]
    norm_sq, along = x_x.sum(), u_x.sum()
    norm, grad_norm = jnp.sqrt(norm_sq), jnp.sqrt(g_g.sum())
    shares = jnp.where(x_x > 0, u_x / x_x, 0)
    of_layers = [[own for own, mark in zip(of_leaves(v, leaves), marks, strict=True) if mark] for v in (x, u)]
    tangents = [b - a * share for a, b, share in zip(*of_layers, shares, strict=True)]
    moved_sq = over_groups([jnp.square(tangent) for tangent in tangents])
    # u_t of all layers together: within a layer what is tangential there, and along x what its share differs by.
    tangent_sq = (moved_sq + (shares - along / norm_sq) ** 2 * x_x).sum()
    layer_norm, layer_grad_norm, layer_moved = jnp.sqrt(x_x), jnp.sqrt(g_g), jnp.sqrt(moved_sq)
    other_weight_norm, other_grad_norm = jnp.sqrt(products[:2, ~marks].sum(1))
    lr = learning_rate(hparams, norm)
    return Dynamics(
        weight_norm=norm,
        grad_norm=grad_norm,
        effective_grad_norm=norm * grad_norm,
        effective_lr=lr / norm_sq,
        angular_step=jnp.arctan2(jnp.sqrt(tangent_sq), norm + along / norm),
        radial_leak=jnp.abs(g_x.sum()) / jnp.maximum(norm * grad_norm, jnp.finfo(norm.dtype).tiny),
        noninvariant_weight_norm=other_weight_norm,
        noninvariant_grad_norm=other_grad_norm,
        layer_weight_norm=layer_norm,
        layer_effective_grad_norm=layer_norm * layer_grad_norm,
        layer_effective_lr=lr / x_x,
        layer_angular_step=jnp.arctan2(layer_moved, layer_norm + u_x / layer_norm),
    )


def _nothing_to_measure(params: Any, grads: Any) -> Dynamics:
    """A network without scale-invariant weights: only the norms of the others exist, the rest is NaN."""
    norm, grad_norm = global_norm(jax.tree.leaves(params)), global_norm(jax.tree.leaves(grads))
    nan, empty = jnp.full((), jnp.nan, norm.dtype), jnp.zeros((0,), norm.dtype)
    fields = {name: empty if name.startswith("layer_") else nan for name in Dynamics._fields}
    return Dynamics(**{**fields, "noninvariant_weight_norm": norm, "noninvariant_grad_norm": grad_norm})


def dynamics_of(opt_state: Any) -> Dynamics:
    """The measurements that an outermost `track_dynamics` left in its `TrackDynamicsState`."""
    return opt_state.dynamics


def _group(tree: Any, labels: LabelTree) -> list[Array]:
    """The leaves that are marked."""
    marks = leaf_labels(tree, labels)
    return [leaf for leaf, marked in zip(jax.tree.leaves(tree), marks, strict=True) if marked]


def _map_group(function: Any, tree: Any, labels: LabelTree) -> Any:
    marks = leaf_labels(tree, labels)
    leaves = [function(leaf, marked) for leaf, marked in zip(jax.tree.leaves(tree), marks, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
