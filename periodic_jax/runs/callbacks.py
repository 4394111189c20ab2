"""What a run calls while it trains, and the callback that ends one in good order on a signal."""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from periodic_jax.sweeps.chunks import Chunk

# HUP: the terminal was closed; USR1 and USR2: what a scheduler sends before the time is up. Windows has none of them.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
ENDS = (signal.SIGTERM, signal.SIGINT)
LOG_PAUSE = 30.0  # seconds between the lines of a progress bar in a log file


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
        progress: show a progress bar, in a notebook as in a terminal.

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
    progress: bool = True

    @contextlib.contextmanager
    def showing_progress(self) -> Iterator["RunCallbacks"]:
        """Within a ``with`` block, the same with a bar in config-steps, if ``progress`` is set, that is moved once a
        chunk; in a log file, where each state is a line, twice a minute. A process without stderr shows none.
        """
        if not self.progress or sys.stderr is None:
            yield self
            return
        from tqdm.auto import tqdm

        pause = 0 if sys.stderr.isatty() or "ipykernel" in sys.modules else LOG_PAUSE
        bar: Any = None
        with contextlib.ExitStack() as shown:

            def start(configs: int, first_step: int, steps: int) -> None:
                nonlocal bar
                bar = shown.enter_context(tqdm(
                    total=steps * configs, initial=first_step * configs, unit="config-step", unit_scale=True,
                    desc="compiling", mininterval=pause, maxinterval=max(pause, 10), dynamic_ncols=True,
                ))  # fmt: skip
                self.on_start(configs, first_step, steps)

            def move(chunk: "Chunk") -> None:
                if chunk.steps:
                    bar.set_description("training", refresh=False)
                    bar.update(chunk.steps * len(chunk.diverged_at))
                self.on_chunk(chunk)

            yield dataclasses.replace(self, on_start=start, on_chunk=move, progress=False)

    def checking(self, check: Callable[[], None]) -> "RunCallbacks":
        """The same, with ``check``, which may raise, called once a chunk."""
        return dataclasses.replace(self, should_stop=lambda: check() or self.should_stop())


class Stop:
    """Within a ``with`` block, SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 only set a mark.

    Called, it returns the exit status that the signal asks for, 128 and its number, or 0 while there was none. A second
    SIGTERM or SIGINT ends the process at once, and so does the first signal while there is nothing to save. A signal
    that was ignored, as ``nohup`` does, stays so. A thread of its own hears of the signals, since Python runs
    handlers in the main thread only, which may be compiling for minutes. Outside of the main thread, where Python
    allows no handlers, the block does nothing.

    Args:
        is_idle: there is nothing to save until the mark was looked at twice, hence until a first chunk is under way, or
            until `begin` is called.
    """

    def __init__(self, *, is_idle: bool = False) -> None:
        self._status, self._ends, self._looks_left = 0, 0, 2 if is_idle else 0
        self._before: dict[int, Any] = {}
        self._pipe, self._heard_before = (-1, -1), -1

    def __call__(self) -> int:
        """The exit status asked for, or 0."""
        self._looks_left = max(self._looks_left - 1, 0)
        return self._status

    def begin(self) -> None:
        """There is something to save from now on."""
        self._looks_left = 0

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._heard_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            heard = (number for number in (*ENDS, *WARNINGS) if signal.getsignal(number) is not signal.SIG_IGN)
            self._before = {number: signal.signal(number, lambda *_: None) for number in heard}
            threading.Thread(target=self._listen, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            for number, handler in self._before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._heard_before)
            os.close(self._pipe[1])

    def _listen(self, heard: int) -> None:
        """Read the numbers of signals until the block ends."""
        while numbers := os.read(heard, 64):
            for number in filter(self._before.__contains__, numbers):
                self._ends += number in ENDS
                if self._ends > 1:
                    os._exit(128 + number)
                if self._looks_left:
                    _say(b"stopped before the first step: there is nothing to save; the same command begins again")
                    os._exit(128 + number)
                if not self._status:
                    self._status = 128 + number
                    _say(b"finishing the current chunk; again to stop at once")
        os.close(heard)


def _say(line: bytes) -> None:
    """Print a line on stderr, though the main thread may be writing to it, or the terminal is closed."""
    with contextlib.suppress(OSError):
        os.write(2, b"\n" + line + b"\n")
