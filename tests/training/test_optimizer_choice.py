"""Each optimiser against optax's own and against torch.optim, alone and side by side; and those of the user's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from periodic_jax import (
    Batch,
    ConfigError,
    HParams,
    SweepGrid,
    create_train_state,
    project_to_sphere,
    sphere_sgd,
    track_dynamics,
    train_step,
)
from periodic_jax.core.optimizers import OPTIMIZERS
from periodic_jax.training.optimizers import build_optimizer, scale_by_group_lr

RATES = (0.003, 0.01, 0.02, 0.05, 0.1)
DECAY, MOMENTUM, BETA1, BETA2, EPS = 0.1, 0.8, 0.85, 0.97, 1e-6
STEPS = 50
SPECIFIC = {"momentum": MOMENTUM, "beta1": BETA1, "beta2": BETA2, "eps": EPS}


def numbers(name, **others):
    """Hyperparameters of an optimiser, all others at their defaults."""
    given = {axis: SPECIFIC[axis] for axis in OPTIMIZERS[name].reads if axis in SPECIFIC}
    return HParams(**{"weight_decay": DECAY, "noninvariant_lr": -1.0, **given, **others})


def optax_own(name, lr):
    return {
        "sgd": lambda: optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(lr, MOMENTUM)),
        "sgdw": lambda: optax.chain(optax.trace(MOMENTUM), optax.add_decayed_weights(DECAY), optax.scale(-lr)),
        "nesterov": lambda: optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(lr, MOMENTUM, nesterov=True)),
        "adam": lambda: optax.chain(optax.add_decayed_weights(DECAY), optax.adam(lr, BETA1, BETA2, EPS)),
        "adamw": lambda: optax.adamw(lr, BETA1, BETA2, EPS, weight_decay=DECAY),
        "lion": lambda: optax.lion(lr, BETA1, BETA2, weight_decay=DECAY),
    }[name]()


class Direction:
    """A loss of two layers that only their directions decide, in both libraries: -Σ (w/|w|)·targets."""

    labels = (True, False)

    @staticmethod
    def initial():
        rng = np.random.default_rng(3)
        return {"a": rng.normal(size=(4, 3)), "b": rng.normal(size=5)}

    @staticmethod
    def loss(params, t, xp, norm):
        scale = 1 + xp.cos(0.7 * t)
        return -(params["a"][0] * scale).sum() / norm(params["a"]) + ((params["b"] - 1) ** 2).sum() * scale


def by_jax(make, lr, steps=STEPS):
    """The weights after some steps, by a transformation."""
    params = jax.tree.map(jnp.asarray, Direction.initial())
    tx = make(lr)

    def step(carry, t):
        params, state = carry
        grads = jax.grad(Direction.loss)(params, t, jnp, jnp.linalg.norm)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps, dtype=float))[0][0]


def tracked(name):
    return lambda lr: build_optimizer(name, numbers(name, lr=lr), Direction.labels)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_side_by_side_as_optax_alone(float64, name):
    side_by_side = jax.jit(jax.vmap(lambda lr: by_jax(tracked(name), lr)))(jnp.array(RATES))
    for i, lr in enumerate(RATES):
        alone = jax.jit(lambda lr=lr: by_jax(lambda lr: optax_own(name, lr), lr))()
        for key, values in alone.items():
            np.testing.assert_allclose(side_by_side[key][i], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adam", "adamw"])
def test_side_by_side_as_torch(float64, name):
    torch = pytest.importorskip("torch")
    side_by_side = jax.jit(jax.vmap(lambda lr: by_jax(tracked(name), lr)))(jnp.array(RATES))
    for i, lr in enumerate(RATES):
        params = {key: torch.tensor(value, requires_grad=True) for key, value in Direction.initial().items()}
        sgd = {"lr": lr, "momentum": MOMENTUM, "weight_decay": DECAY}
        adam = {"lr": lr, "betas": (BETA1, BETA2), "eps": EPS, "weight_decay": DECAY}
        tx = {
            "sgd": lambda w, sgd=sgd: torch.optim.SGD(w, **sgd),
            "nesterov": lambda w, sgd=sgd: torch.optim.SGD(w, nesterov=True, **sgd),
            "adam": lambda w, adam=adam: torch.optim.Adam(w, **adam),
            "adamw": lambda w, adam=adam: torch.optim.AdamW(w, **adam),
        }[name](params.values())
        for t in range(STEPS):
            tx.zero_grad()
            Direction.loss(params, torch.tensor(float(t), dtype=torch.float64), torch, torch.linalg.norm).backward()
            tx.step()
        for key, values in params.items():
            np.testing.assert_allclose(side_by_side[key][i], values.detach().numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_effective_rate_sets_the_rate_of_each_step(float64, name):
    """η = η̃ρ² at the step's own norm, whatever ``lr`` says, also in those whose runs do not take ``elr``."""
    params = Direction.initial()
    grads, norm = {key: 1 + value for key, value in params.items()}, np.linalg.norm(params["a"])

    @jax.jit
    @jax.vmap
    def update(lr, elr):
        tx = build_optimizer(name, numbers(name, lr=lr, elr=elr), Direction.labels)
        return tx.update(grads, tx.init(params), params)[0]

    fixed, free = update(jnp.array([5.0, 0.02 * norm**2]), jnp.array([0.02, 0.0]))["a"]
    np.testing.assert_allclose(fixed, free, rtol=1e-12)
    assert np.abs(fixed).max() > 0


class Net(nn.Module):
    """A layer of which only the direction counts, and a head: quick to compile."""

    @nn.compact
    def __call__(self, images, train):
        flat = images.reshape(len(images), -1)
        kernel = self.param("kernel", nn.initializers.normal(), (flat.shape[1], 6))
        hidden = nn.relu(flat @ kernel / jnp.linalg.norm(kernel))
        return hidden @ self.param("head", nn.initializers.normal(), (6, 3))


NET, LABELS = Net(), {"kernel": "scale_invariant", "head": "other"}


def trainer(optimizer, steps=12):
    """A function from axes of a grid to the last states and the metrics ``(steps, configs)`` of `Net`."""
    images = jax.random.normal(jax.random.key(1), (3, 8, 2, 2, 2))
    state = create_train_state(NET, LABELS, jax.random.key(0), images[0], optimizer=optimizer)

    @jax.jit
    def train(hparams):
        states = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(hparams.lr)), state)

        def step(states, t):
            return jax.vmap(train_step, in_axes=(0, 0, None))(states, hparams, Batch(images[t % 3], jnp.arange(8) % 3))

        return jax.lax.scan(step, states, jnp.arange(steps))

    return lambda **axes: train(jax.tree.map(jnp.float32, SweepGrid.product(**axes).hparams()))


OWN = {
    "clipped adamw with a mask": lambda h: optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(h.lr, weight_decay=0.01, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
    ),
    "averaged": lambda h: optax.chain(optax.ema(0.9), optax.scale(-h.lr)),
    "polyak": lambda h: optax.polyak_sgd(max_learning_rate=h.lr),
    "plateau": lambda h: optax.chain(optax.adamw(h.lr), optax.contrib.reduce_on_plateau(patience=1)),
    "scheduled": lambda h: optax.adam(optax.cosine_decay_schedule(h.lr, 20)),
}


def specific(name):
    reads = OPTIMIZERS[name].reads if name in OPTIMIZERS else ()
    return {axis: SPECIFIC[axis] for axis in reads if axis in SPECIFIC}


@pytest.mark.parametrize("name", [*OPTIMIZERS, *OWN])
def test_what_is_recorded_of_each_optimiser(name):
    """The norm follows from the update, a sphere holds, and a configuration that diverges touches no other."""
    train, given = trainer(OWN.get(name, name)), {"noninvariant_lr": 0.01, **specific(name)}
    states, seen = train(lr=[0.02, 1e30, 0.05], **given)
    _, others = train(lr=[0.02, 0.01, 0.05], **given)
    np.testing.assert_array_equal(seen["loss"][:, ::2], others["loss"][:, ::2])
    assert [int(at) >= 0 for at in states.diverged_at] == [False, name != "polyak", False]

    norm, radial, tangential, angle, gradient, rate, lr = (
        np.asarray(others[field], np.float64) for field in (
            "weight_norm", "radial_update", "tangential_update", "angular_step", "effective_grad_norm", "effective_lr",
            "step_lr",
        )
    )  # fmt: skip
    np.testing.assert_allclose(np.hypot(norm + radial, tangential)[:-1], norm[1:], rtol=1e-6)
    np.testing.assert_allclose(np.arctan2(tangential, norm + radial), angle, rtol=1e-5)
    assert (tangential > 0).all()
    np.testing.assert_allclose(lr, np.broadcast_to([0.02, 0.01, 0.05], lr.shape), rtol=1e-6)
    is_sgd = name in OPTIMIZERS and OPTIMIZERS[name].is_sgd
    np.testing.assert_allclose(rate, lr / norm**2 if is_sgd else angle / gradient, rtol=1e-5)

    _, held = train(lr=0.05, weight_decay=0.01, fixed_norm=[2.0, -1.0, -2.0], **given)
    np.testing.assert_allclose(held["weight_norm"][1:, 0], 2, rtol=1e-6)
    np.testing.assert_allclose(held["weight_norm"][:, 1], np.full(12, held["weight_norm"][0, 1]), rtol=1e-6)


def test_inside_of_other_transformations(float64):
    """Clipped before, masked, and with hyperparameters in the state: what is measured is the last step."""
    params = jax.tree.map(jnp.asarray, Direction.initial())
    grads = jax.grad(Direction.loss)(params, 0.0, jnp, jnp.linalg.norm)
    clipped = optax.chain(optax.clip_by_global_norm(0.01), sphere_sgd(HParams(lr=0.5), Direction.labels))
    _, state = clipped.update(grads, clipped.init(params), params)
    total = float(optax.tree.norm(grads))
    share = float(jnp.linalg.norm(grads["a"])) / total
    assert float(state[1].dynamics.grad_norm) == pytest.approx(0.01 * share)

    injected = optax.inject_hyperparams(lambda lr: sphere_sgd(HParams(lr=lr), Direction.labels))(lr=0.5)
    updates, state = injected.update(grads, injected.init(params), params)
    wanted, _ = (plain := sphere_sgd(HParams(lr=0.5), Direction.labels)).update(grads, plain.init(params), params)
    np.testing.assert_allclose(updates["a"], wanted["a"])
    assert float(state.inner_state.dynamics.step_lr) == 0.5


@pytest.mark.parametrize(
    "tx",
    [
        sphere_sgd(HParams(), (True,)), scale_by_group_lr(HParams(), (True,)), project_to_sphere(1.0, (True,)),
        track_dynamics(optax.identity(), HParams(), (True,)),
    ],
)  # fmt: skip
def test_without_parameters_it_is_optax_own_error(tx):
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="requires the current value of parameters"):
        tx.update(params, tx.init(params))


REFUSED = {
    "adamax": "optimizer: adamax is not accepted; expected one of sgd, sgdw, nesterov, adam, adamw, lion, or a",
    optax.adamw(0.1): "optimizer: a GradientTransformationExtraArgs is not accepted",
    (lambda h: h.lr): "optimizer: a function that returns a .* is not accepted",
    (lambda h: optax.inject_hyperparams(optax.adamw)(h.lr)): "optimizer: one whose state holds hyperparameters",
    (lambda h: optax.sgd(h.lr) if h.lr > 0 else optax.adam(h.lr)): "optimizer: a function that branches on a hyperp",
    3: "optimizer: a int is not accepted",
}


@pytest.mark.parametrize("optimizer", REFUSED)
def test_what_is_no_optimiser_is_refused_in_one_line(optimizer):
    with pytest.raises(ConfigError, match=REFUSED[optimizer]) as caught:
        trainer(optimizer)
    assert str(caught.value).isprintable()


def test_a_function_without_a_hash_is_refused():
    class Unhashable:
        __hash__ = None

        def __call__(self, hparams):
            return optax.sgd(hparams.lr)

    with pytest.raises(ConfigError, match="has no hash"):
        trainer(Unhashable())
