"""Sums over each leaf of a tree, of many products at once, in few loops.

A large leaf stands in groups of 8 or 9 rows of `LANES` numbers, mostly as it lies in memory; all small ones stand one
after the other in one array, each with zeros to the end of its last row. So the products of two trees are few loops,
which sum each group as they go; a second, short one sums the groups of each leaf. XLA computes both rightly on CPU too,
in a fraction of the time of a dot product for each leaf, and as accurately.

On a TPU a large leaf stays as it lies, since rows of `LANES` numbers would be a copy of it in another order. On a GPU,
where a launch costs more than a copy, all leaves stand in one array of rows. `over_rows` sums all leaves of all
products there, in two kernels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from periodic_jax.ops.layout import materialise

LANES = 128
ROWS = 9, 8  # of a group; as 3x3 kernels have a factor of 9, and others powers of 2
FEW = 32  # rows of a leaf that is summed row by row
Groups = Float[Array, "..."]  # (groups, rows, lanes), or a large leaf as it lies
Rows = Float[Array, "rows lanes"]


def in_groups(*trees: Sequence[Array], reshape: bool = True) -> list[list[Groups]]:
    """All leaves of each tree in few arrays: one of all small leaves, if there are any, and each large one by itself.

    Args:
        *trees: lists of leaves of the same shapes.
        reshape: whether large leaves are reshaped into groups, or stay as they lie.

    Example:
        >>> [x.shape for x in in_groups([jnp.ones(3), jnp.ones((2, 1000)), jnp.ones((9, 1280))])[0]]
        [(17, 1, 128), (10, 9, 128)]
    """

    def alone(leaf: Array) -> Groups:
        if not reshape:
            return leaf
        group = _rows(leaf) * LANES
        return jnp.pad(leaf.ravel(), (0, -leaf.size % group)).reshape(-1, _rows(leaf), LANES)

    small = [[leaf for leaf in tree if not _rows(leaf)] for tree in trees]
    parts = small
    if small[0]:

        def stood(*trees: Sequence[Array]) -> list[list[Groups]]:
            return [[in_rows(leaves)[:, None]] for leaves in trees]

        # Once, whatever computes the leaves: on CPU every loop over them would compute them again.
        parts = jax.lax.platform_dependent(*small, cpu=partial(materialise, stood), default=stood)
    return [own + [alone(leaf) for leaf in tree if _rows(leaf)] for own, tree in zip(parts, trees, strict=True)]


def _rows(leaf: Array) -> int:
    """Rows of a group of a leaf that stands by itself: as it lies in memory, if it can; 0: it is among the small."""
    fitting = [rows for rows in ROWS if leaf.size and leaf.size % (rows * LANES) == 0]
    return (*fitting, ROWS[-1] if leaf.size > FEW * LANES else 0)[0]


def in_rows(leaves: Sequence[Array]) -> Rows:
    """All leaves one after the other, each with zeros to the end of its last row."""
    flat = [jnp.concatenate([leaf.ravel(), jnp.zeros(-leaf.size % LANES, leaf.dtype)]) for leaf in leaves]
    return jnp.concatenate(flat).reshape(-1, LANES)


def over_rows(leaves: Sequence[Array], *products: Rows) -> Float[Array, "products leaves"]:
    """The sum over each leaf of each array of rows.

    Args:
        leaves: arrays of the shapes that stand in the rows.
        *products: of what `in_rows` gives of such leaves, or something for each number of it.

    Example:
        >>> leaves = [jnp.arange(3.0), jnp.ones(2)]
        >>> x = in_rows(leaves)
        >>> over_rows(leaves, x, x * x).tolist()
        [[3.0, 2.0], [5.0, 2.0]]
    """
    partial = jnp.stack([product.sum(1) for product in products])[:, None]
    ends = np.cumsum(_row_counts(leaves))[:, None]
    row = jnp.arange(partial.shape[-1])
    own = (row >= ends - np.array(_row_counts(leaves))[:, None]) & (row < ends)
    return jnp.where(own, partial, 0).sum(-1)


def each_row(leaves: Sequence[Array], values: Float[Array, "leaves"]) -> Float[Array, "rows 1"]:
    """The value of its leaf for each row of `in_rows`."""
    return jnp.concatenate([jnp.full(n, value) for n, value in zip(_row_counts(leaves), values, strict=True)])[:, None]


def _row_counts(leaves: Sequence[Array]) -> list[int]:
    return [-(-leaf.size // LANES) for leaf in leaves]


def of_leaves(parts: Sequence[Float[Array, "groups ..."]], leaves: Sequence[Array]) -> list[Array]:
    """The groups of each leaf.

    Args:
        parts: what `in_groups` gives of such leaves, or something for each group of it.
        leaves: arrays of the shapes that stand in the groups.
    """
    sizes = [0 if _rows(leaf) else -(-leaf.size // LANES) for leaf in leaves]
    large, ends = iter(parts[1:] if not all(map(_rows, leaves)) else parts), np.cumsum(sizes).tolist()
    return [
        next(large) if _rows(leaf) else parts[0][end - size : end]
        for leaf, size, end in zip(leaves, sizes, ends, strict=True)
    ]


def over_leaves(
    leaves: Sequence[Array], *pairs: tuple[Sequence[Groups], Sequence[Groups]]
) -> Float[Array, "pairs leaves"]:
    """The inner product over each leaf of each pair.

    Args:
        leaves: arrays of the shapes that stand in the groups.
        *pairs: of what `in_groups` gives of such leaves.

    Example:
        >>> leaves = [jnp.arange(3.0), jnp.ones(2)]
        >>> x, y = in_groups(leaves, [jnp.ones(3), jnp.ones(2)])
        >>> over_leaves(leaves, (x, x), (x, y)).tolist()
        [[5.0, 2.0], [3.0, 2.0]]
    """
    products = [[part * other for part, other in zip(*pair, strict=True)] for pair in pairs]
    sums = [_of_each_group(parts) for parts in zip(*products, strict=True)]
    return jnp.stack([own.sum(0) for own in of_leaves(sums, leaves)], 1)


def over_groups(parts: Sequence[Groups]) -> Float[Array, "parts"]:
    """The sum over each array of groups.

    Example:
        >>> over_groups([jnp.ones((3, 8, LANES)), jnp.ones((2, 9, LANES))]).tolist()
        [3072.0, 2304.0]
    """
    return jnp.stack([_of_each_group([part]).sum() for part in parts])


def _of_each_group(parts: Sequence[Groups]) -> Float[Array, "groups parts"]:
    """The sums over each group of arrays of the same shape."""
    if parts[0].ndim == 3 and parts[0].shape[-1] == LANES:
        return _over_lanes(jnp.concatenate([part.sum(1) for part in parts], 1))
    return jnp.stack([part.sum() for part in parts])[None]


def _over_lanes(partial: Float[Array, "groups lanes"]) -> Float[Array, "groups sums"]:
    """The sums of rows; of several that stand side by side.

    As a product: XLA's CPU backend makes two loops of a sum over so many neighbours, and one slow one of a sum of sums.
    """
    rows = partial.reshape(len(partial), -1, LANES)
    return jnp.matmul(rows, jnp.ones(LANES, rows.dtype), precision="highest")


def global_norm(leaves: Sequence[Array]) -> Float[Array, ""]:
    """Euclidean norm of all leaves as one vector.

    Example:
        >>> float(global_norm([jnp.array([3.0]), jnp.array([[4.0]])]))
        5.0
    """
    if not leaves:
        return jnp.zeros(())

    def of_groups(*leaves: Array, reshape: bool = True) -> Array:
        (parts,) = in_groups(leaves, reshape=reshape)
        return jnp.sqrt(over_groups([jnp.square(part) for part in parts]).sum())

    def of_rows(*leaves: Array) -> Array:
        return jnp.sqrt(over_rows(leaves, jnp.square(in_rows(leaves))).sum())

    return by_device(of_rows, partial(of_groups, reshape=False), of_groups, *leaves)


def by_device(gpu: Callable[..., Any], tpu: Callable[..., Any], elsewhere: Callable[..., Any], *arrays: Any) -> Any:
    """The function of the arrays that suits the device which the program is compiled for."""
    return jax.lax.platform_dependent(*arrays, cuda=gpu, rocm=gpu, tpu=tpu, default=elsewhere)
