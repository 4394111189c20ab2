"""The options of ``periodic-jax sweep``, made from the settings of a run, and back to a `RunConfig`."""

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes

from periodic_jax.cli.axis import Axis, read_axis, read_count, read_flag_or_count, read_path
from periodic_jax.runs import settings
from periodic_jax.runs.config import RUN_AXES, RunConfig

USUAL_WINDOW = 100  # steps between candidates for a minimum
METAVARS = {float: "NUMBER", str: "NAME"}
IF_GIVEN = tyro.conf.arg(help_behavior_hint="(optional)")  # in the place of a default of None

# The headings of `periodic-jax sweep --help`, most used first.
THEMES: dict[str, type] = {
    "grid": settings.GridAxes,
    "data": settings.DataSettings,
    "network": settings.NetworkSettings,
    "training": settings.TrainingSettings,
    "recording": settings.RecordingSettings,
    "checkpoints": settings.CheckpointSettings,
    "machines": settings.ShardSettings,
    "output": settings.OutputSettings,
}


def option(default: Any, text: str) -> Any:
    """A field of a command with its help."""
    return dataclasses.field(default=default, metadata={"help": " ".join(text.split())})


def _annotated(field: dataclasses.Field[Any], hint: Any) -> Any:
    """The type of a setting as the command line reads it."""
    if field.metadata["is_axis"]:
        return Annotated[tuple[float, ...], read_axis(field.name)]
    if field.name == "keep_period_minima":
        return Annotated[hint, read_flag_or_count(field.name, USUAL_WINDOW), IF_GIVEN]
    if hint is bool:
        return hint
    metavar, marks = field.metadata["metavar"], [] if field.default is not None else [IF_GIVEN]
    if hint in (int, int | None):
        return Annotated[hint, read_count(field.name, metavar=metavar or "COUNT"), *marks]
    if hint in (int, float, str):
        return Annotated[hint, tyro.conf.arg(metavar=metavar or METAVARS[hint])]
    return Annotated[str | None, read_path(field.name, metavar=metavar), IF_GIVEN]


def _options_of(theme: type) -> type:
    """A theme of settings as options."""
    hints = get_type_hints(theme)
    fields = [
        (
            field.name,
            _annotated(field, hints[field.name]),
            dataclasses.field(
                default=None if field.default is dataclasses.MISSING else field.default, metadata=field.metadata
            ),
        )
        for field in dataclasses.fields(theme)
    ]
    return dataclasses.make_dataclass(theme.__name__, fields, namespace={"__doc__": theme.__doc__}, frozen=True)


GROUPS = {name: _options_of(theme) for name, theme in THEMES.items()}
Sweep: Any = dataclasses.make_dataclass(
    "Sweep",
    [
        *((name, OmitArgPrefixes[group], dataclasses.field(default=group())) for name, group in GROUPS.items()),
        (
            "dry_run",
            bool,
            option(
                False,
                """Only print what the sweep would take: configurations of each device, memory, disk, time, and how to
                split it. Nothing is written.""",
            ),
        ),
    ],
    namespace={
        "__doc__": """Train a grid of hyperparameters side by side and record every step.

        Every option with NUMBER ... is an axis of the grid and takes one or more numbers, or ranges: logspace:1e-3:1:7,
        linspace:0:0.9:4. All combinations are trained.
        """
    },
    frozen=True,
)


def to_config(sweep: Any) -> RunConfig:
    """The configuration that the options of a sweep give."""
    values = {
        field.name: getattr(getattr(sweep, group), field.name)
        for group, theme in THEMES.items()
        for field in dataclasses.fields(theme)
    }
    # Training at a fixed effective learning rate is studied without decay unless one is asked for.
    if not isinstance(values["weight_decay"], Axis) and min(values["elr"]) > 0:
        values["weight_decay"] = (0.0,)
    values |= {name: tuple(values[name]) for name in RUN_AXES}
    values["out"] = values["out"] or free_folder("sweep")
    return RunConfig(**values)


def free_folder(name: str) -> str:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    path, k = Path("runs") / name, 1
    while path.exists():
        k += 1
        path = Path("runs") / f"{name}-{k}"
    return os.fspath(path)
