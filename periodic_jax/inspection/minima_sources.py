"""The minima that a run directory holds of each configuration: those saved while training, or else checkpoints."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from periodic_jax import analysis
from periodic_jax.core.errors import CorruptedRunError, UsageError
from periodic_jax.inspection.load import LoadedRun, load_arrays, load_states
from periodic_jax.landscape.connectivity import Params
from periodic_jax.models.adapters import input_dtype
from periodic_jax.runs import build
from periodic_jax.storage.minima_files import find_missing_minima, read_minimum, saved_minima
from periodic_jax.storage.reader import open_run
from periodic_jax.storage.run_directory import MINIMA, checkpoint_steps, recorded_id
from periodic_jax.sweeps.placement import named_leaves, weights_of
from periodic_jax.training.initialisation import seeded_state
from periodic_jax.training.spec import TrainingSpec
from periodic_jax.training.state import TrainState

SAVED = "saved while training, by --keep-period-minima"
CHECKPOINTS = "the last checkpoints before each onset; a sweep with --keep-period-minima saves the minima"


class SavedState(NamedTuple):
    """A minimum, or what is taken for one."""

    step: int
    ended: int | None  # updates after which its period was seen to have ended; None: not before the end of the run
    params: Params
    statistics: Any


def minima_of(run: LoadedRun, configs: Sequence[int], abstract: TrainState) -> tuple[str, list[list[SavedState]]]:
    """The minima of some configurations, of any precision. Within the run's.

    Args:
        run: the run.
        configs: the configurations, in the grid's order.
        abstract: of `inspection.load.abstract_state`.

    Returns:
        Their source, in words, and those of each configuration, by their steps.

    Raises:
        CorruptedRunError: corrupted or missing minima.
        ConfigError: there are none at all.
    """
    if not run.config.keep_period_minima:
        return CHECKPOINTS, _from_checkpoints(run, configs)
    minima: dict[int, list[SavedState]] = {i: [] for i in configs}
    for part, members in run.parts():
        here = [i for i in configs if i in members]
        saved = _saved(part, np.searchsorted(members, here).tolist(), abstract)
        minima.update(zip(here, saved, strict=True))
    if not any(minima.values()):
        every = run.config.keep_period_minima
        reason = f"no minimum is saved yet: each is the lowest of every {every} steps of a finite network"
        raise UsageError(run.path, reason, f"periodic-jax resume {run.path} --steps N makes the run longer")
    return SAVED, list(minima.values())


def _saved(run: LoadedRun, configs: Sequence[int], abstract: TrainState) -> list[list[SavedState]]:
    steps = checkpoint_steps(run.path)
    if steps:  # without any, it is not known how many there must be
        checkpoint = load_arrays(run, steps[-1])
        missing = find_missing_minima(run.path, checkpoint, steps[-1], finished=run.is_finished)
        for reason in (missing[i] for i in configs if i in missing):
            remedy = f"periodic-jax resume {run.path} --truncate finds them again"
            raise CorruptedRunError(run.path / MINIMA, reason, remedy)
    weights = weights_of(abstract)
    like = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in named_leaves(weights)}
    minima: dict[int, list[SavedState]] = {i: [] for i in configs}
    run_id = recorded_id(run.path)
    for minimum in saved_minima(run.path):
        if minimum.config in minima:
            arrays = read_minimum(minimum, like, run_id)
            read = jax.tree.structure(weights).unflatten([arrays[name] for name in like])
            state = SavedState(minimum.step, minimum.ended, read["params"], read["batch_stats"])
            minima[minimum.config].append(state)
    return list(minima.values())


def _from_checkpoints(run: LoadedRun, configs: Sequence[int]) -> list[list[SavedState]]:
    """The last checkpoint before each onset."""
    steps, remedy = np.array(run.checkpoint_steps()), "give a run of periodic-jax sweep --keep-period-minima"
    if not len(steps):
        raise UsageError(run.path, "it has neither minima nor a checkpoint", remedy)
    onsets = analysis.analyze(open_run(run.path, flat=True)).onset_step.values
    before: dict[int, dict[int, int]] = {i: {} for i in configs}
    for i in configs:
        for at in onsets[i][np.isfinite(onsets[i])]:
            if (steps <= at).any():  # several periods may have ended since: the first is the one that it was in
                before[i].setdefault(int(steps[steps <= at].max()), int(at))
    if not any(before.values()):
        raise UsageError(run.path, "it has neither minima nor a checkpoint before a destabilisation", remedy)
    minima: dict[int, list[SavedState]] = {i: [] for i in configs}
    for step in sorted(set().union(*before.values())):
        here = [i for i in configs if step in before[i]]
        states = load_states(run, step, here)
        for k, i in enumerate(here):
            params, statistics = _of_config(states.params, k), _of_config(states.batch_stats, k)
            minima[i].append(SavedState(step, before[i][step], params, statistics))
    return list(minima.values())


def start_of(run: LoadedRun, i: int, abstract: TrainState) -> Params | None:
    """The weights with which a configuration began: of its seed, or of a branch's first checkpoint, if it is there."""
    task, step = abstract.task, run.first_step
    if step:
        return _of_config(load_states(run, step, [i]).params, 0) if step in checkpoint_steps(run.path) else None
    config, dtype = run.config, input_dtype(task.network)
    seeds = jnp.asarray(run.grid.initial_seeds()[i])
    images = jnp.zeros((config.batch_size, *config.data.image_shape), dtype)
    model = build.network(config, config.data.num_classes)
    has_own_head = bool(run.grid.coords["head_seed"][i] >= 0)
    state = seeded_state(model, task.labels, seeds, images, TrainingSpec(), has_own_head=has_own_head)
    return jax.tree.map(np.asarray, state.params)


def _of_config(stacked: Any, k: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf[k]), stacked)
