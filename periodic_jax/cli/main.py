"""The command line, ``periodic-jax COMMAND``: reads the command, carries it out, and prints errors in one line."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tyro.extras import subcommand_cli_from_dict

from periodic_jax._version import __version__
from periodic_jax.cli.axis import RefusedValue
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.cli.launch import log_line
from periodic_jax.cli.launch_engines import Launch
from periodic_jax.core.errors import ConfigError, PeriodicJaxError

ABOUT = (
    "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once. "
    "periodic-jax --version prints the version."
)


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
        ConfigError: a value that an option does not accept.
        SystemExit: after the help or the version was printed; 2 after tyro has printed why it rejects something.
    """
    if list(arguments) == ["--version"]:
        print(f"periodic-jax {__version__}")
        sys.exit(0)
    if not arguments or (not arguments[0].startswith("-") and arguments[0] not in COMMANDS):
        raise ConfigError("command", "".join(arguments[:1]) or "none", "one of " + ", ".join(COMMANDS))
    if arguments[0] == "launch":
        return Launch(tuple(arguments[1:]))
    try:
        return subcommand_cli_from_dict(COMMANDS, prog="periodic-jax", description=ABOUT, args=arguments)
    except RefusedValue as refused:
        raise refused.error from None


if __name__ == "__main__":
    main()
