"""Products of curvature matrices and vectors, without the matrices.

    Hessian          H = ∇²F(x)                      H v = d/dt ∇F(x + t v): forward over reverse
    Gauss-Newton     G = Σ_i s_i J_iᵀ ∇²ℓ_i J_i      J of the logits z, ∇²ℓ of the loss in z

For cross-entropy G is the Fisher matrix of the network's own predictions. The fused blocks have custom gradients, of
which JAX refuses the forward derivative; but the forward derivative of their *gradient*, and of the value that reverse
mode computes beside it, goes through plain operations. Reverse over reverse does not pass the fusion barriers on CPU.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from periodic_jax.landscape.objective import scores, to_vector, weighted_loss
from periodic_jax.models.labels import Labels
from periodic_jax.training.state import TrainState

Vector = Float[Array, "size"]
Product = Callable[[TrainState, Vector, Any, Labels], Vector]


def batch_loss(state: TrainState, batch: Any, chosen: Labels) -> Callable[[Vector], Float[Array, ""]]:
    """The loss of one mini-batch as a function of the chosen weights.

    Args:
        state: of one configuration.
        batch: (images, labels, shares), the images normalised or prepared.
        chosen: which leaves make the vector.
    """
    images, labels, shares = batch
    return lambda vector: weighted_loss(state.task, scores(state, chosen, vector, images), labels, shares)


def loss_and_gradient(state: TrainState, batch: Any, chosen: Labels) -> tuple[Float[Array, ""], Vector]:
    """F and ∇F of one mini-batch; arguments as of `batch_loss`."""
    return jax.value_and_grad(batch_loss(state, batch, chosen))(to_vector(state.params, chosen))


def hessian_vector(state: TrainState, vector: Vector, batch: Any, chosen: Labels) -> Vector:
    """H v of one mini-batch's loss in the chosen weights.

    Args:
        state: of one configuration.
        vector: v, of the length of the chosen weights.
        batch: as of `batch_loss`.
        chosen: which leaves make the vector.

    Returns:
        The derivative of the gradient along v.

    Source: Pearlmutter, Fast exact multiplication by the Hessian, 1994.
    """
    gradient = jax.grad(batch_loss(state, batch, chosen))
    return jax.jvp(gradient, (to_vector(state.params, chosen),), (vector,))[1]


def gauss_newton_vector(state: TrainState, vector: Vector, batch: Any, chosen: Labels) -> Vector:
    """G v = Jᵀ ∇²ℓ J v of one mini-batch's loss; arguments as of `hessian_vector`.

    Source: Schraudolph, Fast curvature matrix-vector products, 2002.
    """
    images, labels, shares = batch
    x = to_vector(state.params, chosen)

    def outputs(x: Vector) -> tuple[Array, Any]:
        return jax.vjp(lambda x: scores(state, chosen, x, images), x)

    logits, pull_back = outputs(x)
    # The value that reverse mode computes, since a custom gradient has no forward derivative of its own.
    along = jax.jvp(lambda x: outputs(x)[0], (x,), (vector,))[1]
    of_loss = jax.grad(lambda z: weighted_loss(state.task, z, labels, shares))
    return pull_back(jax.jvp(of_loss, (logits,), (along,))[1])[0]


PRODUCTS: dict[str, Product] = {"hessian": hessian_vector, "gauss_newton": gauss_newton_vector}


def tangential(x: Vector, vector: Vector) -> Vector:
    """P v = v - x⟨x, v⟩/|x|², the part of a vector that is tangential to the sphere through x."""
    return vector - x * (jnp.vdot(x, vector) / jnp.vdot(x, x))


def on_sphere(product: Callable[[Vector], Vector], x: Vector) -> Callable[[Vector], Vector]:
    """The curvature that training sees: ρ² P A P, which is P ∇²F(x/ρ) P for a scale-invariant F and A = ∇²F(x).

    It is the second derivative along great circles of the unit sphere, since ⟨∇F, x⟩ = 0.

    Args:
        product: v ↦ A v.
        x: the scale-invariant weights, of norm ρ.
    """
    return lambda vector: jnp.vdot(x, x) * tangential(x, product(tangential(x, vector)))
