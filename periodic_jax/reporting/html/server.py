"""The report of a run that is going on, served on this machine only."""

import contextlib
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from periodic_jax.core.errors import ConfigError, PeriodicJaxError
from periodic_jax.reporting.html.page import as_json, render

HOST = "127.0.0.1"


def serve(look: Callable[[], dict[str, Any]], *, port: int = 0, every: int = 10) -> ThreadingHTTPServer:
    """A server of the page on the loopback interface; ``serve_forever()`` runs it.

    Args:
        look: reads the run and gives what the page shows; called at most once in ``every`` seconds.
        port: 0 for any free one.
        every: seconds between refreshments.

    Raises:
        ConfigError: the port is taken.
        MissingDependencyError: plotly is not installed.
    """
    latest = _Latest(look, every)
    render(latest(), live=every)  # refuses before anything is served

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # A page elsewhere whose name was made to point here must not read the run.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                return self.send_error(HTTPStatus.FORBIDDEN)
            if self.path == "/":
                return self._answer(render(latest(), live=every), "text/html")
            if self.path == "/data.json":
                return self._answer(as_json(latest()), "application/json")
            return self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, text: str, kind: str) -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError("--port", port, f"a free port ({error})") from None


class _Latest:
    """What the page shows, at most ``every`` seconds old; the last good one while a run cannot be read."""

    def __init__(self, look: Callable[[], dict[str, Any]], every: int) -> None:
        self._look, self._every = look, every
        self._shown, self._at, self._lock = look(), time.monotonic(), threading.Lock()

    def __call__(self) -> dict[str, Any]:
        with self._lock:
            if time.monotonic() - self._at >= self._every:
                # A chunk that is being written is whole at the next look.
                with contextlib.suppress(PeriodicJaxError):
                    self._shown = self._look()
                self._at = time.monotonic()
            return self._shown
