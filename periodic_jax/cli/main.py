"""The command line, ``periodic-jax COMMAND``: reads the command, carries it out, and prints errors in one line."""

import contextlib
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from periodic_jax._version import __version__
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.cli.launch import log_line
from periodic_jax.cli.launch_engines import Launch
from periodic_jax.cli.options import parse_options, refuse_unknown, similar_names
from periodic_jax.core.errors import ConfigError, PeriodicJaxError, UsageError

USAGE = "usage: periodic-jax COMMAND [-h] [OPTIONS]"
ABOUT = (
    "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once. "
    "periodic-jax --version prints the version."
)
FIRST_COMMANDS = f"""{USAGE}

To begin with:
  periodic-jax demo                        ten configurations in a minute
  periodic-jax sweep --lr 0.1 1 --steps 2000 --out runs/mine
                                           a grid of your own
  periodic-jax analyze runs/mine           what each configuration did
  periodic-jax resume runs/mine            go on with a run that was stopped

All {len(COMMANDS)} commands: periodic-jax --help. The options of one: periodic-jax sweep --help."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``periodic-jax``: exits with 0, 2 for unusable input, 128 and its number when stopped by a signal
    (`runs.callbacks.Stop`), 1 when something could not be read or written; with one line on stderr. And as other
    programs do, with 141 and no message, when the reader of its output has gone: all files are written by then.
    """
    _open_missing_streams()
    try:
        try:
            _do(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python, which flushes at its end
        sys.exit(128 + signal.SIGPIPE)


def _open_missing_streams() -> None:
    """Open what was closed of standard input, output and error, as a service may start its programs, on nothing.

    Their numbers would go to the next files that are opened, such as telemetry, into which libraries then log.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in the order of their numbers
        if getattr(sys, name) is None:
            # It gets the lowest free number, its own, and stays open.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class _LogLines(logging.Handler):
    """Prints what the package logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        log_line(record.getMessage())


@contextlib.contextmanager
def _printed_log() -> Iterator[None]:
    """Print what the package logs within a ``with`` block, and hand it to no other handler."""
    logger, handler = logging.getLogger("periodic_jax"), _LogLines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.level, logger.propagate = logging.INFO, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def _do(arguments: Sequence[str] | None) -> None:
    """Parse the command and carry it out."""
    try:
        with _printed_log():
            parse_command(sys.argv[1:] if arguments is None else arguments).execute()
    except PeriodicJaxError as error:
        log_line(" ".join(str(error).split()) if isinstance(error, ConfigError) else str(error))
        sys.exit(error.status)
    except KeyboardInterrupt:
        log_line("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        log_line(f"{error.filename or 'error'}: {error.strerror or error}")
        sys.exit(1)


def parse_command(arguments: Sequence[str]) -> Any:
    """The command with its options, typed.

    Raises:
        ConfigError: an unknown command, word or option, a value that an option does not accept, or one that is missing.
        SystemExit: after the help or the version was printed; 2 after the help where nothing was given.
    """
    name = arguments[0] if arguments else ""
    if name == "--version":
        print(f"periodic-jax {__version__}")
        sys.exit(0)
    if name in ("-h", "--help"):
        print(overview())
        sys.exit(0)
    if not arguments:
        print(FIRST_COMMANDS, file=sys.stderr)
        sys.exit(2)
    if name == "launch":
        return Launch(tuple(arguments[1:]))
    if name not in COMMANDS:
        similar = similar_names(name, list(COMMANDS))
        remedy = f"did you mean {' or '.join(similar)}?" if similar else "periodic-jax --help lists the commands"
        raise UsageError(name or "an empty word", "periodic-jax has no such command", remedy)
    command, left = parse_options(COMMANDS[name], arguments[1:], f"periodic-jax {name}")
    refuse_unknown(left, f"periodic-jax {name}", COMMANDS[name])
    return command


def overview() -> str:
    """All commands, with the first sentence of each.

    Example:
        >>> print(overview()[:42])
        usage: periodic-jax COMMAND [-h] [OPTIONS]
    """
    lines = [USAGE, "", *textwrap.wrap(ABOUT, 80), "", "commands:"]
    for name, kind in COMMANDS.items():
        summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        lines += textwrap.wrap(summary, 80, initial_indent=f"  {name:11}", subsequent_indent=" " * 13)
    return "\n".join([*lines, "", "periodic-jax COMMAND --help lists the options of a command."])


if __name__ == "__main__":
    main()
