"""Sums over each leaf of a tree, of many products at once, in few loops.

All leaves stand one after the other in one array of groups of `ROWS` rows of `LANES` numbers, each leaf with zeros to
the end of its last group. So the products of two trees are one loop, which sums each group as it goes; a second, short
one sums the groups of each leaf. XLA computes both rightly on CPU too, in a fraction of the time of a dot product for
each leaf, and as accurately.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from periodic_jax.models.layout import materialise

ROWS, LANES = 8, 128
Groups = Float[Array, "groups rows lanes"]


def in_groups(*trees: Sequence[Array]) -> list[Groups]:
    """All leaves of each tree in one array.

    Args:
        *trees: lists of leaves.

    Example:
        >>> [x.shape for x in in_groups([jnp.ones(3), jnp.ones((2, 1000))])]
        [(3, 8, 128)]
    """

    def stand(leaves: Sequence[Array]) -> Groups:
        flat = [jnp.concatenate([leaf.ravel(), jnp.zeros(-leaf.size % (ROWS * LANES), leaf.dtype)]) for leaf in leaves]
        return jnp.concatenate(flat).reshape(-1, ROWS, LANES)

    # Once, whatever computes the leaves: every loop over them would compute them again.
    return materialise(lambda *trees: [stand(leaves) for leaves in trees], *map(list, trees))


def of_leaves(groups: Float[Array, "groups ..."], leaves: Sequence[Array]) -> list[Array]:
    """The groups of each leaf.

    Args:
        groups: one for each that `in_groups` gives of such leaves.
        leaves: arrays of the shapes that stand in the groups.
    """
    ends = np.cumsum([-(-leaf.size // (ROWS * LANES)) for leaf in leaves]).tolist()
    return [groups[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def over_leaves(leaves: Sequence[Array], *groups: Groups) -> Float[Array, "sums leaves"]:
    """The sum of each array of groups over each leaf.

    Args:
        leaves: arrays of the shapes that stand in the groups.
        *groups: products of what `in_groups` gives of such leaves.

    Example:
        >>> leaves = [jnp.arange(3.0), jnp.ones(2)]
        >>> (x,) = in_groups(leaves)
        >>> over_leaves(leaves, x, x * x).tolist()
        [[3.0, 2.0], [5.0, 2.0]]
    """
    partial = jnp.concatenate([array.sum(1) for array in groups], 1)
    return over_groups(of_leaves(partial, leaves))


def over_groups(partial: Sequence[Float[Array, "groups lanes"]]) -> Float[Array, "sums arrays"]:
    """The sum of each array of sums of groups; of several sums where they stand side by side.

    Example:
        >>> over_groups([jnp.ones((3, LANES)), jnp.ones((2, LANES))]).tolist()
        [[384.0, 256.0]]
    """
    rows = jnp.stack([own.sum(0) for own in partial]).reshape(len(partial), -1, LANES)
    # As a product: XLA's CPU backend makes two loops of a sum over so many neighbours.
    return jnp.matmul(rows, jnp.ones(LANES, rows.dtype), precision="highest").T


def global_norm(leaves: Sequence[Array]) -> Float[Array, ""]:
    """Euclidean norm of all leaves as one vector.

    Example:
        >>> float(global_norm([jnp.array([3.0]), jnp.array([[4.0]])]))
        5.0
    """
    if not leaves:
        return jnp.zeros(())
    (vector,) = in_groups(leaves)
    return jnp.sqrt(over_groups([jnp.square(vector).sum(1)])[0, 0])
