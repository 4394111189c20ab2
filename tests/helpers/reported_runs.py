"""Runs that reports are made of, the usual one and the extreme ones, and what a page shows of them."""

import base64

import numpy as np

from periodic_jax import analysis
from periodic_jax.core.grid import SweepGrid
from periodic_jax.reporting import html

from .synthetic import EVALUATIONS, cut, open_flat, stack, trajectory

GRID = SweepGrid.product(lr=[0.5, 1.0], weight_decay=[1e-3, 5e-3], seed=[0, 1])


def telemetry(grid, steps=900, bursts=(100, 300, 500, 700), change=lambda curve: curve):
    pairs = zip(grid.coords["lr"], grid.coords["weight_decay"], strict=True)
    curves = [trajectory(steps, bursts, lr=float(a), weight_decay=float(b), seed=i) for i, (a, b) in enumerate(pairs)]
    return stack([change(curve) for curve in curves])


def shown_of(dataset):
    return html.report_contents(dataset, analysis.analyze(dataset))


def unpack(text, dtype="<f4"):
    return np.frombuffer(base64.b64decode(text), dtype)


def diverged(curve):
    curve = cut(curve, 3)
    curve["loss"][2] = np.inf
    return curve


ONE = SweepGrid.product(lr=1.0, weight_decay=5e-3)
EDGES = {
    "one configuration": lambda path: open_flat(path, ONE, telemetry(ONE)),
    "all diverged": lambda path: open_flat(path, GRID, telemetry(GRID, change=diverged)),
    "unfinished": lambda path: open_flat(path, GRID, telemetry(GRID), written=250),
    "nothing recorded": lambda path: open_flat(path, GRID, telemetry(GRID), written=0),
    "no evaluations": lambda path: open_flat(path, GRID, telemetry(GRID)).drop_vars(EVALUATIONS),
}
