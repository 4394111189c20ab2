"""Saves the lowest point of each period of each configuration while they are trained; see `analysis.online`."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from periodic_jax.analysis.online import Rule, conclude_periods, initial_rule, update_rule
from periodic_jax.storage.minima_files import PREFIX, find_missing_minima, run_of, write_minimum
from periodic_jax.sweeps.chunks import Chunk
from periodic_jax.sweeps.placement import choose, copied, weights_of
from periodic_jax.sweeps.sweep import Sweep


class MinimaRecorder:
    """The lowest candidates of the periods under way, on the device, and the rule for when these have ended.

    Args:
        sweep: at its first step.
        path: the run directory.
        every: steps between candidates.
        run_id: of the run.
    """

    def __init__(self, sweep: Sweep, path: Path, every: int, run_id: str | None) -> None:
        self._sweep, self._path, self._run_id = sweep, path, run_id
        self._rule: Rule = initial_rule(len(sweep.grid), every, np.dtype(sweep.hparams.lr.dtype))
        self._lowest = copied(weights_of(sweep.states))

    def restore(self, arrays: Mapping[str, np.ndarray], log: Callable[[str], None]) -> None:
        """Go on from what a checkpoint holds."""
        recorded = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
        self._lowest = self._sweep.placement.put(recorded, self._lowest)
        self._rule = {name: np.array(recorded[name]) for name in self._rule}
        for missing in find_missing_minima(self._path, arrays, self._sweep.step).values():
            log(f"{missing}; periodic-jax resume {self._path} --truncate finds them again")

    def update(self, chunk: Chunk) -> None:
        """Read a chunk, which does not go beyond a multiple of the steps between candidates, and save the minima of the
        periods that end with it.
        """
        if chunk.steps:
            update_rule(self._rule, chunk.first_step, chunk.telemetry["loss"], chunk.telemetry["weight_norm"])
        if chunk.weights is None:
            return
        verdict = conclude_periods(self._rule, end := chunk.first_step + chunk.steps, chunk.diverged_at < 0)
        if verdict.ended.any():
            self._write(np.flatnonzero(verdict.ended), verdict.step, verdict.score, end)
        is_lower = self._sweep.placement.shard_configs(verdict.lowest)
        self._lowest = choose(is_lower, chunk.weights, self._lowest)

    def export(self) -> dict[str, np.ndarray]:
        """What a checkpoint is to hold of it; see `storage.minima_files.with_rule_state`."""
        rule = {name: array.copy() for name, array in self._rule.items()}
        recorded = {**self._sweep.placement.fetch(self._lowest), **rule}
        return {f"{PREFIX}{name}": array for name, array in recorded.items()}

    def write_unfinished(self) -> None:
        """Write the lowest points of the periods that the end of the run cut off."""
        configs = np.flatnonzero(self._rule["step"] >= 0)
        if len(configs):
            self._write(configs, self._rule["step"], self._rule["score"], None)

    def _write(self, configs: np.ndarray, steps: np.ndarray, scores: np.ndarray, ended: int | None) -> None:
        weights = self._sweep.placement.fetch(self._lowest)
        for i in configs.tolist():
            arrays = {name: array[i] for name, array in weights.items()}
            arrays |= run_of(self._run_id) | {"score": scores[i]}
            write_minimum(self._path, i, int(steps[i]), ended, arrays)
