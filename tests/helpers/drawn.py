"""Runs to draw, and what a figure shows of them."""

import numpy as np

from helpers.synthetic import cut, stack, trajectory
from periodic_jax.core.grid import SweepGrid


def infinite(curve):
    """Diverges at step 150: the recorded loss is infinite there, and nothing is known after it."""
    curve = cut(curve, 151)
    curve["loss"][150] = np.inf
    return curve


def runs_of(grid, steps=240, bursts=(), change=lambda curve: curve):
    """One trajectory for each configuration of a grid."""
    lrs, decays = grid.coords["lr"], grid.coords["weight_decay"]
    return grid, stack(
        [
            change(trajectory(steps, bursts, lr=float(lr), weight_decay=float(decay), seed=i))
            for i, (lr, decay) in enumerate(zip(lrs, decays, strict=True))
        ]
    )


TWO_AXES = SweepGrid.product(lr=[0.5, 1.0, 2.0], weight_decay=[1e-3, 5e-3])
ONE = SweepGrid.product(lr=1.0, weight_decay=5e-3)
TWO_SEEDS = SweepGrid.product(lr=1.0, weight_decay=5e-3, seed=[0, 1])
SIXTY = SweepGrid.product(lr=np.geomspace(0.01, 1, 5), weight_decay=np.geomspace(1e-4, 1e-3, 4), seed=[0, 1, 2])
SEVEN_PANELS = SweepGrid.product(lr=np.geomspace(0.01, 1, 12), weight_decay=np.geomspace(1e-4, 1e-3, 7))
FIVE_PANELS = SweepGrid.product(lr=[0.5, 1.0], weight_decay=np.geomspace(1e-4, 1e-3, 5))

RUNS: dict[str, tuple] = {
    "two axes": runs_of(TWO_AXES, bursts=[60, 160]),
    "one configuration": runs_of(ONE, bursts=[60, 160]),
    "no period": runs_of(ONE),
    "sixty configurations": runs_of(SIXTY),
    "more panels than fit": runs_of(SEVEN_PANELS),
    "five panels": runs_of(FIVE_PANELS),
    "no product": runs_of(SweepGrid.of([{"lr": 0.3}, {"lr": 1.0, "seed": 1}, {"momentum": 0.5}])),
    "one destabilisation, then a divergence": runs_of(TWO_SEEDS, bursts=[60], change=infinite),
    "nothing but NaN": runs_of(TWO_SEEDS, change=lambda curve: cut(curve, 0)),
    "one step": runs_of(ONE, steps=1),
}


def drawn_panels(figure):
    """The visible panels, after a layout."""
    figure.draw_without_rendering()
    return [ax for ax in figure.axes if ax.get_visible()]
