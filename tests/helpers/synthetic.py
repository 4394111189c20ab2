"""Trajectories with known destabilisations, and run directories that hold them: no training, no JAX."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from periodic_jax import dynamics
from periodic_jax.core.grid import SweepGrid
from periodic_jax.storage import reader, run_directory, schema
from periodic_jax.storage.writer import TelemetryLayout, TelemetryWriter

EVALUATIONS = ("train_loss", "train_error", "test_loss", "test_error")


def trajectory(
    steps: int,
    bursts: Sequence[int] = (),
    *,
    length: int = 5,
    growth: float | Sequence[float] = 1.08,
    lr: float = 1.0,
    weight_decay: float = 1e-3,
    norm: float = 5.0,
    quiet: float = 1e-3,
    loss: float = 0.01,
    noise: float = 0.2,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """What plain SGD records when the effective gradient norm is known.

    Args:
        steps: how many.
        bursts: steps at which the weights start to be thrown, so that the norm is lowest there.
        length: steps of a burst, each of which multiplies the norm by ``growth`` and has a loss of 1.
        growth: see ``length``; one for each burst, or for all.
        lr: η.
        weight_decay: λ.
        norm: ρ_0.
        quiet: g̃ between bursts.
        loss: its median between bursts.
        noise: standard deviation of the logarithms of loss and quiet g̃.
        seed: of the noise.

    Returns:
        ``loss``, ``weight_norm``, ``effective_lr``, ``effective_grad_norm`` and ``angular_step``, each ``(steps,)``.
    """
    rng = np.random.default_rng(seed)
    a = 1 - lr * weight_decay
    ratio = np.zeros(steps)
    for first, factor in zip(bursts, np.broadcast_to(growth, len(bursts)), strict=True):
        ratio[first : first + length] = factor
    grads, norms = quiet * np.exp(noise * rng.normal(size=steps)), np.empty(steps)
    for t in range(steps):
        norms[t] = norm
        if ratio[t]:
            grads[t] = norm**2 / lr * np.sqrt(ratio[t] ** 2 - a**2)
        norm = np.sqrt((a * norm) ** 2 + (lr * grads[t] / norm) ** 2)
    losses = np.where(ratio, 1.0, loss) * np.exp(noise * rng.normal(size=steps))
    elr = lr / norms**2
    angle = dynamics.angular_step(elr, grads, lr, weight_decay)
    return {
        "loss": losses, "weight_norm": norms, "effective_lr": elr, "effective_grad_norm": grads, "angular_step": angle,
    }  # fmt: skip


def stack(curves: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Trajectories one above the other, ``(configs, steps)``."""
    return {name: np.stack([curve[name] for curve in curves]) for name in curves[0]}


def cut(curve: dict[str, np.ndarray], step: int) -> dict[str, np.ndarray]:
    """The trajectory up to a step, and NaN from there on."""
    return {name: np.where(np.arange(values.shape[-1]) < step, values, np.nan) for name, values in curve.items()}


def write_run(
    path: Path,
    grid: SweepGrid,
    telemetry: dict[str, np.ndarray],
    *,
    eval_every: int = 50,
    written: float = np.inf,
    layers: Sequence[str] = (),
    model: str = "ConvNetSI",
) -> Path:
    """Write a run directory as training would, in chunks.

    Args:
        path: to be created.
        grid: the configurations.
        telemetry: ``(configs, steps)`` or, of names that begin with ``layer_``, ``(configs, steps, layers)``.
        eval_every: steps between evaluations, and the length of a chunk. An evaluation of configuration i after step t
            is i + t / 1000 for each quantity, halved for errors.
        written: steps made before the run stopped.
        layers: their names.
        model: its name.
    """
    run_directory.claim_directory(path)
    run_directory.write_config(path, {"format": schema.FORMAT, "config": {"model": model}})
    telemetry = {name: values.astype(np.float32) for name, values in telemetry.items()}
    steps = telemetry["loss"].shape[1]
    written = int(min(written, steps))
    eval_steps = sorted({*range(0, steps, eval_every), steps})
    empty = {name: values[:, :0] for name, values in telemetry.items()}
    writer = TelemetryWriter(path, TelemetryLayout(grid, steps, eval_steps, empty, EVALUATIONS, layers))
    for first in range(0, written, eval_every):
        last = min(first + eval_every, written)
        writer.write(first, {name: values[:, first:last] for name, values in telemetry.items()})
    for step in eval_steps:
        if step <= written:
            values = np.arange(len(grid)) + step / 1000
            writer.write_evaluation(step, {n: values / 2 if "error" in n else values for n in EVALUATIONS})
    bad = ~np.isfinite(telemetry["loss"]) & (np.arange(steps) < written)
    writer.write_diverged(np.where(bad.any(1), np.argmax(bad, axis=1), -1))
    return path


def open_flat(path: Path, grid: SweepGrid, telemetry: dict[str, np.ndarray], **options) -> xr.Dataset:
    """Write a run and open it flat."""
    return reader.open_run(write_run(path, grid, telemetry, **options), flat=True)


FOUR = SweepGrid.product(lr=[1.0, 0.5], seed=[0, 3], weight_decay=1e-3)
STEPS = 1200


def four() -> dict[str, np.ndarray]:
    """Of `FOUR`: three bursts with gaps of 300 and 400 steps; one burst; none; and a divergence at step 650."""
    return stack([trajectory(STEPS, [300, 600, 1000]), trajectory(STEPS, [500]), trajectory(STEPS, lr=0.5),
                  cut(trajectory(STEPS, lr=0.5), 650)])  # fmt: skip
