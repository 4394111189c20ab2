"""Ending a run in good order when the system or the user asks for it."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

WATCHED = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Within a ``with`` block, SIGTERM and SIGINT only set a mark; a second one ends the process at once.

    Called, it returns the exit status that the signal asks for, 143 or 130, or 0 while there was none. Outside of the
    main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self._status = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> int:
        """The exit status asked for, or 0."""
        return self._status

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._mark) for number in WATCHED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self._status = 128 + number
        for watched in WATCHED:
            signal.signal(watched, signal.SIG_DFL)
        # Not through sys.stderr, in the midst of whose writing the signal may have come.
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2, b"\nfinishing the current chunk; again to stop at once\n"
        )
