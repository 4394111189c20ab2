"""A chunk of steps: what a sweep yields, and where one ends."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from periodic_jax.training.state import TrainState

FIRST_STEPS = 16  # of a chunk, before it is known how long they take


class Chunk(NamedTuple):
    """Telemetry of consecutive steps and the evaluation after the last of them where one was due: on the host, and
    before they are fetched on the devices, as the programs return them.
    """

    first_step: int
    telemetry: dict[str, Any]  # (configs, steps), or (configs, steps, layers)
    evaluation: dict[str, Any] | None  # (configs,)
    diverged_at: Any  # (configs,) step, or -1
    weights: Any = None  # parameters and running statistics at its end, on the device, where candidates were asked for
    states: TrainState | None = None  # at the end of the chunk, on the device, where they were asked for
    eigenvalue: Any = None  # (configs,) before its first step, on the devices, where a measurement was due

    @property
    def steps(self) -> int:
        """Number of steps in the chunk."""
        return next(iter(self.telemetry.values())).shape[1]


@dataclass(frozen=True)
class ChunkEnds:
    """Where chunks end, besides evaluations.

    Attributes:
        seconds: wanted duration of a chunk.
        origin: the run's first step.
        eval_at: the updates after which to evaluate, ascending, in the place of regular ones.
        mark_every: chunks end at its multiples too.
        weights_every: likewise, and there come with the parameters and running statistics.
    """

    seconds: float = 1.0
    origin: int = 0
    eval_at: Sequence[int] = ()
    mark_every: int | None = None
    weights_every: int | None = None

    def next_evaluation(self, step: int, end: int, every: int | None) -> int:
        """The update after which the next evaluation is due; the end, where there is none before it.

        Args:
            step: updates made.
            end: number of the last step.
            every: updates between regular evaluations; None: there are none.

        Example:
            >>> ChunkEnds(eval_at=(1, 10, 100)).next_evaluation(10, 50, None), ChunkEnds().next_evaluation(10, 50, 8)
            (50, 16)
        """
        if self.eval_at:
            later = bisect_right(self.eval_at, step)
            return min(self.eval_at[later], end) if later < len(self.eval_at) else end
        return min((step // every + 1) * every, end) if every else end
