"""Directions of the weights in the checkpoints of stationary runs, and gradients against their noise there."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from scipy.stats import differential_entropy

from experiments.reading import loaded
from periodic_jax.storage.run_directory import checkpoint_steps

PROJECTIONS = 64  # of the directions
LOOKS = 5  # checkpoints at which gradients are measured
WINDOW = 0.5  # share of the run, at its end, in which all is measured


def direction_entropy(projected: np.ndarray) -> float:
    """The differential entropy of a direction's coordinate, less that of a direction that is anywhere on the sphere.

    Args:
        projected: √size times the direction's products with random unit vectors, ``(samples, projections)``; the
            coordinates of a direction that is anywhere have mean 0 and variance 1.

    Returns:
        Nats, a mean over the projections: 0 for a direction that is anywhere, lower where it stays near a place.
    """
    everywhere = 0.5 * math.log(2 * math.pi * math.e)
    return float(np.mean(differential_entropy(projected, axis=0))) - everywhere


def directions(paths: Mapping[str, Path]) -> dict[str, xr.Dataset]:
    """From the checkpoints of the last half of each run: entropies of directions, and gradients against their noise."""
    return {f"{name}_directions": _directions(path) for name, path in paths.items()}


def _directions(path: Path) -> xr.Dataset:
    from periodic_jax.inspection.load import load_states
    from periodic_jax.landscape.objective import fixed_batches
    from periodic_jax.landscape.surface import Surface

    run = loaded(path)
    saved = checkpoint_steps(path)
    steps = [step for step in saved if step > (1 - WINDOW) * saved[-1]]
    batches = fixed_batches(run.config.data, run.config.batch_size, images=None)
    chosen = set(steps[:: -(len(steps) // LOOKS)][:LOOKS])
    projected, signals, noises, frame = [], [], [], None
    for step in steps:
        surface = Surface(load_states(run, step, range(len(run.grid))), batches)
        weights = np.asarray(surface.weights, np.float64)
        if frame is None:
            frame = np.random.default_rng(0).standard_normal((weights.shape[1], PROJECTIONS))
            frame *= math.sqrt(len(frame)) / np.linalg.norm(frame, axis=0)
        projected.append(weights @ frame / np.linalg.norm(weights, axis=1, keepdims=True))
        if step in chosen:
            found = surface.gradient_noise()
            noise = np.array([one.gradient_std_norm for one in found]) ** 2
            # What the noise of a mean over all mini-batches adds is taken off.
            signals.append(np.array([one.gradient_norm for one in found]) ** 2 - noise / len(batches.labels))
            noises.append(noise)
    stacked = np.stack(projected, axis=1)  # (configs, steps, projections)
    ratio = np.mean(signals, axis=0) / np.mean(noises, axis=0)
    return xr.Dataset(
        {
            "entropy": ("config", np.array([direction_entropy(one) for one in stacked])),
            "signal_to_noise": ("config", np.sqrt(np.maximum(ratio, 0))),
        }
    )
