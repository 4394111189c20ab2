from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from periodic_jax import HParams, dynamics, project_to_sphere, sphere_sgd, track_dynamics
from periodic_jax.training.tracking import _by_groups, _by_rows

LABELS = {"a": "scale_invariant", "b": "scale_invariant", "head": "other"}


@pytest.fixture
def params(float64):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (3, 4), "b": (5,), "head": (2, 3)}
    return {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, shapes.items(), strict=True)}


def gradients(t, params):
    """A gradient orthogonal to the marked weights, as scale invariance makes it, and anything for the others."""
    raw = jax.tree.map(lambda p: jax.random.normal(jax.random.key(t), p.shape), params)
    x, g = (np.concatenate([np.ravel(tree[k]) for k in "ab"]) for tree in (params, raw))
    along = (g @ x) / (x @ x)
    return {k: (raw[k] - along * params[k]) if k in "ab" else raw[k] for k in raw}


def vector(tree):
    return np.concatenate([np.ravel(tree[k]) for k in "ab"])


def run(params, hparams, steps=6, labels=LABELS):
    """Parameters and measurements of some steps, by the chain under test."""
    tx = sphere_sgd(hparams, labels)
    state = tx.init(params)
    history = []
    for t in range(steps):
        grads = gradients(t, params)
        updates, state = jax.jit(tx.update)(grads, state, params)
        after = optax.apply_updates(params, updates)
        history.append((params, grads, after, state.dynamics))
        params = after
    return history


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("other", [0.0, 0.3, -1.0])
def test_the_update_is_that_of_torch_sgd(params, momentum, other):
    """Decay is added to the gradient before the momentum; each group has its rate; 0 freezes to the bit."""
    hparams = HParams(lr=0.1, weight_decay=0.05, momentum=momentum, noninvariant_lr=other)
    buffer = {k: np.zeros(v.shape) for k, v in params.items()}
    expected = {k: np.asarray(v) for k, v in params.items()}
    for before, grads, after, _ in run(params, hparams):
        for k in expected:
            buffer[k] = momentum * buffer[k] + np.asarray(grads[k]) + 0.05 * np.asarray(before[k])
            rate = 0.1 if k != "head" or other < 0 else other
            expected[k] = np.asarray(before[k]) - rate * buffer[k]
            np.testing.assert_allclose(after[k], expected[k], rtol=1e-13, atol=1e-14)
        if other == 0:
            assert np.array_equal(after["head"], params["head"])


@pytest.mark.parametrize(
    "hparams",
    [
        HParams(lr=0.1, weight_decay=0.05),
        HParams(lr=0.1, weight_decay=0.05, momentum=0.9),
        HParams(lr=0.1, fixed_norm=2.0),
        HParams(lr=0.1, fixed_norm=-1.0, momentum=0.5),
        HParams(elr=0.02, fixed_norm=-1.0),
        HParams(elr=0.02, weight_decay=0.01),
    ],
)
def test_measurements_equal_those_made_by_hand(params, hparams):
    initial = np.linalg.norm(vector(params))
    for before, grads, after, seen in run(params, hparams):
        x, g, y = vector(before), vector(grads), vector(after)
        rho = np.linalg.norm(x)
        lr = hparams.elr * rho**2 or hparams.lr
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        expected = {
            "weight_norm": rho, "grad_norm": np.linalg.norm(g), "effective_grad_norm": rho * np.linalg.norm(g),
            "effective_lr": lr / rho**2, "angular_step": np.arccos(cosine),
            "noninvariant_weight_norm": np.linalg.norm(before["head"]),
            "noninvariant_grad_norm": np.linalg.norm(grads["head"]),
            "layer_weight_norm": [np.linalg.norm(before[k]) for k in "ab"],
            "layer_effective_lr": [lr / np.linalg.norm(before[k]) ** 2 for k in "ab"],
            "layer_effective_grad_norm": [np.linalg.norm(before[k]) * np.linalg.norm(grads[k]) for k in "ab"],
            "layer_angular_step": [
                np.arccos(np.vdot(before[k], after[k]) / np.linalg.norm(before[k]) / np.linalg.norm(after[k])) for k in
                "ab"
            ],
        }  # fmt: skip
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(seen, name), value, rtol=1e-7, err_msg=name)
        assert float(seen.radial_leak) < 1e-12
        if hparams.fixed_norm:
            wanted = initial if hparams.fixed_norm < 0 else hparams.fixed_norm
            assert np.linalg.norm(y) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("form", [_by_rows, partial(_by_groups, reshape=False)], ids=["gpu", "tpu"])
def test_measurements_on_an_accelerator_equal_those_on_cpu(params, form):
    """All compute the same, so the forms for a GPU and a TPU are compared here."""
    params = {**params, "b": jnp.linspace(-1, 1, 9 * 1024).reshape(3, 3, 32, 32)}  # a large leaf
    three = [jax.tree.leaves(tree) for tree in (params, gradients(0, params), gradients(1, params))]
    marks = np.array([True, True, False])
    for got, wanted in zip(form(marks, *three), _by_groups(marks, *three), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-14)


def test_plain_sgd_follows_the_closed_forms(params):
    history = run(params, HParams(lr=0.2, weight_decay=0.1), steps=20)
    spent = 0.0
    for _, _, after, seen in history:
        rho = dynamics.next_weight_norm(seen.weight_norm, seen.effective_grad_norm, 0.2, 0.1)
        assert np.linalg.norm(vector(after)) == pytest.approx(float(rho), rel=1e-13)
        angle = dynamics.angular_step(seen.effective_lr, seen.effective_grad_norm, 0.2, 0.1)
        assert float(seen.angular_step) == pytest.approx(float(angle), rel=1e-13)
        spent += float(dynamics.rotation_spent(seen.angular_step))
    first, last = history[0][3].weight_norm, np.linalg.norm(vector(history[-1][2]))
    assert spent == pytest.approx(float(dynamics.rotation_budget(20, first, last, 0.2, 0.1)), rel=1e-12)


def test_a_tiny_angle_keeps_its_digits_in_float32():
    """θ = 1e-7 from an update that shrinks the weights 10,000 times more than it turns them."""
    params = {"a": jnp.array([3.0, 4.0])}
    tx = track_dynamics(optax.identity(), HParams(), (True,))
    update = {"a": jnp.array([-3.0, -4.0]) * 1e-3 + 5e-7 * jnp.array([-0.8, 0.6])}
    _, state = jax.jit(tx.update)(update, tx.init(params), params)
    assert float(state.dynamics.angular_step) == pytest.approx(5e-7 / (5 * (1 - 1e-3)), rel=1e-3)


@pytest.mark.parametrize("chain", [sphere_sgd, lambda h, labels: project_to_sphere(h.fixed_norm, labels)])
def test_stacked_hyperparameters_equal_one_by_one(params, chain):
    swept = HParams([0.1, 0.2], [0.0, 0.1], [0.0, 0.9], [0.0, 0.1], [0.0, 0.01], [0.0, 3.0])
    stacked = HParams(*(jnp.broadcast_to(jnp.array(values), 2) for values in swept))
    grads = gradients(0, params)

    def update(hparams):
        tx = chain(hparams, LABELS)
        return tx.update(grads, tx.init(params), params)

    together = jax.jit(jax.vmap(update))(stacked)
    for i in range(2):
        alone = update(jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-13, atol=1e-14)


def test_a_free_norm_leaves_updates_to_the_bit(params):
    tx = project_to_sphere(0.0, LABELS)
    grads = gradients(0, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert all(np.array_equal(updates[k], grads[k]) for k in grads)


def test_a_network_without_scale_invariant_weights_still_trains(params):
    labels = dict.fromkeys(LABELS, "other")
    for before, grads, after, seen in run(params, HParams(lr=0.1, noninvariant_lr=-1.0), labels=labels):
        np.testing.assert_allclose(after["a"], before["a"] - 0.1 * grads["a"], rtol=1e-13)
        assert np.isnan(seen.weight_norm)
        assert seen.layer_weight_norm.shape == (0,)
        total = np.sqrt(sum(np.vdot(g, g) for g in grads.values()))
        np.testing.assert_allclose(seen.noninvariant_grad_norm, total, rtol=1e-13)


@pytest.mark.parametrize("radius", [-1.0, 0.7])
def test_each_filter_stays_on_its_own_sphere(params, radius):
    hparams = HParams(lr=0.1, weight_decay=0.01, momentum=0.5, fixed_norm=radius)
    tx = sphere_sgd(hparams, LABELS, per_filter=True)
    state, moved = tx.init(params), params
    for t in range(4):
        updates, state = jax.jit(tx.update)(gradients(t, moved), state, moved)
        moved = optax.apply_updates(moved, updates)
    for name in "ab":
        norms = np.sqrt((np.asarray(moved[name]) ** 2).reshape(-1, params[name].shape[-1]).sum(0))
        initial = np.sqrt((np.asarray(params[name]) ** 2).reshape(-1, params[name].shape[-1]).sum(0))
        np.testing.assert_allclose(norms, initial if radius < 0 else radius, rtol=1e-13)
    assert not np.array_equal(moved["a"], params["a"])  # a filter of "b" is one number, which its sphere holds


def test_a_frozen_weight_stays_whatever_its_gradient(params):
    tx = sphere_sgd(HParams(lr=0.1), LABELS)
    broken = {**gradients(0, params), "head": jnp.full((2, 3), jnp.inf)}
    updates, _ = tx.update(broken, tx.init(params), params)
    assert np.array_equal(updates["head"], np.zeros((2, 3)))
