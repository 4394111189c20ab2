"""Which weights are scale-invariant, measured: labels, or a check of them, for one's own networks above all."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from periodic_jax.core.errors import ConfigError
from periodic_jax.models.adapters import LinenNetwork, initialise
from periodic_jax.models.labels import Labels, leaf_labels

MORE = 8  # random directions of the outputs, besides one for each parameter
MOST_CHOICES = 16  # combinations of groups that are looked at: two to this power


class MeasuredLabels(NamedTuple):
    """Which parameters are scale-invariant, as a table when printed."""

    verdicts: dict[str, str]  # individually, jointly or not, of the path of each parameter
    labels: Labels  # for `create_train_state`: which are scale-invariant, individually or jointly

    def __str__(self) -> str:
        width = max(map(len, self.verdicts), default=0)
        lines = [f"  {path:<{width}}  {verdict}" for path, verdict in self.verdicts.items()]
        return "\n".join(["scale-invariant parameters, measured:", *lines])


def measure_labels(
    model: Any, inputs: Any, key: Key[Array, ""] | None = None, *, tolerance: float | None = None
) -> MeasuredLabels:
    """Find the parameters to whose scale a network's output is invariant, at initial weights.

    Those that are so only together with others are found to first order: with d_i the derivative of the outputs along
    parameter i itself, a group S is invariant jointly if Σ_{i∈S} d_i = 0. The largest such group is then verified by
    `verify_labels`, together with those that are invariant individually.

    Args:
        model: as `create_train_state` takes it.
        inputs: a mini-batch of at least a few examples, whose values count.
        key: of the initial weights; `jax.random.key(0)`, if None.
        tolerance: as for `verify_labels`; None: for its dtype's rounding error and the usual ε of a normalisation, 1 %.

    Returns:
        The verdict on each parameter, and the labels.

    Raises:
        ConfigError: values that are not known, within ``jit`` or ``vmap``, or a network that is none.

    Example:
        >>> from periodic_jax import models
        >>> model = models.build("ConvNetSI", width=2, depth=1)
        >>> print(measure_labels(model, jax.random.normal(jax.random.key(1), (4, 4, 4, 1))))
        scale-invariant parameters, measured:
          conv0/kernel  individually
          conv1/kernel  individually
          head/bias     not
          head/kernel   not
    """
    key = jax.random.key(0) if key is None else key
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((key, inputs))):
        accepted = "the labels of models.measure_labels, called before jit or vmap"
        raise ConfigError("labels", "'auto' where values are not known", accepted)
    network: Any = None

    @jax.jit  # operation by operation it would take many times as long
    def init(key: Key[Array, ""]) -> Any:
        nonlocal network
        network, variables = initialise(model, key, inputs)
        return variables

    variables = init(key)
    tolerance = 0.01 if tolerance is None else tolerance

    def apply(variables: Any, inputs: Any) -> Array:
        outputs, _ = network.apply(variables, inputs, train=True, key=key)
        parts = [jnp.ravel(leaf) for leaf in jax.tree.leaves(outputs) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        return jnp.concatenate(parts)

    leaves, structure = jax.tree.flatten(variables["params"])
    nothing = (False,) * len(leaves)
    if not leaves:
        return MeasuredLabels({}, ())
    alone = verify_labels(apply, variables, inputs, nothing, tolerance=tolerance)
    individually = np.array([verdict == "individually" for verdict in alone.values()])
    leaves = [_not_all_zero(leaf, i) for i, leaf in enumerate(leaves)]

    @jax.jit
    def derivatives(key: Key[Array, ""], ones: Array) -> Array:
        """⟨w, d_i⟩ of each parameter i, for some random w: backward, since not all code can be derived forward."""

        def of_scales(scales: Array) -> Array:
            moved = [leaf * scale.astype(leaf.dtype) for leaf, scale in zip(leaves, scales, strict=True)]
            return apply({**variables, "params": jax.tree.unflatten(structure, moved)}, inputs)

        outputs, pullback = jax.vjp(of_scales, ones)
        weights = jax.random.normal(key, (len(leaves) + MORE, outputs.size), outputs.dtype)
        return jax.lax.map(lambda w: pullback(w)[0], weights).T

    # As an argument: of known numbers the compiler would work out the whole network, slowly.
    along = np.asarray(derivatives(key, jnp.ones(len(leaves))), np.float64)
    group = individually.copy()
    group[~individually] = largest_vanishing_sum(along[~individually], tolerance)
    if (group != individually).any():
        verdicts = verify_labels(apply, variables, inputs, tuple(group.tolist()), tolerance=tolerance)
        if "jointly" in verdicts.values():
            return MeasuredLabels(verdicts, tuple(group.tolist()))
    return MeasuredLabels(alone, tuple(individually.tolist()))


def largest_vanishing_sum(vectors: Float[np.ndarray, "count size"], tolerance: float) -> np.ndarray:
    """The largest set of vectors whose sum vanishes, as a mask; the empty one where there is none.

    All c with Σ c_i v_i = 0 make a linear space. In its reduced row echelon form a vector of zeros and ones is a sum of
    some of the rows, so that there are few to try.

    Args:
        vectors: none of them zero.
        tolerance: singular values, relative to the largest, that count as zero.

    Example:
        >>> largest_vanishing_sum(np.array([[1.0, 0], [0, 1], [-1, 0], [2, 2]]), 1e-6).tolist()
        [True, False, True, False]
    """
    count, best = len(vectors), np.zeros(len(vectors), bool)
    if not count or not np.isfinite(vectors).all():
        return best
    left, singular, _ = np.linalg.svd(vectors)
    rank = int((singular > tolerance * singular[0]).sum())
    rows = _reduced(left[:, rank:].T, tolerance)
    if len(rows) > MOST_CHOICES:
        return best
    for choice in itertools.product((False, True), repeat=len(rows)):
        total = rows[list(choice)].sum(0)
        is_set = np.minimum(abs(total), abs(total - 1)).max(initial=0) < 10 * tolerance
        if is_set and (total > 0.5).sum() > best.sum():
            best = total > 0.5
    return best


def _reduced(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Reduced row echelon form of independent rows."""
    rows, done = rows.copy(), 0
    for column in range(rows.shape[1]):
        if done == len(rows):
            break
        pivot = done + int(np.argmax(abs(rows[done:, column])))
        if abs(rows[pivot, column]) < 10 * tolerance:
            continue
        rows[[done, pivot]] = rows[[pivot, done]]
        rows[done] /= rows[done, column]
        others = np.arange(len(rows)) != done
        rows[others] -= np.outer(rows[others, column], rows[done])
        done += 1
    return rows


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
            return LinenNetwork(model_or_apply).apply(variables, images, train=True)[0]
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
