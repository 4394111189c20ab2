"""Sums over leaves against NumPy's, leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from periodic_jax.ops.reductions import (
    FEW,
    LANES,
    each_row,
    global_norm,
    in_groups,
    in_rows,
    of_leaves,
    over_leaves,
    over_rows,
)

# Among the small; in groups of 8 and of 9 rows as they lie in memory; with zeros at its end; and shaped as groups are.
SHAPES = [
    (1,), (8 * LANES,), (3, 3, 8, 16), (), (8 * LANES + 1,), (3, 3, 32, 64), (2, 5), (FEW + 1, LANES - 1), (0, 2),
    (4, 16, LANES),
]  # fmt: skip


def trees(dtype, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [[jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes] for _ in range(2)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("how", ["plain", "jit", "vmap"])
@pytest.mark.parametrize("reshape", [True, False])
def test_products_of_each_leaf_are_those_of_numpy(dtype, how, reshape):
    with jax.enable_x64(dtype == "float64"):
        a, b = trees(dtype)

        def products(a, b):
            x, y = in_groups(a, b, reshape=reshape)
            third = [
                (i + 1) * (p * q).sum() for i, (p, q) in enumerate(zip(of_leaves(x, a), of_leaves(y, a), strict=True))
            ]
            return jnp.concatenate([over_leaves(a, (x, x), (x, y)), jnp.stack(third)[None]])

        if how == "vmap":
            both = jax.tree.map(lambda leaf: jnp.stack([leaf * 2, leaf]), a)
            got = jax.jit(jax.vmap(products, in_axes=(0, None)))(both, b)[1]
        else:
            got = (jax.jit(products) if how == "jit" else products)(a, b)
        assert got.dtype == dtype
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
            wanted = [(p * p).sum(), (p * q).sum(), (i + 1) * (p * q).sum()]
            scale = (i + 1) * np.sqrt((p * p).sum() * (q * q).sum())
            close = 2e-7 if dtype == "float32" else 4e-16
            if p.size > 1000 and not reshape:  # which CPUs sum in order
                close = np.sqrt(p.size) * float(jnp.finfo(dtype).eps)
            np.testing.assert_allclose(got[:, i], wanted, rtol=0, atol=scale * close)


def test_sums_by_rows_are_those_by_groups(float64):
    a, b = trees("float64")
    (x, y), (p, q) = in_groups(a, b), map(in_rows, (a, b))
    np.testing.assert_allclose(over_rows(a, p * p, p * q), over_leaves(a, (x, x), (x, y)), rtol=1e-13, atol=1e-12)
    values = jnp.arange(1.0, len(a) + 1)
    sizes = [leaf.size for leaf in a]
    (sums,) = over_rows(a, in_rows([jnp.ones(size) for size in sizes]) * each_row(a, values))
    assert sums.tolist() == [value * size for value, size in zip(values.tolist(), sizes, strict=True)]


@pytest.mark.parametrize(("platform", "rows"), [("cpu", "16x9x128"), ("tpu", None), ("cuda", "145x128")])
def test_each_platform_has_a_form_of_its_own(platform, rows):
    leaves = [jnp.ones((3, 3, 32, 64)), jnp.ones(3)]
    text = jax.jit(global_norm).trace(leaves).lower(lowering_platforms=(platform,)).as_text()
    assert {found for found in ("16x9x128", "145x128") if found in text} == ({rows} if rows else set())


def test_a_leaf_that_is_not_finite_leaves_the_others_alone():
    leaves = [jnp.ones(3), jnp.full(2, jnp.inf), jnp.ones((30, 50)), jnp.ones((9, 1024))]
    for reshape in (True, False):
        x, ones = in_groups(leaves, jax.tree.map(jnp.ones_like, leaves), reshape=reshape)
        assert over_leaves(leaves, (x, ones))[0].tolist() == [3.0, jnp.inf, 1500.0, 9216.0]
    assert over_rows(leaves, in_rows(leaves))[0].tolist() == [3.0, jnp.inf, 1500.0, 9216.0]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.one_of(st.integers(1, 6000), st.sampled_from([1024, 1152, 4608, 9216, 100_000])), min_size=1, max_size=3
    )
)
def test_the_norm_of_any_leaves(sizes):
    leaves = trees("float32", [(size,) for size in sizes], seed=sum(sizes))[0]
    wanted = np.linalg.norm(np.concatenate([np.asarray(leaf, np.float64) for leaf in leaves]))
    np.testing.assert_allclose(global_norm(leaves), wanted, rtol=3e-7)


def test_of_nothing_the_norm_is_zero():
    assert float(global_norm([])) == 0
