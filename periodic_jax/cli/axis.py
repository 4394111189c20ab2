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
from periodic_jax.core.grid import AXES, axis_rule, checked_axis

SELECTABLE = tuple(name for name in AXES if name != "schedule_every")


class RefusedValue(Exception):
    """A value that an option does not accept. No `ValueError`: tyro would put a message of its own around it."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(error)
        self.error = error


class Axis(tuple[float, ...]):
    """The values of an axis that was given on the command line; a default is a plain tuple."""

    __slots__ = ()


def read_axis(name: str, *, allows_zero_decay: bool = False) -> PrimitiveConstructorSpec[Any]:
    """The constructor of an axis; see `parse_axis`."""

    def read(texts: list[str]) -> Axis:
        if allows_zero_decay:
            texts = _zero_decay_by_name(name, texts)
        numbers = parse_axis(name, texts)
        return Axis(map(int, numbers) if name == "seed" else numbers)

    return _constructor("*", "NUMBER ...", read, lambda values: [f"{value:.15g}" for value in values])


def read_selection() -> PrimitiveConstructorSpec[Any]:
    """The constructor of a selection of configurations; see `parse_selection`."""
    return _constructor("*", "AXIS=NUMBER ...", parse_selection, lambda selection: [])


def read_count(
    name: str, accepted: str = "a whole number", *, metavar: str = "COUNT", or_all: bool = False
) -> PrimitiveConstructorSpec[Any]:
    """The constructor of a whole number, or of ``all``, which is None.

    Args:
        name: the option.
        accepted: what it accepts, for the error.
        metavar: how the help calls it.
        or_all: it accepts ``all``.
    """

    def read(texts: list[str]) -> int | None:
        if or_all and texts[0] == "all":
            return None
        try:
            return int(texts[0])
        except ValueError:
            raise ConfigError(flag_of(name), texts[0] or "an empty value", accepted) from None

    metavar += "|all" if or_all else ""
    return _constructor(1, metavar, read, lambda value: ["all"] if or_all and value is None else [str(value)])


def read_flag_or_count(name: str, usual: int) -> PrimitiveConstructorSpec[Any]:
    """The constructor of an option that takes one whole number, or none for the usual one.

    Args:
        name: the option.
        usual: its value where it stands alone.
    """

    def read(texts: list[str]) -> int:
        if len(texts) > 1:
            raise ConfigError(flag_of(name), " ".join(texts), "one whole number, or none")
        try:
            return int(texts[0]) if texts else usual
        except ValueError:
            raise ConfigError(flag_of(name), texts[0], "one whole number, or none") from None

    return _constructor("*", "[COUNT]", read, lambda value: [] if value is None else [str(value)])


def read_path(name: str, kind: str = "folder", *, metavar: str = "DIR") -> PrimitiveConstructorSpec[Any]:
    """The constructor of a path, as typed. An empty one is refused: it comes from a variable that is not set.

    Args:
        name: the option.
        kind: what it names, for the error.
        metavar: how the help calls it.
    """

    def read(texts: list[str]) -> str:
        if not texts[0].strip():
            raise ConfigError(flag_of(name), "an empty value", f"a {kind}")
        return texts[0]

    return _constructor(1, metavar, read, lambda value: [str(value)])


def read_run() -> PrimitiveConstructorSpec[Any]:
    """The constructor of a run directory. An empty one is refused: it would be the current folder."""

    def read(texts: list[str]) -> Path:
        if not texts[0].strip():
            raise ConfigError("run directory", "an empty value", "the folder of a run")
        return Path(texts[0])

    return _constructor(1, "DIR", read, lambda path: [str(path)])


def _constructor(
    nargs: Any, metavar: str, read: Callable[[list[str]], Any], show: Callable[[Any], list[str]]
) -> PrimitiveConstructorSpec[Any]:
    def construct(texts: list[str]) -> Any:
        try:
            return read(texts)
        except ConfigError as error:
            raise RefusedValue(error) from None

    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=construct,
        is_instance=lambda value: True,
        str_from_instance=show,
    )


def parse_axis(name: str, texts: Sequence[str]) -> tuple[float, ...]:
    """Numbers from the values of an option: plain numbers, and ranges that expand in place.

    Args:
        name: the axis, e.g. ``weight_decay``; errors call it ``--weight-decay``.
        texts: numbers, ``logspace:FIRST:LAST:COUNT`` or ``linspace:FIRST:LAST:COUNT`` (both ends included), or
            ``none`` for no weight decay.

    Returns:
        The values in the order given.

    Raises:
        ConfigError: a value that is none of these, or a value that the axis does not accept.

    Example:
        >>> parse_axis("lr", ["0.5", "logspace:1e-3:1e-1:3"])
        (0.5, 0.001, 0.01, 0.1)
    """
    wanted, _ = axis_rule(name)
    values: list[float] = []
    for text in texts:
        if text == "none" and name == "weight_decay":
            values.append(0.0)
            continue
        kind, _, rest = text.partition(":")
        ranged = kind in ("logspace", "linspace")
        numbers = _expand(name, text, kind, rest) if ranged else [_number(name, text, wanted)]
        if name == "weight_decay" and 0 in numbers:
            raise ConfigError("--weight-decay", text, "numbers above 0, or none for training without decay")
        try:
            values.extend(checked_axis(name, numbers))
        except ConfigError as error:
            raise ConfigError(error.argument, text, error.accepted) from None
    return tuple(checked_axis(name, values))


def _number(name: str, text: str, wanted: str) -> float:
    try:
        return float(text)
    except ValueError:
        accepted = f"{wanted}, or a range such as logspace:1e-3:1:7"
        raise ConfigError(flag_of(name), text or "an empty value", accepted) from None


def _expand(name: str, text: str, kind: str, rest: str) -> list[float]:
    parts = rest.split(":")
    wanted = f"{kind}:FIRST:LAST:COUNT with a COUNT from 2 to 10000" + (
        " and ends above 0" if kind == "logspace" else ""
    )
    try:
        first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        raise ConfigError(flag_of(name), text, wanted) from None
    bad_ends = not (math.isfinite(first) and math.isfinite(last)) or (kind == "logspace" and min(first, last) <= 0)
    if len(parts) != 3 or not 2 <= count <= 10_000 or bad_ends:
        raise ConfigError(flag_of(name), text, wanted)
    with np.errstate(all="ignore"):
        inner = (np.geomspace if kind == "logspace" else np.linspace)(first, last, count)[1:-1]
    if not np.isfinite(inner).all():  # the ends are so far apart that their difference is infinite
        raise ConfigError(flag_of(name), text, wanted)
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
        if name not in SELECTABLE:
            raise ConfigError("--select", text, f"AXIS=NUMBER with an axis among {', '.join(SELECTABLE)}")
        if not separator:
            raise ConfigError("--select", text, f"{name}=NUMBER, or {name}=NUMBER,NUMBER ...")
        if name in selection:
            raise ConfigError("--select", text, f"each axis once, as {name}=NUMBER,NUMBER ...")
        try:
            selection[name] = parse_axis(name, _zero_decay_by_name(name, numbers.split(",")))
        except ConfigError as error:
            raise ConfigError("--select", text, f"{name}= with {error.accepted}") from None
    return selection


def _zero_decay_by_name(name: str, texts: Sequence[str]) -> list[str]:
    """A weight decay of 0 by its name, where it cannot be a slip."""
    return ["none" if name == "weight_decay" and text.strip("0.") == "" and text else text for text in texts]
