"""The measurements of a step: norms, effective learning rate, angular step."""

from collections.abc import Sequence
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from periodic_jax.core.grid import HParams
from periodic_jax.models.labels import LabelTree, leaf_labels
from periodic_jax.ops.reductions import (
    by_device,
    each_row,
    global_norm,
    in_groups,
    in_rows,
    of_leaves,
    over_groups,
    over_leaves,
    over_rows,
)
from periodic_jax.training.schedules import Scalar, learning_rate


class Dynamics(NamedTuple):
    """What one step did, and the state of the weights before it. All scalars but the ``layer_`` arrays ``(layers,)``.

    A layer is one scale-invariant leaf of the parameters, in `jax.tree.leaves` order.
    """

    weight_norm: Scalar  # ρ, of the scale-invariant weights
    grad_norm: Scalar  # |∇f|, of the loss alone (no decay), over the scale-invariant weights
    effective_grad_norm: Scalar  # g̃ = ρ|∇f|
    effective_lr: Scalar  # η̃ = η/ρ², or θ/g̃; see `track_dynamics`
    angular_step: Scalar  # θ, radians, between the scale-invariant weights before and after
    radial_leak: Scalar  # |⟨∇f, x⟩| / (|∇f| ρ): 0 for exact scale invariance
    radial_update: Scalar  # r = ⟨u, x⟩/ρ, of the update u: ρ₊² = (ρ + r)² + |u_t|²
    tangential_update: Scalar  # |u_t|, of the rest of it
    step_lr: Scalar  # η of the step, whatever the schedule
    noninvariant_weight_norm: Scalar
    noninvariant_grad_norm: Scalar
    layer_weight_norm: Float[Array, "layers"]
    layer_effective_grad_norm: Float[Array, "layers"]
    layer_effective_lr: Float[Array, "layers"]
    layer_angular_step: Float[Array, "layers"]


class TrackDynamicsState(NamedTuple):
    """State of `track_dynamics`: that of the wrapped transformation, and the last step's measurements."""

    inner: Any
    dynamics: Any  # `Dynamics` of the last step, or None: the next step needs none


def needs_params(params: Any) -> Any:
    """The parameters, or optax's own error if there are none.

    Raises:
        ValueError: None.
    """
    if params is None:
        optax.add_decayed_weights(1.0).update({}, optax.EmptyState(), None)  # raises it; optax exports no message
    return params


def track_dynamics(
    inner: optax.GradientTransformation, hparams: HParams, labels: LabelTree, *, by_angle: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Wrap a transformation and measure each step: norms, effective learning rate and gradient norm, angular step.

    The angle comes from the tangential part of the update, u_t = u - x⟨u, x⟩/ρ²: tan θ = |u_t| / (ρ + ⟨u, x⟩/ρ). That
    holds for any update (momentum, projection) and never subtracts nearly equal numbers, as 1 - cos θ would.

    The effective learning rate of SGD is η̃ = η/ρ². An update that is no sum of gradients times η has no such rate;
    there it is defined as the angular step for each unit of the direction's gradient, η̃ = θ/g̃, NaN where that gradient
    is 0.

    Args:
        inner: the transformation from gradients to updates.
        hparams: traced numbers, for the learning rate.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.
        by_angle: the effective learning rate is θ/g̃, not η/ρ².

    Returns:
        A transformation with the updates of ``inner`` and a `TrackDynamicsState`. Arguments by name, such as ``value``,
        reach ``inner``.

    Example:
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> tx = track_dynamics(optax.sgd(1.0), HParams(lr=1.0), (True,))
        >>> _, state = tx.update({"w": jnp.array([-4.0, 3.0])}, tx.init(params), params)
        >>> float(state.dynamics.weight_norm), round(float(state.dynamics.angular_step), 6)
        (5.0, 0.785398)
    """

    def init(params: Any) -> TrackDynamicsState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return TrackDynamicsState(inner.init(params), measure(params, zeros, zeros, hparams, labels, by_angle))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        amended, inner_state = wrapped.update(updates, state.inner, needs_params(params), **extra)
        return amended, TrackDynamicsState(inner_state, measure(params, updates, amended, hparams, labels, by_angle))

    wrapped = optax.with_extra_args_support(inner)
    return optax.GradientTransformationExtraArgs(init, update)


def measure(
    params: Any, grads: Any, updates: Any, hparams: HParams, labels: LabelTree, by_angle: bool = False
) -> Dynamics:
    """`Dynamics` of one step.

    Args:
        params: weights before the step.
        grads: gradients of the loss alone, as ``params``.
        updates: what is added to the weights, as ``params``.
        hparams: traced numbers, for the learning rate.
        labels: tree that marks the scale-invariant leaves; see `models.leaf_labels`.
        by_angle: as for `track_dynamics`.
    """
    marks = np.array(leaf_labels(params, labels))
    if not any(marks):
        return _nothing_to_measure(params, grads, hparams)
    three = [jax.tree.leaves(tree) for tree in (params, grads, updates)]
    by_groups = partial(_by_groups, marks)
    products, shares, moved_sq = by_device(
        partial(_by_rows, marks), partial(by_groups, reshape=False), by_groups, *three
    )
    x_x, g_g, g_x, u_x = products[:, marks]
    norm_sq, along = x_x.sum(), u_x.sum()
    norm, grad_norm = jnp.sqrt(norm_sq), jnp.sqrt(g_g.sum())
    # u_t of all layers together: within a layer what is tangential there, and along x what its share differs by.
    tangent_sq = (moved_sq + (shares - along / norm_sq) ** 2 * x_x).sum()
    layer_norm, layer_grad_norm, layer_moved = jnp.sqrt(x_x), jnp.sqrt(g_g), jnp.sqrt(moved_sq)
    other_weight_norm, other_grad_norm = jnp.sqrt(products[:2, ~marks].sum(1))
    lr = learning_rate(hparams, norm)
    tangent = jnp.sqrt(tangent_sq)
    gradient, layer_gradient = norm * grad_norm, layer_norm * layer_grad_norm
    angle, layer_angle = (
        jnp.arctan2(tangent, norm + along / norm), jnp.arctan2(layer_moved, layer_norm + u_x / layer_norm)
    )  # fmt: skip
    effective_lr, layer_effective_lr = lr / norm_sq, lr / x_x
    if by_angle:
        effective_lr, layer_effective_lr = _ratio(angle, gradient), _ratio(layer_angle, layer_gradient)
    return Dynamics(
        weight_norm=norm,
        grad_norm=grad_norm,
        effective_grad_norm=gradient,
        effective_lr=effective_lr,
        angular_step=angle,
        radial_leak=jnp.abs(g_x.sum()) / jnp.maximum(gradient, jnp.finfo(norm.dtype).tiny),
        radial_update=along / norm,
        tangential_update=tangent,
        step_lr=lr,
        noninvariant_weight_norm=other_weight_norm,
        noninvariant_grad_norm=other_grad_norm,
        layer_weight_norm=layer_norm,
        layer_effective_grad_norm=layer_gradient,
        layer_effective_lr=layer_effective_lr,
        layer_angular_step=layer_angle,
    )


def _ratio(above: Array, below: Array) -> Array:
    return jnp.where(below > 0, above / below, jnp.nan)


def _by_groups(marks: np.ndarray, *three: Sequence[Array], reshape: bool = True) -> tuple[Array, Array, Array]:
    """Of weights x, gradients g and updates u: ⟨x, x⟩, ⟨g, g⟩, ⟨g, x⟩ and ⟨u, x⟩ of each leaf; of each layer the share
    of x in u, and the square of the rest of u.
    """
    leaves, (x, g, u) = three[0], in_groups(*three, reshape=reshape)
    products = over_leaves(leaves, (x, x), (g, g), (g, x), (u, x))
    shares = _shares(products[:, marks])
    layers = [list(compress(of_leaves(vector, leaves), marks)) for vector in (x, u)]
    tangents = [b - a * share for a, b, share in zip(*layers, shares, strict=True)]
    return products, shares, over_groups([jnp.square(tangent) for tangent in tangents])


def _by_rows(marks: np.ndarray, *three: Sequence[Array]) -> tuple[Array, Array, Array]:
    """The same, with all leaves in one array."""
    leaves, (x, g, u) = three[0], map(in_rows, three)
    products = over_rows(leaves, x * x, g * g, g * x, u * x)
    tangent = u - x * each_row(leaves, _shares(products))
    return products, _shares(products[:, marks]), over_rows(leaves, tangent * tangent)[0, marks]


def _shares(products: Float[Array, "4 leaves"]) -> Float[Array, "leaves"]:
    x_x, _, _, u_x = products
    return jnp.where(x_x > 0, u_x / x_x, 0)


def _nothing_to_measure(params: Any, grads: Any, hparams: HParams) -> Dynamics:
    """A network without scale-invariant weights: only the rate and the norms of the others exist, the rest is NaN."""
    norm, grad_norm = global_norm(jax.tree.leaves(params)), global_norm(jax.tree.leaves(grads))
    nan, empty = jnp.full((), jnp.nan, norm.dtype), jnp.zeros((0,), norm.dtype)
    fields = {name: empty if name.startswith("layer_") else nan for name in Dynamics._fields}
    known = {"noninvariant_weight_norm": norm, "noninvariant_grad_norm": grad_norm}
    return Dynamics(**{**fields, **known, "step_lr": learning_rate(hparams, nan)})
