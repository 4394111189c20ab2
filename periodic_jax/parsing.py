"""Parses the command line; whatever is not accepted becomes one line and exit status 2."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro

from periodic_jax.errors import ConfigError
from periodic_jax.grid import flag_of
from periodic_jax.options import (
    Analyze,
    Branch,
    Demo,
    Export,
    Info,
    Landscape,
    Minima,
    Plot,
    Processes,
    Replay,
    Report,
    Resume,
    Sweep,
)

COMMANDS: dict[str, Any] = {
    "demo": Demo, "sweep": Sweep, "resume": Resume, "branch": Branch, "info": Info, "replay": Replay,
    "analyze": Analyze, "landscape": Landscape, "minima": Minima, "plot": Plot, "report": Report, "export": Export,
}  # fmt: skip
ABOUT = "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once."


def parse(arguments: Sequence[str]) -> Any:
    """Parse with tyro; what it rejects becomes one line instead of its box."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        sys.exit(refuse(str(ConfigError("command", arguments[0], "one of " + ", ".join(COMMANDS)))))
    for flag, word in itertools.pairwise([*arguments, "--"]):
        name = flag.removesuffix("=")
        if name in ("--out", "--data-dir") and (flag != name or not word.strip()):
            sys.exit(refuse(str(ConfigError(name, "an empty word", "a folder"))))
    said = io.StringIO()
    commands: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007 (built at run time)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog="periodic-jax", description=ABOUT, args=list(arguments))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = _one_line(said.getvalue())
        if arguments and arguments[0] in COMMANDS and "nrecognized" in message:
            fields = [field.name for field in dataclasses.fields(COMMANDS[arguments[0]])]
            if "processes" in fields:
                fields[-1:] = [field.name for field in dataclasses.fields(Processes)]
            known = " ".join(map(flag_of, fields))
            message = f"{message} not accepted; expected among {known}"
        sys.exit(refuse(message))


def _one_line(box: str) -> str:
    """The first paragraph of tyro's error box, without its frame."""
    lines = [re.sub(r"[\u2500-\u257f]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip() for line in box.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if not line and kept:
            break
        kept.append(line)
    return " ".join(" ".join(kept).split()) or "unusable arguments; see periodic-jax --help"


def refuse(message: str) -> int:
    """Say in one line what was not accepted, and give the exit status for it."""
    tell(" ".join(message.split()))
    return 2


def tell(line: str) -> None:
    """A line to the user on stderr, where it does not mix with results."""
    print(f"periodic-jax: {line}", file=sys.stderr)
