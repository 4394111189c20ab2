"""How the options of a command are read, and those that several commands have."""

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from periodic_jax.cli.axis import RefusedValue, read_path, read_run, read_selection
from periodic_jax.core.errors import UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.runs.settings import setting

IF_GIVEN = tyro.conf.arg(help_behavior_hint="")  # its default is not shown: it is None, or a flag that is off


def arg(metavar: str, text: str | None = None) -> Any:
    """The metavar and, unless the field has one, the help of an option."""
    return tyro.conf.arg(metavar=metavar, help=text)


@dataclass(frozen=True)
class DataFiles:
    """Files and modules of the run. Give them again: the command takes no path and no import from config.json."""

    dataset: Annotated[str | None, arg("FILE"), IF_GIVEN] = setting(
        None, "The .npz file, if the run's data set is one."
    )
    data_dir: Annotated[str | None, read_path("data_dir"), IF_GIVEN] = setting(None, "As for the sweep; give it again.")
    model: Annotated[str | None, arg("MODULE:NAME"), IF_GIVEN] = setting(
        None, "The import path of the run's network, if it is your own."
    )


Run = Positional[Annotated[Path, read_run(), arg("DIR", "Run directory.")]]
Folder = Annotated[str | None, read_path("out"), IF_GIVEN]
Selected = Annotated[
    dict[str, Any] | None,
    read_selection(),
    IF_GIVEN,
    arg("AXIS=X ...", "The configurations to look at, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given."),
]
Data = OmitArgPrefixes[DataFiles]


def parse_options(
    kinds: Any, arguments: Sequence[str], command: str, about: str | None = None
) -> tuple[Any, list[str]]:
    """The options of a command, and the words that are none of them.

    Args:
        kinds: the data class of its options, or a union of some.
        arguments: what follows the name of the command.
        command: as it is typed, for the help.
        about: what the help says first; the docstring of the data class, if not given.

    Raises:
        ConfigError: a value that an option does not accept, or something that is missing.
        SystemExit: after the help was printed.
    """
    markers = (FlagCreatePairsOff,)  # every flag is off unless it is given
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                kinds, prog=command, description=about, args=list(arguments), return_unknown_args=True, config=markers
            )
    except RefusedValue as refused:
        raise refused.error from None
    except SystemExit as stop:
        if not stop.code:
            raise
        said = _in_a_line(complaint.getvalue(), command)
        option = re.search(r"Missing value for argument '(-\S+)'", said)
        what, why = (option[1], "a value is missing") if option else (command.removeprefix("periodic-jax "), said)
        raise UsageError(what, why, f"see {command} --help") from None
    sys.stderr.write(complaint.getvalue())  # a warning, as the values are accepted
    return parsed


def _in_a_line(complaint: str, command: str) -> str:
    r"""What tyro complains of in a frame of several lines, without its hint at the help.

    Example:
        >>> _in_a_line("╭─ Required ─────╮\n│ Missing from x y: │\n│     --to NAME │\n│ For full helptext │", "x y")
        'not given: --to NAME'
    """
    lines = [line.strip("│| ") for line in complaint.splitlines() if not re.search("[-─]{4}", line)]
    words = " ".join(lines).partition("For full helptext")[0].replace(" (required)", "").strip(" .")
    missing = words.partition(f"Missing from {command}: ")[2]  # behind a title, in a terminal without its characters
    return f"not given: {missing}" if missing else words


def refuse_unknown(words: Sequence[str], command: str, *kinds: type) -> None:
    """Refuse words that a command does not know.

    Args:
        words: what was left over.
        command: as it is typed.
        kinds: the data classes of the options that it has.

    Raises:
        UsageError: the first option among them, with the most similar ones, or else the first word.
    """
    typed = [word.partition("=")[0] for word in words if word.startswith("-")]
    if typed:
        similar = similar_names(typed[0], [flag for kind in kinds for flag in flags_of(kind)])
        remedy = f"did you mean {' or '.join(similar)}?" if similar else f"{command} --help lists the options"
        raise UsageError(typed[0], f"{command} has no such option", remedy)
    if words:
        raise UsageError(words[0], f"{command} does not know what to do with it", f"see {command} --help")


def flags_of(kind: type) -> list[str]:
    """The options of a data class, and of those within it.

    Example:
        >>> flags_of(DataFiles)
        ['--dataset', '--data-dir', '--model']
    """
    flags: list[str] = []
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            flags += flags_of(type(field.default))
        else:
            flags.append("--for" if field.name == "target" else flag_of(field.name))  # "for" is a word of Python
    return flags


def similar_names(typed: str, names: Sequence[str]) -> list[str]:
    """The names that someone may have meant: at most three, the most similar first.

    Example:
        >>> flags = ["--lr", "--weight-decay", "--width", "--batch-size"]
        >>> [similar_names(typed, flags) for typed in ("--wd", "--learning-rate", "--decay", "--batchsize", "--x")]
        [['--weight-decay'], ['--lr'], ['--weight-decay'], ['--batch-size'], []]
    """
    word = typed.strip("-").replace("_", "-").lower()
    bare = {name: name.strip("-") for name in names}
    initials = [name for name, text in bare.items() if word and word in (text, _initials(text))]
    initials += [name for name, text in bare.items() if _initials(word) == text]
    if initials:
        return initials[:3]
    parts = [name for name, text in bare.items() if min(len(word), len(text)) > 2 and (word in text or text in word)]
    close = difflib.get_close_matches(word, bare.values(), n=1)
    return parts if 0 < len(parts) < 4 else [name for name, text in bare.items() if text in close]


def _initials(text: str) -> str:
    parts = text.split("-")
    return "".join(part[:1] for part in parts) if len(parts) > 1 else ""
