"""How the words of the command line become numbers, selections and a sweep's configuration."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax.errors import ConfigError
from periodic_jax.grid import AXES, flag_of, parse_axis
from periodic_jax.options import Sweep

if TYPE_CHECKING:
    from periodic_jax.run import RunConfig

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
    from periodic_jax.run import RUN_AXES, RunConfig

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
