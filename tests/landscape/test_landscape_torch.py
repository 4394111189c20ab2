"""Curvature and gradients against PyTorch's own differentiation, where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import torch_oracle
from helpers.torch_oracle import F, torch
from jax.flatten_util import ravel_pytree

from periodic_jax import create_train_state, models
from periodic_jax.landscape import Surface, fixed_batches

BATCH = 12


@pytest.fixture(scope="module", params=["ConvNet", "ConvNetSI"])
def surface(request, tiny):
    """Of two configurations in float64, and for each its batches' losses in PyTorch and the weights they are of."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        model = models.build(request.param, width=2, depth=1, num_classes=3, param_dtype=jnp.float64)
        each = [
            create_train_state(model, model.labels(), jax.random.key(k), jnp.zeros((BATCH, 8, 8, 2))) for k in (0, 1)
        ]
        batches = fixed_batches(tiny, BATCH, dtype=np.float64)
        states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        yield Surface(states, batches, "all"), each, [of_torch(model, state, batches) for state in each]


def of_torch(model, state, batches):
    """The losses of the mini-batches in training mode, and the weights that they are functions of."""
    tensors = torch_oracle.state_dict(model, {"params": state.params, "batch_stats": state.batch_stats})
    weights = {name: a.requires_grad_() for name, a in tensors.items() if name.endswith(("weight", "bias"))}
    losses = [
        F.cross_entropy(
            torch_oracle.convnet(model, tensors, torch_oracle.normalised(images, batches, "float64"), train=True),
            torch.as_tensor(labels).long(),
        )
        for images, labels in zip(np.asarray(batches.images), np.asarray(batches.labels), strict=True)
    ]
    return losses, weights


def as_tensors(state, vector, names):
    """A vector over all weights as PyTorch's tensors."""
    params, unravel = ravel_pytree(state.params)
    assert params.shape == vector.shape
    model, tree = state.task.network.module, {"params": unravel(jnp.asarray(vector)), "batch_stats": state.batch_stats}
    tensors = torch_oracle.state_dict(model, tree)
    return [tensors[name] for name in names]


def test_hessian_vector_products_are_those_of_double_backward(surface):
    found, states, torches = surface
    vectors = jax.random.normal(jax.random.key(3), found.weights.shape)
    product = found.product("hessian")(vectors)
    for k, (losses, weights) in enumerate(torches):
        np.testing.assert_array_equal(found.weights[k], ravel_pytree(states[k].params)[0])
        loss = torch.stack(losses).mean()
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        along = sum((g * v).sum() for g, v in zip(slopes, as_tensors(states[k], vectors[k], weights), strict=True))
        wanted = torch.autograd.grad(along, list(weights.values()), retain_graph=True, materialize_grads=True)
        scale = max(float(one.abs().max()) for one in wanted)
        for got, one in zip(as_tensors(states[k], product[k], weights), wanted, strict=True):
            np.testing.assert_allclose(got.numpy(), one.numpy(), rtol=0, atol=1e-10 * scale)


def test_gradient_statistics_are_those_of_backward_of_each_mini_batch(surface):
    found, _, torches = surface
    noise = found.gradient_noise()
    for k, (losses, weights) in enumerate(torches):
        slopes = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(weights.values()), retain_graph=True)])
            for loss in losses
        ]
        gradients = torch.stack(slopes).numpy()
        assert noise[k].loss == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-10)
        assert noise[k].gradient_norm == pytest.approx(np.linalg.norm(gradients.mean(0)), rel=1e-8)
        assert noise[k].gradient_std_norm == pytest.approx(np.linalg.norm(gradients.std(0, ddof=1)), rel=1e-8)
        assert noise[k].mean_gradient_norm == pytest.approx(np.linalg.norm(gradients, axis=1).mean(), rel=1e-8)
