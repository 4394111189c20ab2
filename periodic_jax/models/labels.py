"""Which weights are scale-invariant: explicit labels beside the parameters, as a hashable value that a compiled step
can carry.
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax.core import unfreeze

from periodic_jax.core.errors import ConfigError, first_line

SCALE_INVARIANT = "scale_invariant"
OTHER = "other"
AUTO = "auto"  # in the place of a tree: to be measured, see `models.measure_labels`

# For each leaf of the parameters, in `jax.tree.leaves` order: is it in the scale-invariant group?
Labels = tuple[bool, ...]
LabelTree = Any  # a tree of words as `leaf_labels` takes it, or `Labels`


def leaf_labels(params: Any, labels: Any) -> Labels:
    """Flatten a label tree against its parameters.

    Args:
        params: the parameter tree (arrays or shapes).
        labels: a tree of the same structure, or a prefix of it, with ``"scale_invariant"`` or ``"other"`` at its
            leaves; or labels that are flat already, which are returned as they are.

    Returns:
        One bool a leaf.

    Raises:
        ConfigError: labels that do not match the parameters, or another word.

    Example:
        >>> leaf_labels({"conv": {"kernel": 0.0}, "head": {"bias": 0.0, "kernel": 0.0}},
        ...             {"conv": "scale_invariant", "head": "other"})
        (True, False, False)
    """
    if isinstance(labels, tuple) and all(isinstance(is_marked, bool) for is_marked in labels):
        if len(labels) != (count := len(jax.tree.leaves(params))):
            raise ConfigError("labels", f"{len(labels)} of them", f"one for each of {count} parameters")
        return labels
    trees: Any = params, labels
    params, labels = map(unfreeze, trees)
    _check_keys(params, labels, "")
    try:
        words = jax.tree.leaves(jax.tree.map(lambda word, sub: jax.tree.map(lambda _: word, sub), labels, params))
    except (ValueError, TypeError) as error:
        expected = f"one that matches the parameters ({first_line(error)})"
        raise ConfigError("labels", "a tree of another structure", expected) from None
    for word in words:
        if word not in (SCALE_INVARIANT, OTHER):
            raise ConfigError("labels", repr(word), f"{SCALE_INVARIANT!r} or {OTHER!r}")
    return tuple(word == SCALE_INVARIANT for word in words)


def _check_keys(params: Any, labels: Any, where: str) -> None:
    """Refuse labels with other keys than the parameters below the path ``where``."""
    if not isinstance(labels, Mapping) or not isinstance(params, Mapping):
        return
    missing, unknown = sorted(set(params) - set(labels)), sorted(set(labels) - set(params))
    if missing or unknown:
        given = "; ".join(f"{what} {', '.join(keys)}" for what, keys in (("no", missing), ("unknown", unknown)) if keys)
        raise ConfigError(f"labels{where}", given, f"a label for each of {', '.join(sorted(params))}")
    for name in params:
        _check_keys(params[name], labels[name], f"{where}/{name}")
