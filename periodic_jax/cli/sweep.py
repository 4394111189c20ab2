"""``periodic-jax sweep``: its options, made from the settings of a run, and back to a `RunConfig`."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.conf import OmitArgPrefixes

import periodic_jax as pj
from periodic_jax.cli.axis import Axis, read_axis, read_count, read_flag_or_count, read_number, read_path, read_steps
from periodic_jax.cli.launch import log_line, print_results, train_and_report, train_with_progress
from periodic_jax.cli.options import IF_GIVEN, arg
from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import RUN_AXES
from periodic_jax.core.points import Points, SobolRange, as_points, sobol_points
from periodic_jax.runs import settings
from periodic_jax.runs.config import RunConfig
from periodic_jax.runs.settings import setting
from periodic_jax.runs.shards import no_folder_of_shards
from periodic_jax.storage.run_directory import free_folder
from periodic_jax.training import xla

USUAL_WINDOW = 100  # steps between candidates for a minimum

# The headings of `periodic-jax sweep --help`, most used first.
THEMES: dict[str, type] = {
    "grid": settings.GridAxes,
    "data": settings.DataSettings,
    "network": settings.NetworkSettings,
    "training": settings.TrainingSettings,
    "output": settings.OutputSettings,
    "recording": settings.RecordingSettings,
    "checkpoints": settings.CheckpointSettings,
    "many_machines": settings.ShardSettings,
}


def _annotated(field: dataclasses.Field[Any], hint: Any) -> Any:
    """The type of a setting as the command line reads it."""
    if field.metadata["is_axis"]:
        return Annotated[tuple[float, ...], read_axis(field.name, may_be_drawn=True)]
    if field.name == "points":
        return Annotated[Any, read_path(field.name, "csv file", metavar="FILE"), IF_GIVEN]
    if field.name == "keep_period_minima":
        return Annotated[hint, read_flag_or_count(field.name, USUAL_WINDOW), IF_GIVEN]
    if hint is bool:
        return Annotated[bool, IF_GIVEN]
    if hint == tuple[int, ...]:
        return Annotated[hint, read_steps(field.name), IF_GIVEN]
    if hint == tuple[str, ...]:
        return Annotated[hint, arg(field.metadata["metavar"]), IF_GIVEN]
    metavar, marks = field.metadata["metavar"], [] if field.default is not None else [IF_GIVEN]
    if hint in (int, int | None):
        return Annotated[hint, read_count(field.name, metavar=metavar or "N"), *marks]
    if hint is float:
        return Annotated[hint, read_number(field.name)]
    if hint is str:
        return Annotated[hint, arg(metavar or "NAME")]
    return Annotated[str | None, read_path(field.name, metavar=metavar), IF_GIVEN]


def _options_of(theme: type) -> type:
    """A theme of settings as options, with its name as their heading."""
    hints, fields = get_type_hints(theme), []
    for field in dataclasses.fields(theme):
        option = dataclasses.field(default=field.default, metadata=field.metadata)
        fields.append((field.name, _annotated(field, hints[field.name]), option))
    return dataclasses.make_dataclass(theme.__name__, fields, namespace={"__doc__": ""}, frozen=True)


GROUPS = {name: _options_of(theme) for name, theme in THEMES.items()}
SweepSettings: Any = dataclasses.make_dataclass(
    "SweepSettings",
    [(name, OmitArgPrefixes[group], dataclasses.field(default=group())) for name, group in GROUPS.items()],
    frozen=True,
)


@dataclass(frozen=True)
class Sweep(SweepSettings):
    """Train a grid of hyperparameters side by side and record every step.

    Every option with X ... is an axis of the grid and takes one or more numbers, or ranges: logspace:1e-3:1:7,
    linspace:0:0.9:4. The sweep trains all combinations. Axes given as sobol:1e-3:1:32:log are drawn together
    instead, as the 32 points of one Sobol sequence, and the other axes have one value.
    """

    dry_run: Annotated[bool, IF_GIVEN] = setting(
        False,
        "Only print what the sweep, or one of its shards, would take: memory, disk, time, and how many shards to use.",
    )
    points_seed: Annotated[int | None, read_count("points_seed", 0), IF_GIVEN] = setting(
        None, "Seed of the axes given as sobol:FIRST:LAST:COUNT; 0, if not given."
    )
    shard_hours: Annotated[float | None, read_number("shard_hours", metavar="HOURS"), IF_GIVEN] = setting(
        None, "With --dry-run: the most hours that a shard may take; 24, if not given."
    )
    shard_memory: Annotated[float | None, read_number("shard_memory", metavar="GB"), IF_GIVEN] = setting(
        None, "With --dry-run: memory of a device in GB, for the number of shards; that of this machine, if not given."
    )
    target: Annotated[str | None, tyro.conf.arg(name="for", metavar="DEVICE"), IF_GIVEN] = setting(
        None,
        "With --dry-run: plan for a device that is not in this machine: h100, h200, a100, v5e, v6e. Takes minutes.",
    )

    def execute(self) -> None:
        """Train and print the results, or print the plan."""
        config = to_config(self)
        if self.dry_run:
            print_plan(config, self.target, self.shard_hours, self.shard_memory)
        elif config.shards is None:
            train_and_report(pj.run_sweep, config)
        elif (run := train_with_progress(pj.run_sweep, config)).is_new:
            print_results(run)
            print(f"figures of all shards: periodic-jax plot {config.out}")


def to_config(sweep: Any) -> RunConfig:
    """The configuration that the options of a sweep give."""
    values: dict[str, Any] = {name: value for group in GROUPS for name, value in vars(getattr(sweep, group)).items()}
    points: Points = _draw_points(values, sweep.points_seed)
    if values["points"]:
        points = as_points(values["points"])
    for name in points:
        if isinstance(values[name], Axis):
            raise UsageError(flag_of(name), "given together with a column of --points", "give one of the two")
    # Training at a fixed effective learning rate is studied without decay unless one is asked for.
    has_decay, elr = isinstance(values["weight_decay"], Axis) or "weight_decay" in points, points.get("elr")
    if not has_decay and min(elr or values["elr"]) > 0:
        values["weight_decay"] = (0.0,)
    values |= {name: tuple(values[name]) for name in RUN_AXES} | {"points": points or ()}
    if values["shards"] is not None and values["out"] is None and not sweep.dry_run:
        raise no_folder_of_shards()
    if sweep.target is not None and not sweep.dry_run:
        raise UsageError("--for", "given without --dry-run", "give both: nothing can be trained on a device elsewhere")
    for name in ("shard_hours", "shard_memory"):
        limit = getattr(sweep, name)
        if limit is not None and not sweep.dry_run:
            raise UsageError(flag_of(name), "given without --dry-run", "give both: it only counts shards")
        if limit is not None and not 0 < limit < math.inf:
            raise ConfigError(flag_of(name), limit, "a number above 0")
    values["out"] = values["out"] or free_folder("sweep")
    return RunConfig(**values)


def _draw_points(values: dict[str, Any], seed: int | None) -> Points:
    """The points of the axes that are drawn, which then have their defaults; none where there are none."""
    drawn = {name: values[name] for name in RUN_AXES if isinstance(values[name], SobolRange)}
    if not drawn:
        if seed is not None:
            raise UsageError("--points-seed", "no axis is drawn", "give it with an axis such as sobol:1e-3:1:32:log")
        return {}
    if values["points"]:
        raise UsageError(
            "--points", f"given together with {flag_of(next(iter(drawn)))} sobol:...", "give one of the two"
        )
    values |= {name: getattr(settings.GridAxes, name) for name in drawn}
    return sobol_points(drawn, seed or 0)


def print_plan(
    config: RunConfig, device: str | None = None, hours: float | None = None, gigabytes: float | None = None
) -> None:
    """Print what a sweep would take; writes nothing.

    Args:
        config: what to run.
        device: one of `sweeps.targets.TARGETS` that is not here; this machine's, if None.
        hours: that a shard may take; a day, if None.
        gigabytes: of a device's memory; those of the device, if None.
    """
    from periodic_jax.runs import planning
    from periodic_jax.runs.config import check
    from periodic_jax.runs.shards import fitting_part, with_shard
    from periodic_jax.sweeps import compilation, targets

    target = None if device is None else targets.find_target(device)
    if target:
        target.check_precision(config.precision)
        compilation.prepare_jax(target)
    config, note = fitting_part(config)
    config = with_shard(config if config.shards is None else dataclasses.replace(config, shard=config.shard or 0))
    if config.shards is not None:
        note = f"of shard {config.shard} of {config.shards}:"
    check(config)
    if target:
        compilation.check_installed(target)
    if note:
        print(note)
    if target:
        plan, memory = planning.plan_for(config, target), target.memory
    else:
        xla.use_cores_as_devices()
        xla.keep_compiled_programs()
        log_line("compiling, to measure the time of a step")
        plan, memory = planning.plan(config), planning.device_memory()
    limits = planning.ShardLimits(hours or planning.USUAL_LIMITS.hours, int(1e9 * gigabytes) if gigabytes else memory)
    print(*planning.describe_plan(plan, config, limits), sep="\n")
