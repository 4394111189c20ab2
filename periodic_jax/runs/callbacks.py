"""What a run calls while it trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from periodic_jax.sweeps.chunks import Chunk


@dataclass(frozen=True)
class RunCallbacks:
    """What `run_sweep`, `resume_run` and `branch_run` call.

    Attributes:
        on_start: called once all is accepted and training begins, with the number of configurations, the session's
            first step and the number of the last step.
        on_chunk: called with each chunk that was recorded. The evaluation before step 0 comes with a chunk of no steps.
        should_stop: asked once a chunk. Anything but 0 stops the run after a checkpoint, and is the `RunInterrupted`'s
            status.
        log: called with what the user should know, a line at a time.

    Example:
        >>> import tempfile, periodic_jax as pj
        >>> steps = []
        >>> callbacks = RunCallbacks(on_chunk=lambda chunk: steps.append(chunk.steps))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pj.run_sweep(pj.RunConfig(out=f"{folder}/run", width=2, steps=3), callbacks=callbacks)
        >>> sum(steps)
        3
    """

    on_start: Callable[[int, int, int], None] = lambda configs, first_step, steps: None
    on_chunk: Callable[["Chunk"], None] = lambda chunk: None
    should_stop: Callable[[], int] = lambda: 0
    log: Callable[[str], None] = print
