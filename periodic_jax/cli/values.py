"""How the words of the command line become numbers, selections and a sweep's configuration."""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from periodic_jax.cli.options import Sweep
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import AXES, _accepted, _checked

if TYPE_CHECKING:
    from periodic_jax.runs.run import RunConfig


def parse_axis(name: str, words: Sequence[str]) -> tuple[float, ...]:
    """Numbers from the words of a command line: plain numbers, and ranges that expand in place.

    Args:
        name: the axis, e.g. ``weight_decay``; errors call it ``--weight-decay``.
        words: numbers, ``logspace:FIRST:LAST:COUNT`` or ``linspace:FIRST:LAST:COUNT`` (both ends included), or
            ``none`` for no weight decay.

    Returns:
        The values in the order given.

    Raises:
        ConfigError: a word that is none of these, or a value that the axis does not accept.

    Example:
        >>> parse_axis("lr", ["0.5", "logspace:1e-3:1e-1:3"])
        (0.5, 0.001, 0.01, 0.1)
    """
    wanted, _ = _accepted(name)
    values: list[float] = []
    for word in words:
        if word == "none" and name == "weight_decay":
            values.append(0.0)
            continue
        kind, _, rest = word.partition(":")
        ranged = kind in ("logspace", "linspace")
        numbers = _expand(name, word, kind, rest) if ranged else [_number(name, word, wanted)]
        if name == "weight_decay" and 0 in numbers:
            raise ConfigError("--weight-decay", word, "numbers above 0, or the word none for training without decay")
        try:
            values.extend(_checked(name, numbers))
        except ConfigError as error:
            raise ConfigError(error.argument, word, error.accepted) from None
    return tuple(_checked(name, values))


def _number(name: str, word: str, wanted: str) -> float:
    try:
        return float(word)
    except ValueError:
        accepted = f"{wanted}, or a range such as logspace:1e-3:1:7"
        raise ConfigError(flag_of(name), word or "an empty word", accepted) from None


def _expand(name: str, word: str, kind: str, rest: str) -> list[float]:
    parts = rest.split(":")
    wanted = f"{kind}:FIRST:LAST:COUNT with a COUNT from 2 to 10000" + (
        " and ends above 0" if kind == "logspace" else ""
    )
    try:
        first, last, count = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        raise ConfigError(flag_of(name), word, wanted) from None
    bad_ends = not (math.isfinite(first) and math.isfinite(last)) or (kind == "logspace" and min(first, last) <= 0)
    if len(parts) != 3 or not 2 <= count <= 10_000 or bad_ends:
        raise ConfigError(flag_of(name), word, wanted)
    with np.errstate(all="ignore"):
        inner = (np.geomspace if kind == "logspace" else np.linspace)(first, last, count)[1:-1]
    if not np.isfinite(inner).all():  # the ends are so far apart that their difference is infinite
        raise ConfigError(flag_of(name), word, wanted)
    # 15 digits: 1e-3 shall be 1e-3, and selectable as such.
    return [first, *(float(f"{v:.15g}") for v in inner), last]


USUAL_WINDOW = 100  # steps between candidates for a minimum
OPTIONAL = (
    "steps",
    "epochs",
    "eval_every",
    "validation",
    "split_classes",
    "use_data_size",
    "resize",
    "keep_every",
    "step",
    "track_sharpness",
)

SELECTABLE = tuple(name for name in AXES if name != "schedule_every")
# What options that are counts take, where that is not a whole number from 1.
WHOLE = {
    "split_classes": "0 or 1", "port": "a whole number from 0 to 65535", "images": "a whole number from 2, or all",
    **dict.fromkeys(("eigenvalues", "probes"), "a whole number from 0"),
}  # fmt: skip


def to_config(options: Sweep) -> "RunConfig":
    """Turn the words of the command line into numbers.

    Raises:
        ConfigError: a word that is not what its option takes.
    """
    from periodic_jax.runs.run import RUN_AXES, RunConfig

    axes: dict[str, Any] = {
        name: parse_axis(name, getattr(options, name)) for name in RUN_AXES if name != "weight_decay"
    }
    # Training at a fixed effective learning rate is studied without decay unless one is asked for.
    usual = ("none",) if min(axes["elr"]) > 0 else ("1e-3",)
    given = options.weight_decay
    axes["weight_decay"] = parse_axis("weight_decay", usual if given == Sweep.weight_decay else given)
    axes["seed"] = tuple(int(seed) for seed in axes["seed"])
    counts = (
        "width", "depth", "batch_size", "steps", "epochs", "eval_every", "validation", "split_classes",
        "use_data_size", "resize", "keep", "keep_every", "track_sharpness",
    )  # fmt: skip
    whole: dict[str, Any] = {name: whole_number(name, getattr(options, name)) for name in counts}
    return RunConfig(
        keep_period_minima=_window(options.keep_period_minima),
        out=options.out or free_folder("sweep"),
        **axes,
        **whole,
        init_scale=finite_number("init_scale", options.init_scale),
        corrupt_train=finite_number("corrupt_train", options.corrupt_train),
        checkpoint_seconds=finite_number("checkpoint_seconds", options.checkpoint_seconds),
        dataset=options.dataset,
        data_dir=options.data_dir or None,
        download=options.download,
        augment=options.augment,
        model=options.model,
        layout=options.layout,
        precision=options.precision,
        per_layer=options.per_layer,
        loss=options.loss,
        schedule=options.schedule,
        schedule_per=options.schedule_per,
        norm_per=options.norm_per,
        full_batch=options.full_batch,
    )


def _window(words: Sequence[str]) -> int | None:
    """Steps between candidates for a minimum: 100 where the option stands alone, None where it is off."""
    if tuple(words) == ("off",):
        return None
    if len(words) > 1:
        raise ConfigError("--keep-period-minima", " ".join(words), "one number of steps, or none")
    return whole_number("keep_period_minima", words[0]) if words else USUAL_WINDOW


def to_selection(words: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The coordinates that words such as ``lr=0.1,1`` name.

    Raises:
        ConfigError: a word that is none of these.

    Example:
        >>> to_selection(["lr=0.1,1", "seed=0"])
        {'lr': (0.1, 1.0), 'seed': (0.0,)}
    """
    selection: dict[str, tuple[float, ...]] = {}
    for word in words:
        name, separator, numbers = word.partition("=")
        name = name.strip("-").replace("-", "_")
        if name not in SELECTABLE:
            raise ConfigError("--select", word, f"AXIS=NUMBER with an axis among {', '.join(SELECTABLE)}")
        if not separator:
            raise ConfigError("--select", word, f"{name}=NUMBER, or {name}=NUMBER,NUMBER ...")
        if name in selection:
            raise ConfigError("--select", word, f"each axis once, as {name}=NUMBER,NUMBER ...")
        try:
            selection[name] = parse_axis(name, without_decay(name, numbers.split(",")))
        except ConfigError as error:
            raise ConfigError("--select", word, f"{name}= with {error.accepted}") from None
    return selection


def without_decay(name: str, words: Sequence[str]) -> list[str]:
    """A weight decay of 0 as the word for it, where it cannot be a slip."""
    return ["none" if name == "weight_decay" and word.strip("0.") == "" and word else word for word in words]


def whole_number(name: str, word: str) -> int | None:
    """A whole number, or None for an option that was not given."""
    if word == "" and name in OPTIONAL:
        return None
    try:
        return int(word)
    except ValueError:
        accepted = WHOLE.get(name, "a whole number from 1")
        raise ConfigError(flag_of(name), word or "an empty word", accepted) from None


def finite_number(name: str, word: str) -> float:
    """A finite number of either sign."""
    with contextlib.suppress(ValueError):
        value = float(word)
        if abs(value) < float("inf"):
            return value
    raise ConfigError(flag_of(name), word or "an empty word", "a finite number")


def free_folder(name: str) -> str:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    path, k = Path("runs") / name, 1
    while path.exists():
        k += 1
        path = Path("runs") / f"{name}-{k}"
    return os.fspath(path)
