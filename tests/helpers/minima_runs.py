"""A tiny run whose minima are saved: two seeds that train, and two configurations that diverge."""

import contextlib

import jax
import numpy as np
import pytest

import periodic_jax as pj
from periodic_jax.analysis import online
from periodic_jax.runs import minima_recorder

EVERY, STEPS = 10, 60


# So few steps have no periods. The rule that tells them is shown a norm that falls e-fold in each step but the last
# five of every 20, in which it comes back: far more than the network's own does, whatever its rounding. So the periods
# of each finite configuration end after 20, 40 and 60 steps; which of their windows is lower is for the losses to say.
RISES = np.concatenate([-np.arange(15), np.arange(-11, 0, 2.75), [0]])
ENDS = (20, 40, 60)


def collect_with_rises(rule, first_step, loss, norm):
    steps = first_step + np.arange(norm.shape[1])
    online.update_rule(rule, first_step, loss, norm * np.exp(RISES[steps % 20]).astype(norm.dtype))


@contextlib.contextmanager
def rises_end_periods():
    """Every rise of the norm ends a period, whatever the loss does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minima_recorder, "update_rule", collect_with_rises)
        for name, value in {"LOSS_RATIO": 1e-9, "LOSS_NOISE": -1e9, "NORM_NOISE": 0.0}.items():
            patch.setattr(online, name, value)
        yield


SETTINGS = {
    "lr": (0.5,), "weight_decay": (0.1,), "noninvariant_lr": (0.0, 1e30), "seed": (0, 1), "width": 2, "depth": 1,
    "steps": STEPS, "eval_every": 20, "checkpoint_seconds": 0.0, "keep_every": EVERY, "layout": "map",
    "use_data_size": 64, "batch_size": 32, "keep_period_minima": EVERY, "momentum": (0.0,),
}  # fmt: skip


def configured(out, **changes):
    return pj.RunConfig(**{"out": out, **SETTINGS, **changes})


def first(tree):
    """The first configuration's leaves."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), tree)
