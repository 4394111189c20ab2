import jax
import jax.numpy as jnp
import numpy as np
import pytest

from periodic_jax.training.vectorize import SMALL, lay_out_joined


def results(x, count):
    """Small and large leaves of several dtypes, some of them empty."""
    return {
        "number": x.sum(),
        "whole": count + 2**24 + 1,  # which float32 does not hold
        "matrix": jnp.outer(x, x),
        "large": jnp.arange(float(SMALL)) * x[0],
        "empty": jnp.zeros((0, 3), x.dtype),
        "large_whole": jnp.arange(2 * SMALL, dtype=jnp.int32).reshape(2, SMALL) + count,
        "half": x.astype(jnp.bfloat16),
        "flags": (x > 1, {"none": jnp.zeros(0, bool)}),
        "last": x[::-1],
    }


LAYOUTS = ["vmap", "unroll", "map", "map:2", "map:5", "map:9"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vectors_that_are_joined_in_a_loop_are_given_as_they_are(layout):
    """Also those of other dtypes, of nothing, and too long to be joined, beside what is no vector."""
    count = 5
    given = {
        "means": jnp.linspace(0.1, 2, 4 * count).reshape(count, 4),
        "nothing": jnp.zeros((count, 0)),
        "wholes": jnp.arange(3 * count, dtype=jnp.int32).reshape(count, 3) + 2**24,
        "kernels": jnp.arange(6.0 * count).reshape(count, 3, 2),
        "number": jnp.arange(count),
        "keys": jax.random.split(jax.random.key(0), (count, 2)),
        "variances": jnp.linspace(3, 4, count)[:, None],
        "weak": jax.vmap(lambda _: jnp.full(2, 1.5))(jnp.arange(count)),
        "long": jnp.arange(2.0 * SMALL * count).reshape(count, 2 * SMALL),
    }

    assert jax.typeof(given["weak"]).weak_type

    def function(given, more):
        half = jnp.ones(2, jnp.bfloat16) * given["weak"]  # stays of its dtype, beside what is weakly typed
        return {**given, "keys": jax.random.key_data(given["keys"])}, more, half

    expected = jax.vmap(function)(given, given["means"])
    found = jax.jit(lay_out_joined(function, layout))(given, given["means"])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), found, expected)


def test_a_loop_is_given_one_array_of_all_short_vectors():
    given = [jnp.ones((5, n)) for n in (3, 4, SMALL)] + [jnp.ones((5, 2, 2)), jnp.ones((5, 0))]
    jaxpr = jax.make_jaxpr(lay_out_joined(lambda *trees: sum(x.sum() for x in trees), "map"))(*given).jaxpr
    (loop,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    assert sorted(x.aval.shape for x in loop.invars) == [(5, 0), (5, 2, 2), (5, 7), (5, SMALL)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chosen", [None, ("whole", "number"), ("large",), ("empty",)])
def test_results_that_are_joined_in_a_loop_are_those_of_vmap(layout, chosen):
    def function(x, count):
        found = results(x, count)
        return {name: found[name] for name in chosen or found}

    given = jnp.linspace(0.1, 2, 20).reshape(5, 4), jnp.arange(5, dtype=jnp.int32)
    expected, found = jax.vmap(function)(*given), jax.jit(lay_out_joined(function, layout))(*given)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for name, leaf in jax.tree.leaves_with_path(found):
        wanted = dict(jax.tree.leaves_with_path(expected))[name]
        assert leaf.dtype == wanted.dtype
        np.testing.assert_allclose(
            np.asarray(leaf, float), np.asarray(wanted, float), rtol=1e-6, strict=True, err_msg=str(name)
        )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            np.testing.assert_array_equal(leaf, wanted)
