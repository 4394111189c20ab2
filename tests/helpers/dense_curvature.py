"""Curvature matrices of a tiny network, written out in full."""

import jax.numpy as jnp
import numpy as np

from periodic_jax import models


def network(**options):
    return models.ConvNet(width=2, depth=1, num_classes=3, param_dtype=jnp.float64, **options)


def matrices(dense):
    """Hessian and Gauss-Newton matrix of each configuration."""
    batches, found = dense
    hessians, gauss_newtons = [], []
    for of_batches in found:
        hessians.append(np.mean([hessian for _, _, hessian in of_batches], 0))
        total = 0
        for scores, jacobian, _ in of_batches:
            for row, of_image in zip(scores, jacobian, strict=True):
                odds = np.exp(row) / np.exp(row).sum()
                total = total + of_image.T @ (np.diag(odds) - np.outer(odds, odds)) @ of_image
        gauss_newtons.append(total / batches.labels.size)
    return {"hessian": hessians, "gauss_newton": gauss_newtons}
