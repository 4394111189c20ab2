"""From a configuration to a run directory: data, network, grid, sweep, telemetry, summary."""

import dataclasses
import functools
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from periodic_jax import analysis, results, runtime, tables
from periodic_jax._version import __version__
from periodic_jax.errors import ConfigError
from periodic_jax.grid import AXES, SweepGrid
from periodic_jax.results import TelemetryWriter, open_run

if TYPE_CHECKING:
    from periodic_jax.data import Dataset
    from periodic_jax.sweep import Chunk, Sweep


MOST_STEPS = 10**9  # more than any run could make, and what the step's coordinate can hold
RUN_AXES = tuple(name for name in AXES if name != "schedule_every")


@dataclass(frozen=True)
class RunConfig:
    """Everything that determines a run.

    Attributes:
        out: the run directory; must hold no run yet.
        lr, weight_decay, momentum, noninvariant_lr, elr, fixed_norm, schedule_end, schedule_factor, seed: the axes of
            the grid, all combinations of their values. A ``schedule_end`` of 0 is the end of the run.
        dataset: a key of `data.DATASETS`, or the path of an npz file.
        data_dir: where its files are, before the usual folders; see `data.load`.
        download: let TFDS download what is found nowhere.
        augment: random crops and flips of the mini-batches.
        validation, split_classes, use_data_size, corrupt_train, resize: see `data.Variations`.
        model: a key of `models.MODELS`.
        width, depth, init_scale: of the network.
        batch_size: images in a mini-batch.
        steps: updates; or None, and ``epochs`` counts passes over the training set.
        epochs: see ``steps``.
        eval_every: updates between evaluations; None: a hundredth of the run.
        layout: see `layouts`.
        precision: ``float32``, ``tf32``, ``bf16`` or ``float64``.
        per_layer: record the dynamics of every layer too.
        loss: a key of `train.LOSSES`.
        schedule: a key of `schedules.SCHEDULES`.
        schedule_per: ``step`` or ``epoch``: how often the schedule changes the rate.
        norm_per: ``total`` or ``filter``: whether ``fixed_norm`` holds all scale-invariant weights together, or each
            output filter.
        full_batch: full-batch gradient descent: a step is an epoch.

    Example:
        >>> RunConfig(out="runs/x", lr=(0.1, 1.0), steps=100).grid().swept
        ('lr',)
    """

    out: str | Path
    lr: tuple[float, ...] = (0.1,)
    weight_decay: tuple[float, ...] = (1e-3,)
    momentum: tuple[float, ...] = (0.0,)
    noninvariant_lr: tuple[float, ...] = (0.0,)
    elr: tuple[float, ...] = (0.0,)
    fixed_norm: tuple[float, ...] = (0.0,)
    schedule_end: tuple[float, ...] = (0.0,)
    schedule_factor: tuple[float, ...] = (10.0,)
    seed: tuple[int, ...] = (0,)
    dataset: str = "digits"
    data_dir: str | Path | None = None
    download: bool = False
    augment: bool = False
    validation: int | None = None
    split_classes: int | None = None
    use_data_size: int | None = None
    corrupt_train: float = 0.0
    resize: int | None = None
    model: str = "ConvNetSI"
    width: int = 4
    depth: int = 3
    init_scale: float = 10.0
    batch_size: int = 128
    steps: int | None = None
    epochs: int | None = None
    eval_every: int | None = None
    layout: str = "auto"
    precision: str = "float32"
    per_layer: bool = False
    loss: str = "cross_entropy"
    schedule: str = "constant"
    schedule_per: str = "step"
    norm_per: str = "total"
    full_batch: bool = False

    @functools.cached_property
    def data(self) -> "Dataset":
        """The data set with its variations, read on first use.

        Raises:
            ConfigError: it is not found, damaged, or cannot be varied so.
        """
        from periodic_jax import data

        names = [field.name for field in dataclasses.fields(data.Variations)]
        variations = data.Variations(**{name: getattr(self, name) for name in names})
        data.check_variations(variations)
        return data.vary(data.load(self.dataset, data_dir=self.data_dir, download=self.download), variations)

    def grid(self) -> SweepGrid:
        """The configurations, all combinations of the axes.

        Raises:
            ConfigError: a value that an axis does not accept.
        """
        axes = {name: getattr(self, name) for name in RUN_AXES}
        axes["schedule_end"] = tuple(end or planned_steps(self) for end in self.schedule_end)
        return SweepGrid.product(**axes, schedule_every=steps_of_epoch(self) if self.schedule_per == "epoch" else 1)


def run_sweep(config: RunConfig, *, progress: Callable[["Chunk", int], None] | None = None) -> Path:
    """Train all configurations and record every step in a run directory.

    Everything that can be wrong with the configuration is refused before anything is compiled or written.

    Args:
        config: what to run.
        progress: called after each chunk with the chunk and the number of configurations.

    Returns:
        The run directory, for `open_run`.

    Raises:
        ConfigError: a setting that cannot be used.

    Example:
        >>> import tempfile, periodic_jax as pj
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pj.run_sweep(RunConfig(out=f"{folder}/run", lr=(0.1, 1.0), width=2, steps=3))
        ...     pj.open_run(path).loss.shape
        (2, 3)
    """
    started = time.perf_counter()
    check(config)
    with runtime.precision(config.precision):
        record = _execute(config, progress)
    path = Path(config.out)
    tables.to_csv(analysis.analyze(open_run(path, flat=True)), path / results.SUMMARY_FILE)
    record["summary"].update(seconds=round(time.perf_counter() - started, 3), peak_rss_mb=round(peak_rss_mb(), 1))
    results.write_json(path / results.CONFIG_FILE, record)
    return path


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot run; computes nothing, writes nothing.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    for flag, value in (("--steps", config.steps), ("--epochs", config.epochs), ("--eval-every", config.eval_every)):
        if value is not None and not 1 <= value <= MOST_STEPS:
            raise ConfigError(flag, value, f"a whole number from 1 to {MOST_STEPS}")
    if (config.steps is None) == (config.epochs is None):
        given = "neither" if config.steps is None else f"{config.steps} with --epochs {config.epochs}"
        raise ConfigError("--steps", given, "either --steps or --epochs")
    if config.precision not in runtime.PRECISIONS:
        raise ConfigError("--precision", config.precision, "one of " + ", ".join(runtime.PRECISIONS))
    for flag, value, accepted in (
        ("--schedule-per", config.schedule_per, ("step", "epoch")),
        ("--norm-per", config.norm_per, ("total", "filter")),
    ):
        if value not in accepted:
            raise ConfigError(flag, value, " or ".join(accepted))
    if config.batch_size < 2:
        raise ConfigError("--batch-size", config.batch_size, "a whole number from 2")
    if config.augment and config.full_batch:
        raise ConfigError("--augment", "given with --full-batch", "one of the two")
    results.check_unused(Path(config.out))

    from periodic_jax import models, schedules, train
    from periodic_jax.layouts import check_layout
    from periodic_jax.sweep import check_batch_size

    check_layout(config.layout)
    schedules.check_schedule(config.schedule)
    train.check_loss(config.loss)
    model = models.build(config.model, width=config.width, depth=config.depth)
    # From here on data are read, and downloaded if that was asked for.
    config.grid()
    check_batch_size(config.batch_size, config.data)
    model.check_input(*config.data.image_shape[:2])


def planned_steps(config: RunConfig) -> int:
    """Updates that a run makes."""
    return config.steps if config.steps is not None else (config.epochs or 0) * steps_of_epoch(config)


def steps_of_epoch(config: RunConfig) -> int:
    """Updates of one epoch: all whole mini-batches of the training set, or one for full-batch gradient descent."""
    from periodic_jax import data

    if config.full_batch:
        return 1
    return max(data.steps_per_epoch(len(config.data.images), config.batch_size), 1)


def _execute(config: RunConfig, progress: Callable[["Chunk", int], None] | None) -> dict[str, Any]:
    """Train and write the telemetry; returns what config.json is to hold."""
    import jax.numpy as jnp

    from periodic_jax import models
    from periodic_jax.sweep import Sweep

    path, grid, dataset = Path(config.out), config.grid(), config.data
    steps = planned_steps(config)
    eval_every = config.eval_every or max(steps // 100, 1)
    results.claim_directory(path)
    runtime.check_reductions()
    model = models.build(
        config.model, width=config.width, depth=config.depth, num_classes=dataset.num_classes,
        init_scale=config.init_scale, param_dtype=jnp.float64 if config.precision == "float64" else jnp.float32,
    )  # fmt: skip
    sweep = Sweep(
        model, dataset, grid, batch_size=config.batch_size, layout=config.layout, per_layer=config.per_layer,
        capacity=min(1000, steps), loss=config.loss, schedule=config.schedule, per_filter=config.norm_per == "filter",
        full_batch=config.full_batch, augment=config.augment,
    )  # fmt: skip
    resolved = dataclasses.replace(config, steps=steps, epochs=None, eval_every=eval_every, layout=sweep.layout)
    record = {
        "format": results.FORMAT, "config": _plain(resolved), "data": dataset.described(), **provenance(sweep)
    }  # fmt: skip
    results.write_json(path / results.CONFIG_FILE, record)
    eval_steps = sorted({*range(0, steps, eval_every), steps})
    writer = TelemetryWriter(
        path, grid, steps, eval_steps, sweep.empty_telemetry(), sweep.evaluations, sweep.layer_names()
    )

    timed_from, timed_steps = 0.0, 0
    for chunk in sweep.chunks(steps, eval_every=eval_every):
        writer.write(chunk.first_step, chunk.telemetry)
        if chunk.evaluation:
            writer.write_evaluation(chunk.first_step + chunk.steps, chunk.evaluation)
        writer.write_diverged(chunk.diverged_at)
        if progress:
            progress(chunk, len(grid))
        if timed_from:
            timed_steps += chunk.steps
        elif chunk.steps:  # the first chunk compiled: time is counted from its end
            timed_from = time.perf_counter()
    seconds = time.perf_counter() - timed_from
    record["summary"] = {
        "config_steps": steps * len(grid),
        "ms_per_config_step": round(seconds / timed_steps / len(grid) * 1e3, 4) if timed_steps else None,
        "compilations": sweep.compilations,
    }
    return record


def provenance(sweep: "Sweep") -> dict[str, Any]:
    """Versions, command, code commit and hardware, for config.json."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "xarray", "zarr")
    return {
        "version": __version__,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_commit": _git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "backend": sweep.devices[0].platform,
            "device": sweep.devices[0].device_kind,
            "devices": len(sweep.devices),
        },
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _git_commit() -> str | None:
    """The commit of the package's own checkout, None where it is installed otherwise."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON can hold it."""
    grid = config.grid()
    axes = {name: list(dict.fromkeys(grid.coords[name].tolist())) for name in RUN_AXES}
    rest = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items() if k not in axes}
    return {**rest, **axes}
