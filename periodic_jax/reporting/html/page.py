"""The page around the data."""

import html
import json
from importlib import resources
from pathlib import Path
from typing import Any

from periodic_jax.core.errors import MissingDependencyError, UnwritableError
from periodic_jax.core.files import write_atomically

FILE = "report.html"
# Neither text nor numbers of a run may end the script element that holds them, or open a comment in it.
_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def render(shown: dict[str, Any], *, live: int = 0) -> str:
    """The page as text.

    Args:
        shown: from `report_contents`.
        live: seconds after which the page asks its server for the data again; 0 for a page that asks for nothing.

    Raises:
        MissingDependencyError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingDependencyError("the report", "plotly", "periodic_jax[report]") from None

    ours = resources.files("periodic_jax.reporting.html")
    parts = {
        "TITLE": html.escape(f"{shown['name']} - periodic_jax"),
        "CONNECT": "'self'" if live else "'none'",
        "STYLE": ours.joinpath("page.css").read_text(encoding="utf-8"),
        "LIVE": str(int(live)),
        "DATA": as_json(shown),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": ours.joinpath("page.js").read_text(encoding="utf-8"),
    }
    # Parted at the marks of the template only: what is filled in is never searched for marks.
    pieces = ours.joinpath("page.html").read_text(encoding="utf-8").split("@@")
    return "".join(parts[piece] if k % 2 else piece for k, piece in enumerate(pieces))


def as_json(shown: dict[str, Any]) -> str:
    """JSON that is safe inside a script element."""
    return json.dumps(shown, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def write(shown: dict[str, Any], folder: Path) -> Path:
    """Write the page into a run directory, atomically.

    Returns:
        The file.

    Raises:
        MissingDependencyError: plotly is not installed.
        UnwritableError: the folder cannot be written.
    """
    text = render(shown)
    path = folder / FILE
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise UnwritableError(path, error.strerror) from None
    return path
