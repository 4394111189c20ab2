"""Until all processes of a grid have come: who is missing is told in one line, where JAX's C++ code only aborts."""

import contextlib
import ctypes
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

MOST = 2**16  # bytes of what JAX says


def check_place(coordinator: str, *, first: bool) -> None:
    """Refuse a place where process 0 cannot be: JAX's service would end it with a segmentation fault.

    Args:
        coordinator: ``HOST:PORT``.
        first: whether this is process 0, which must be able to listen there.

    Raises:
        ValueError: what is wrong.

    Example:
        >>> check_place("localhost:8476", first=False)
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("it has no host, or no port from 1 to 65535")
    if first:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            socket.create_server(("", int(port)), family=family, dualstack_ipv6=both).close()
        except OSError as error:
            raise ValueError(f"nothing can listen there: {os.strerror(error.errno or 0)}") from None


def is_known(coordinator: str) -> bool:
    """Whether the host of a ``HOST:PORT`` has an address."""
    try:
        socket.getaddrinfo(coordinator.rpartition(":")[0].strip("[]"), None)
    except (OSError, UnicodeError):
        return False
    return True


def listens(coordinator: str) -> bool:
    """Whether there is a process 0 at its ``HOST:PORT``."""
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 2).close()
    except OSError:
        return False
    return True


_handlers: list[Any] = []  # kept alive


def on_abort(handler: Callable[[], None] | None) -> None:
    """Call this when C++ code of JAX aborts the process, which no Python code hears of; None: let it abort."""
    libc, made = ctypes.CDLL(None), None
    if handler:
        made = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: handler())
        _handlers.append(made)
    libc.signal(signal.SIGABRT, made)


@contextlib.contextmanager
def arriving(patience: float) -> Iterator[None]:
    """Say in one line that not all processes have come: JAX writes a trace of its C++ code and aborts this one."""
    from jax._src.distributed import global_state

    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:

        def aborted() -> None:
            words = os.pread(said.fileno(), MOST, 0)
            if b"RegisterTask" not in words:
                os.write(stderr, words)
                return
            index, count = int(global_state.process_id), int(global_state.num_processes)
            others = [i for i in range(1, count) if i != index]  # process 0 cannot tell which of them has come
            coordinator = str(global_state.coordinator_address)
            if not others or not listens(coordinator):
                others = [0]
            who = f"process {others[0]} of {count}"
            if len(others) > 1:
                who = f"at least one of processes {others[0]} - {others[-1]} of {count}"
            line = f"{who} did not come within {patience:.0f} s; all need the same --coordinator and --num-processes"
            if not is_known(coordinator):
                line += f"; {coordinator.rpartition(':')[0]} has no address here"
            os.write(stderr, f"periodic-jax: {line}\n".encode())
            os._exit(1)

        os.dup2(said.fileno(), 2)
        on_abort(aborted)
        try:
            yield
        finally:
            on_abort(None)
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            os.write(2, said.read())
