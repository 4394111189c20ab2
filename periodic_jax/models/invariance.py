"""Which weights are scale-invariant, measured: a check of labels, for one's own networks above all."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from periodic_jax.models.labels import leaf_labels


def verify_labels(
    model_or_apply: nn.Module | Callable[[Any, Any], Array],
    variables: Any,
    images: Any,
    labels: Any,
    *,
    factors: Sequence[float] = (0.5, 4.0),
    tolerance: float | None = None,
) -> dict[str, str]:
    """Say of each parameter whether the network's output is invariant to its scale.

    ``individually``: f(c·xᵢ, rest) = f(x) for each factor c; ``jointly``: not so, but the parameter is labelled
    scale-invariant and f(c·x) = f(x) when all labelled ones are scaled together; ``not``: neither. Labels are right
    where every labelled parameter comes out as one of the first two. A parameter that the output does not depend on,
    as a bias that a normalisation subtracts again, is invariant individually.

    A parameter of zeros, as a bias may start, would be invariant trivially: random numbers take its place.

    Args:
        model_or_apply: a Flax module, called with ``train=True`` so that normalisation uses the batch's statistics; or
            a function of (variables, images).
        variables: of the network; ``params`` are scaled, the rest is passed on.
        images: a mini-batch that the network accepts, of at least a few images.
        labels: as `leaf_labels` takes them.
        factors: the scales c. With powers of two, rounding does not add to the differences.
        tolerance: largest difference of the outputs, relative to the largest output, that counts as none; ``None``:
            the square root of their dtype's rounding error. Batch normalisation's ε breaks invariance by about ε over
            the variance, so check a network with ε = 0, or with a wider tolerance.

    Returns:
        For each path of a parameter, as ``"conv0/kernel"``, one of the three words.

    Raises:
        ConfigError: labels that do not fit the parameters.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2, depth=1).clone(eps=0.0)
        >>> images = jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
        >>> verdicts = verify_labels(model, model.init(jax.random.key(0), images, train=True), images, model.labels())
        >>> verdicts["conv0/kernel"], verdicts["head/kernel"]
        ('individually', 'not')
    """
    params = variables["params"]
    marks = leaf_labels(params, labels)
    with_paths, structure = jax.tree_util.tree_flatten_with_path(params)
    leaves = [_not_all_zero(leaf, i) for i, (_, leaf) in enumerate(with_paths)]

    def apply(variables: Any) -> Array:
        if isinstance(model_or_apply, nn.Module):
            out: Any = model_or_apply.apply(variables, images, train=True, mutable=["batch_stats"])
            return out[0]
        return model_or_apply(variables, images)

    @jax.jit
    def scaled(scales: Array) -> Array:
        moved = [leaf * scale.astype(leaf.dtype) for leaf, scale in zip(leaves, scales, strict=True)]
        return apply({**variables, "params": jax.tree.unflatten(structure, moved)})

    base = scaled(jnp.ones(len(leaves)))
    allowed = (float(jnp.finfo(base.dtype).eps) ** 0.5 if tolerance is None else tolerance) * jnp.abs(base).max()

    def invariant(chosen: Array) -> bool:
        outputs = (scaled(jnp.where(chosen, jnp.asarray(c, jnp.float32), 1)) for c in factors)
        return all(bool(jnp.abs(out - base).max() <= allowed) for out in outputs)

    together = any(marks) and invariant(jnp.asarray(marks))
    verdicts = {}
    for i, (path, _) in enumerate(with_paths):
        alone = invariant(jnp.arange(len(leaves)) == i)
        word = "individually" if alone else "jointly" if marks[i] and together else "not"
        verdicts[jax.tree_util.keystr(path, simple=True, separator="/")] = word
    return verdicts


def _not_all_zero(leaf: Array, seed: int) -> Array:
    leaf = jnp.asarray(leaf)
    random = 0.1 * jax.random.normal(jax.random.key(seed), leaf.shape, leaf.dtype)
    return jnp.where((leaf == 0).all(), random, leaf)
