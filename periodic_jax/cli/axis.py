"""What the command line reads by rules of its own: axes of the grid, selections of configurations, counts with a name.

Each reader is a tyro constructor. What one refuses is a `ConfigError` in one line, carried past tyro by `RefusedValue`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tyro.constructors import PrimitiveConstructorSpec

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import axis_rule, checked_axis
from periodic_jax.runs.config import RUN_AXES

RANGES: dict[str, Callable[..., np.ndarray]] = {"logspace": np.geomspace, "linspace": np.linspace}


class RefusedValue(Exception):
    """A value that an option does not accept. No `ValueError`: tyro would put a message of its own around it."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(error)
        self.error = error


class Axis(tuple[float, ...]):
    """The values of an axis that was given on the command line; a default is a plain tuple."""

    __slots__ = ()


def read_axis(name: str) -> PrimitiveConstructorSpec[Any]:
    """The constructor of an axis; see `parse_axis`."""

    def read(texts: list[str]) -> Axis:
        numbers = parse_axis(name, texts)
        return Axis(map(int, numbers) if name == "seed" else numbers)

    return _constructor("*", "X ...", read, lambda values: [f"{value:.15g}" for value in values])


def read_selection() -> PrimitiveConstructorSpec[Any]:
    """The constructor of a selection of configurations; see `parse_selection`."""
    return _constructor("*", "AXIS=X ...", parse_selection)


def read_columns() -> PrimitiveConstructorSpec[Any]:
    """The constructor of the columns of a csv file, by the names that they are to have."""

    def parse(texts: list[str]) -> dict[str, str]:
        pairs = dict[str, str]()
        for text in texts:
            name, equals, column = text.partition("=")
            if not (name and equals and column) or name in pairs:
                raise ConfigError("--columns", text, "NAME=COLUMN or NAME=NUMBER, each name once")
            pairs[name] = column
        return pairs

    return _constructor("*", "NAME=COLUMN ...", parse)


def read_count(
    name: str, least: float = -math.inf, most: float = math.inf, *, metavar: str = "N", or_all: bool = False
) -> PrimitiveConstructorSpec[Any]:
    """The constructor of a whole number, or of ``all``, which is None.

    Args:
        name: the option.
        least, most: its bounds, where nothing else checks them.
        metavar: how the help calls it.
        or_all: it accepts ``all``.
    """

    def convert(text: str) -> int | None:
        if or_all and text == "all":
            return None
        number = int(text)
        if not least <= number <= most:
            raise ValueError(text)
        return number

    bounds = "".join(f" {word} {end}" for word, end in (("from", least), ("to", most)) if math.isfinite(end))
    accepted = f"a whole number{bounds}" + (", or all" if or_all else "")
    return _of_one_value(flag_of(name), accepted, metavar + ("|all" if or_all else ""), convert)


def read_number(name: str, *, metavar: str = "X") -> PrimitiveConstructorSpec[Any]:
    """The constructor of a number, which the run checks."""
    return _of_one_value(flag_of(name), "a number", metavar, float)


def read_flag_or_count(name: str, usual: int) -> PrimitiveConstructorSpec[Any]:
    """The constructor of an option that takes one whole number, or none for the usual one.

    Args:
        name: the option.
        usual: its value where it stands alone.
    """

    def read(texts: list[str]) -> int:
        try:
            (number,) = map(int, texts or [usual])
        except ValueError:
            raise ConfigError(flag_of(name), " ".join(texts), "one whole number, or none") from None
        return number

    return _constructor("*", "[N]", read)


def read_path(name: str, kind: str = "folder", *, metavar: str = "DIR") -> PrimitiveConstructorSpec[Any]:
    """The constructor of a path, as typed.

    Args:
        name: the option.
        kind: what it names, for the error.
        metavar: how the help calls it.
    """
    return _of_one_value(flag_of(name), f"a {kind}", metavar, _not_empty)


def read_run() -> PrimitiveConstructorSpec[Any]:
    """The constructor of a run directory."""
    return _of_one_value("run directory", "the folder of a run", "DIR", lambda text: Path(_not_empty(text)))


def _not_empty(text: str) -> str:
    """Refuse an empty path: it comes from a variable that is not set, and would be the current folder."""
    if not text.strip():
        raise ValueError(text)
    return text


def _of_one_value(
    argument: str, accepted: str, metavar: str, convert: Callable[[str], Any]
) -> PrimitiveConstructorSpec[Any]:
    """The constructor of a single value; ``convert`` raises a `ValueError` for what is not accepted."""

    def read(texts: list[str]) -> Any:
        try:
            return convert(texts[0])
        except ValueError:
            raise ConfigError(argument, texts[0].strip() or "an empty value", accepted) from None

    return _constructor(1, metavar, read)


def _constructor(
    nargs: Any,
    metavar: str,
    read: Callable[[list[str]], Any],
    show: Callable[[Any], list[str]] = lambda value: ["all" if value is None else str(value)],
) -> PrimitiveConstructorSpec[Any]:
    def construct(texts: list[str]) -> Any:
        try:
            return read(texts)
        except ConfigError as error:
            raise RefusedValue(error) from None

    return PrimitiveConstructorSpec(nargs, metavar, construct, lambda value: True, show)


def parse_axis(name: str, texts: Sequence[str]) -> tuple[float, ...]:
    """Numbers from the values of an option: plain numbers, and ranges that expand in place.

    Args:
        name: the axis, e.g. ``weight_decay``; errors call it ``--weight-decay``.
        texts: numbers, ``logspace:FIRST:LAST:COUNT`` or ``linspace:FIRST:LAST:COUNT`` (both ends included), or
            ``none``, which is a weight decay of 0.

    Returns:
        The values in the order given.

    Raises:
        ConfigError: a value that is none of these, or a value that the axis does not accept.

    Example:
        >>> parse_axis("lr", ["0.5", "logspace:1e-3:1e-1:3"])
        (0.5, 0.001, 0.01, 0.1)
    """
    return tuple(checked_axis(name, [number for text in texts for number in _numbers(name, text)]))


def _numbers(name: str, text: str) -> list[float]:
    """The numbers that one value of an option stands for."""
    wanted, _ = axis_rule(name)
    if name == "weight_decay" and text == "none":
        return [0.0]
    if text.split(":")[0] in RANGES:
        numbers = _expand(name, text)
    else:
        try:
            numbers = [float(text)]
        except ValueError:
            accepted = f"{wanted}, or a range such as logspace:1e-3:1:7"
            raise ConfigError(flag_of(name), text or "an empty value", accepted) from None
    try:
        return checked_axis(name, numbers)
    except ConfigError as error:
        raise ConfigError(error.argument, text, error.accepted) from None


def _expand(name: str, text: str) -> list[float]:
    kind, *parts = text.split(":")
    try:
        first, last, count = (read(part) for read, part in zip((float, float, int), parts, strict=True))
        if not 2 <= count <= 10_000 or (kind == "logspace" and min(first, last) <= 0):
            raise ValueError(text)
        with np.errstate(all="ignore"):
            inner = RANGES[kind](first, last, count)[1:-1]
        if not np.isfinite([first, *inner, last]).all():  # the difference of two finite ends can be infinite
            raise ValueError(text)
    except ValueError:
        ends = " and ends above 0" if kind == "logspace" else ""
        wanted = f"{kind}:FIRST:LAST:COUNT with a COUNT from 2 to 10000{ends}"
        raise ConfigError(flag_of(name), text, wanted) from None
    # 15 digits: 1e-3 shall be 1e-3, and selectable as such.
    return [first, *(float(f"{v:.15g}") for v in inner), last]


def parse_selection(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The coordinates that texts such as ``lr=0.1,1`` name.

    Raises:
        ConfigError: a text that is none of these.

    Example:
        >>> parse_selection(["lr=0.1,1", "seed=0"])
        {'lr': (0.1, 1.0), 'seed': (0.0,)}
    """
    selection: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, separator, numbers = text.partition("=")
        name = name.strip("-").replace("-", "_")
        if name not in RUN_AXES:
            raise ConfigError("--select", text, f"AXIS=NUMBER with an axis among {', '.join(RUN_AXES)}")
        if not separator:
            raise ConfigError("--select", text, f"{name}=NUMBER, or {name}=NUMBER,NUMBER ...")
        if name in selection:
            raise ConfigError("--select", text, f"each axis once, as {name}=NUMBER,NUMBER ...")
        try:
            selection[name] = parse_axis(name, numbers.split(","))
        except ConfigError as error:
            raise ConfigError("--select", text, f"{name}= with {error.accepted}") from None
    return selection
