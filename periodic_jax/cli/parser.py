"""Parses the command line; whatever is not accepted becomes one line and exit status 2."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import itertools
import re
import sys
from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any, Union, get_type_hints

import tyro

from periodic_jax._version import __version__
from periodic_jax.cli import options as options_module
from periodic_jax.cli.options import COMMANDS
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of

ABOUT = (
    "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once. "
    "periodic-jax --version tells the version."
)


def parse(arguments: Sequence[str]) -> Any:
    """The options of the command that the words name.

    Raises:
        ConfigError: words that make no command.
        SystemExit: after the help, or the version, was printed.
    """
    if list(arguments) == ["--version"]:
        print(f"periodic-jax {__version__}")
        sys.exit(0)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise ConfigError("command", arguments[0], "one of " + ", ".join(COMMANDS))
    for flag, word in itertools.pairwise([*arguments, "--"]):
        name = flag.removesuffix("=")
        if name in ("--out", "--data-dir") and (flag != name or not word.strip()):
            raise ConfigError(name, "an empty word", "a folder")
    if {"-h", "--help"}.intersection(arguments):
        _flow_help()
    said = io.StringIO()
    commands: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007 (built at run time)
    try:
        with contextlib.redirect_stderr(said):
            options, unknown = tyro.cli(
                commands, prog="periodic-jax", description=ABOUT, args=list(arguments), return_unknown_args=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise _rejected(arguments, said.getvalue()) from None
    if unknown:
        raise _unknown(arguments[0], unknown[0])
    return options


def _flow_help() -> None:
    """Give tyro the options' docstrings as single lines: it would break its help where the source's lines end."""
    for node in ast.parse(inspect.getsource(options_module)).body:
        if isinstance(node, ast.ClassDef):
            fields = {field.name: field for field in dataclasses.fields(getattr(options_module, node.name))}
            for pair in itertools.pairwise(node.body):
                match pair:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        fields[name].metadata = MappingProxyType({"help": " ".join(text.split())})


def _unknown(command: str, word: str) -> ConfigError:
    """What to say of a word that the command has no use for."""
    flags, name, told = _flags(COMMANDS[command]), word.partition("=")[0], f"what periodic-jax {command} --help tells"
    if not word.startswith("--"):
        return ConfigError(command, word, told)
    near = difflib.get_close_matches(name.strip("-"), [flag.strip("-") for flag in flags], 3)
    return ConfigError(command, name, f"{', '.join(map(flag_of, near))}, or {told}" if near else " ".join(flags))


def _rejected(arguments: Sequence[str], said: str) -> ConfigError:
    """What tyro says of words that it rejects, in ours."""
    given = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    if flag := re.search(r"Missing value for argument '(--[\w-]+)", said):
        return ConfigError(flag[1], "no value", "one after it")
    if not given:
        return ConfigError("command", " ".join(arguments) or "none", "one of " + ", ".join(COMMANDS))
    if "Missing from" in said:
        whole = ["periodic-jax", given, *_needed(COMMANDS[given])]
        return ConfigError(given, "an incomplete command", " ".join(whole))
    return ConfigError(given, " ".join(arguments[1:]), f"what periodic-jax {given} --help tells")


def _flags(command: type) -> list[str]:
    """The options of a command, as they are spelled."""
    positional = _positional(command)
    return [flag_of(field.name) for field in dataclasses.fields(command) if field.name not in positional]


def _positional(command: type) -> dict[str, str]:
    """The words of a command that have no option before them, and how its help calls them."""
    hints = get_type_hints(command, include_extras=True)
    extras = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
    return {
        name: next((extra.metavar for extra in held if getattr(extra, "metavar", None)), name.upper())
        for name, held in extras.items()
        if tyro.conf.Positional[str].__metadata__[0] in held  # pyright: ignore[reportAttributeAccessIssue]
    }


def _needed(command: type) -> list[str]:
    """What cannot be left out of a command."""
    places = _positional(command)
    fields = [field.name for field in dataclasses.fields(command) if field.default is dataclasses.MISSING]
    return [places.get(name) or f"{flag_of(name)} ..." for name in fields]


def as_typed(error: ConfigError, options: Any) -> ConfigError:
    """The error with the value as the user typed it, where it tells of a number that came from an option's word."""
    word = getattr(options, error.argument.removeprefix("--").replace("-", "_"), None)
    if isinstance(word, str) and isinstance(error.value, int | float):
        with contextlib.suppress(ValueError):
            if float(word) == error.value:
                return ConfigError(error.argument, word, error.accepted)
    return error


def refuse(message: str) -> int:
    """Say in one line what was not accepted, and give the exit status for it."""
    log_line(" ".join(message.split()))
    return 2


def log_line(line: str) -> None:
    """A line to the user on stderr, where it does not mix with results."""
    print(f"periodic-jax: {line}", file=sys.stderr)
