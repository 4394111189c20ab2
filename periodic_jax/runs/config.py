"""The configuration of a run: what determines it, and whether it can run."""

import dataclasses
import functools
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import RUN_AXES, SweepGrid
from periodic_jax.core.limits import MOST_EVALUATIONS, MOST_STEPS
from periodic_jax.core.optimizers import check_hyperparameters
from periodic_jax.core.points import as_points
from periodic_jax.runs import settings
from periodic_jax.storage.run_directory import check_encoding
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.data import Dataset


# What a network of one's own has arguments of its own for.
BUILT_IN = ("width", "depth", "init_scale", "storage")
COUNTS = ("steps", "epochs", "eval_every", "track_sharpness", "track_eigenvalue", "keep", "keep_every")
BOUNDS = {**dict.fromkeys(COUNTS, (1, MOST_STEPS)), "keep_period_minima": (10, 10**4)}
CHOICES = {
    "precision": xla.PRECISIONS,
    "storage": ("float32", "bf16"),
    "schedule_per": ("step", "epoch"),
    "norm_per": ("total", "filter"),
    "sampling": ("epochs", "iid"),
}


@dataclass(frozen=True)
class RunConfig(
    settings.ShardSettings,
    settings.CheckpointSettings,
    settings.RecordingSettings,
    settings.TrainingSettings,
    settings.NetworkSettings,
    settings.DataSettings,
    settings.GridAxes,
    settings.OutputSettings,
):
    """Everything that determines a run: all settings of `runs.settings`, as ``periodic-jax sweep --help`` lists them.

    The axes of the grid are numbers, or sequences, arrays or ranges of them, all combinations of which are trained.
    They are kept as tuples. With ``points`` some are the columns of a table instead. Without ``out``, `run_sweep` takes
    the folder of this very run under runs/, or a new one.

    Raises:
        ConfigError: a value of another type.

    Example:
        >>> RunConfig(lr=[0.1, 1.0], weight_decay=1e-3, seed=range(2), steps=100).grid().swept
        ('lr', 'seed')
    """

    def __post_init__(self) -> None:
        if not isinstance(self.points, tuple | list):
            points = as_points(self.points)
            for name, values in points.items():
                if settings.as_axis(name, getattr(self, name)) != self.__dataclass_fields__[name].default:
                    raise UsageError(flag_of(name), "given together with a column of --points", "give one of the two")
                object.__setattr__(self, name, values)
            object.__setattr__(self, "points", tuple(points))
        for name, hint in typing.get_type_hints(RunConfig).items():
            if name in RUN_AXES:
                object.__setattr__(self, name, settings.as_axis(name, getattr(self, name)))
            elif name in self.__dataclass_fields__:
                object.__setattr__(self, name, settings.as_setting(name, getattr(self, name), hint))
        object.__setattr__(self, "eval_at", tuple(sorted(set(self.eval_at))))

    @property
    def folder(self) -> Path:
        """The run directory.

        Raises:
            ConfigError: none was given.
        """
        if self.out is None:
            raise UsageError("--out", "not given", "give the run directory")
        return Path(self.out)

    @functools.cached_property
    def data(self) -> "Dataset":
        """The data set with its variations, read on first use.

        Raises:
            ConfigError: it is not found, corrupted, or cannot be varied so.
        """
        from periodic_jax import data

        fields = dataclasses.fields(data.Variations)
        variations = data.Variations(**{field.name: getattr(self, field.name) for field in fields})
        data.check_variations(variations)
        return data.vary(data.load(self.dataset, data_dir=self.data_dir, download=self.download), variations)

    def grid(self) -> SweepGrid:
        """The configurations: all combinations of the axes, or the points; or those of the shard.

        Raises:
            ConfigError: a value that an axis does not accept, or no such shard.
        """
        whole = self.whole_grid()
        if self.shard is not None:
            return whole.shard(self.shard, self.shards or 1)
        return whole

    def size(self) -> int:
        """The number of configurations; reads no data set.

        Example:
            >>> RunConfig(out="runs/x", lr=(0.1, 0.3, 1.0), shards=2, shard=0).size()
            2
        """
        sizes = [len(getattr(self, name)) for name in RUN_AXES]
        whole = max(sizes) if self.points else math.prod(sizes)
        if self.shards is None or self.shard is None:
            return whole
        return whole // self.shards + (self.shard < whole % self.shards)

    def whole_grid(self) -> SweepGrid:
        """All combinations of the axes, or the points.

        Raises:
            ConfigError: a value that an axis does not accept.
        """
        axes = {name: getattr(self, name) for name in RUN_AXES}
        axes["schedule_end"] = tuple(end or planned_steps(self) for end in self.schedule_end)
        axes["schedule_every"] = (steps_of_epoch(self) if self.schedule_per == "epoch" else 1,)
        return SweepGrid.declared(axes, self.points)


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run; computes nothing, writes nothing.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    if config.out is not None:
        check_encoding("--out", config.out)
    for name, (least, most) in BOUNDS.items():
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            raise ConfigError(flag_of(name), value, f"a whole number from {least} to {most}")
    if (config.steps is None) == (config.epochs is None):
        if config.steps is None:
            raise UsageError("--steps", "not given, and no --epochs either", "give one of the two")
        raise UsageError("--steps", "given together with --epochs", "give one of the two")
    for name, accepted in CHOICES.items():
        if getattr(config, name) not in accepted:
            raise ConfigError(flag_of(name), getattr(config, name), "one of " + ", ".join(accepted))
    check_hyperparameters(config.optimizer, {name: getattr(config, name) for name in RUN_AXES})
    if not math.isfinite(config.init_scale):
        raise ConfigError("--init-scale", config.init_scale, "a finite number")
    if not 0 <= config.checkpoint_seconds < math.inf:
        raise ConfigError("--checkpoint-seconds", config.checkpoint_seconds, "a finite number from 0")
    if config.batch_size < 2:
        raise ConfigError("--batch-size", config.batch_size, "a whole number from 2")
    if config.sampling == "iid" and config.full_batch:
        raise UsageError("--sampling", "iid is given together with --full-batch", "give one of the two")
    if config.augment and config.full_batch:
        raise UsageError("--augment", "given together with --full-batch", "give one of the two")

    from periodic_jax import models
    from periodic_jax.checkpoints import reader
    from periodic_jax.sweeps.sweep import check_batch_size
    from periodic_jax.training import losses, schedules
    from periodic_jax.training.vectorize import check_layout

    reader.orbax()
    check_layout(config.layout)
    schedules.check_schedule(config.schedule)
    losses.check_loss(config.loss)
    model = _network(config)
    if hasattr(model, "labels"):
        check_sphere(config, models.has_scale_invariant(model))
    # From here on data are read, and downloaded if that was asked for.
    config.grid()
    if (steps := planned_steps(config)) > MOST_STEPS:
        raise ConfigError("--epochs", config.epochs, f"at most {MOST_STEPS} steps, not {steps}")
    if (config.track_eigenvalue or 0) > steps:
        raise ConfigError("--track-eigenvalue", config.track_eigenvalue, f"at most {steps}, the steps of the run")
    _check_evaluations(config, steps)
    if (every := evaluated_every(config)) and steps > MOST_EVALUATIONS * every:
        raise ConfigError("--eval-every", every, f"at least {-(-steps // MOST_EVALUATIONS)} for {steps} steps")
    check_batch_size(config.batch_size, config.data)
    if hasattr(model, "check_input"):
        model.check_input(*config.data.image_shape[:2])


def check_sphere(config: RunConfig, has_scale_invariant: bool) -> None:
    """Refuse to record curvature on the unit sphere of a network that has no weights on one."""
    for name in ("track_sharpness", "track_eigenvalue"):
        if getattr(config, name) and not has_scale_invariant:
            raise UsageError(flag_of(name), f"{config.model} has no scale-invariant weights", "leave it out")


def _check_evaluations(config: RunConfig, steps: int) -> None:
    """Refuse updates after which nothing can be evaluated."""
    if config.eval_at and config.eval_every:
        raise UsageError("--eval-at", "given together with --eval-every", "give one of the two")
    if len(config.eval_at) > MOST_EVALUATIONS:
        raise ConfigError("--eval-at", f"{len(config.eval_at)} evaluations", f"at most {MOST_EVALUATIONS}")
    for step in config.eval_at[:1] + config.eval_at[-1:]:
        if not 0 <= step <= steps:
            raise ConfigError("--eval-at", step, f"updates from 0 to {steps}, the end of the run")


def _network(config: RunConfig) -> Any:
    """The network, for a look at it."""
    from periodic_jax import models
    from periodic_jax.models import imported

    if not imported.is_import_path(config.model):
        if config.model_args:
            raise UsageError("--model-args", f"{config.model} takes none", "leave it out, or give --model MODULE:NAME")
        return models.build(config.model, width=config.width, depth=config.depth, platform="cpu")  # JAX need not start
    model = imported.import_model(config.model, config.model_args)
    for field in dataclasses.fields(config):
        if field.name in BUILT_IN and getattr(config, field.name) != field.default:
            remedy = "give what it takes with --model-args"
            raise UsageError(flag_of(field.name), f"{config.model} is not one of the built-in networks", remedy)
    return model


def planned_steps(config: RunConfig) -> int:
    """Updates that a run makes."""
    return config.steps if config.steps is not None else (config.epochs or 0) * steps_of_epoch(config)


def steps_of_epoch(config: RunConfig) -> int:
    """Updates of one epoch: all whole mini-batches of the training set, or one for full-batch gradient descent."""
    from periodic_jax import data

    if config.full_batch:
        return 1
    return max(data.steps_per_epoch(len(config.data.images), config.batch_size), 1)


def evaluated_every(config: RunConfig) -> int | None:
    """Updates between evaluations; None where they come at given updates.

    If not given, a hundredth of the run, but at least as many as an evaluation has mini-batches: forward only, it takes
    a third of the time of so many updates, and so all evaluations take at most a quarter of the run's.
    """
    if config.eval_every or config.eval_at:
        return config.eval_every
    images = len(config.data.images) + len(config.data.test_images)
    in_a_step = len(config.data.images) if config.full_batch else config.batch_size
    return max(planned_steps(config) // 100, -(-images // in_a_step))
