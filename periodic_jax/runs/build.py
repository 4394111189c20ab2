"""Builds what a `RunConfig` describes: the network, abstract states (shapes and dtypes), the sweep, the session."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from periodic_jax.analysis.online import initial_rule
from periodic_jax.core.errors import CorruptedRunError, UsageError
from periodic_jax.core.formatting import counted, format_bytes
from periodic_jax.runs.config import RunConfig, check_sphere, evaluated_every, planned_steps
from periodic_jax.runs.manifest import former_ends, from_manifest
from periodic_jax.storage import run_directory
from periodic_jax.storage.minima_files import with_rule_state
from periodic_jax.training import xla

if TYPE_CHECKING:
    from periodic_jax.runs.session import SessionPlan
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.training.state import TrainState

MOST_PIXELS = 2**16  # along a side, and classes


def network(config: RunConfig, num_classes: int) -> Any:
    """The network of a configuration."""
    import jax.numpy as jnp

    from periodic_jax import models
    from periodic_jax.models import imported

    if imported.is_import_path(config.model):
        return imported.import_model(config.model, config.model_args)
    return models.build(
        config.model, width=config.width, depth=config.depth, num_classes=num_classes, init_scale=config.init_scale,
        param_dtype=jnp.float64 if config.precision == "float64" else jnp.float32, storage=config.storage,
    )  # fmt: skip


def labels_of(config: RunConfig, image_shape: Sequence[int], num_classes: int) -> Any:
    """The scale-invariance labels of a configuration's network. Within the run's `training.xla.precision`."""
    from periodic_jax.models import imported

    if imported.is_import_path(config.model):
        return imported.imported_labels(config.model, config.model_args, tuple(image_shape), config.precision)
    return network(config, num_classes).labels()


def abstract_state(config: RunConfig, image_shape: Sequence[int], num_classes: int) -> "TrainState":
    """Shapes and dtypes of one configuration's training state. Within the run's `training.xla.precision`.

    Args:
        config: of the run.
        image_shape: (height, width, channels).
        num_classes: of the data set.
    """
    import jax

    from periodic_jax.models.adapters import input_dtype
    from periodic_jax.training.state import create_train_state

    model, labels = network(config, num_classes), labels_of(config, image_shape, num_classes)

    def create(images: jax.Array) -> Any:
        return create_train_state(
            model, labels, jax.random.key(0), images, loss=config.loss, schedule=config.schedule,
            per_filter=config.norm_per == "filter", optimizer=config.optimizer,
        )  # fmt: skip

    return jax.eval_shape(create, jax.ShapeDtypeStruct((2, *image_shape), input_dtype(model)))


def abstract_states(config: RunConfig, image_shape: Sequence[int], num_classes: int) -> dict[str, np.ndarray]:
    """What a checkpoint of a run holds. Within its `training.xla.precision`.

    Args:
        config, image_shape, num_classes: as for `abstract_state`.

    Returns:
        Arrays of the names, shapes and dtypes that `Placement.fetch` gives; all their elements are one, which takes no
        memory.

    Raises:
        ConfigError: they are larger than this machine's memory.

    Example:
        >>> states = abstract_states(RunConfig(out="x", lr=(0.1, 1.0), width=8), (8, 8, 1), 10)
        >>> states["params.conv0.kernel"].shape
        (2, 3, 3, 1, 8)
    """
    from periodic_jax.sweeps.placement import named_leaves

    abstract, memory = abstract_state(config, image_shape, num_classes), memory_bytes()
    configs = config.size()
    states = {
        name: np.broadcast_to(np.zeros((), np.dtype(leaf.dtype)), (configs, *leaf.shape))
        for name, leaf in named_leaves(abstract)
        if leaf.size
    }
    if config.keep_period_minima:
        states |= initial_minima(states, config.keep_period_minima)
    if (wanted := sum(array.nbytes for array in states.values())) > memory:
        there = f"and this machine has {format_bytes(memory)}"
        reason = f"the states of {counted(configs, 'network')} take {format_bytes(wanted)}, {there}"
        raise UsageError("memory", reason, "give a smaller network or grid, or --shards")
    return states


def recorded_states(path: Path, manifest: Mapping[str, Any], *, model: str | None = None) -> dict[str, np.ndarray]:
    """What a checkpoint of a run must hold, according to its config.json alone: the data set is not read.

    Args:
        path: the run directory.
        manifest: the content of its config.json.
        model: as for `resume_run`.

    Raises:
        CorruptedRunError: it is not known from there.
        ConfigError: a network of one's own, and ``model`` is not given.
    """
    config = from_manifest(manifest, path, dataset="any", model=model)
    shape, classes = (manifest.get("data", {}).get(name) for name in ("image_shape", "classes"))
    sizes = [*shape, classes] if isinstance(shape, list) else []
    if len(sizes) != 4 or not all(type(size) is int and 1 <= size <= MOST_PIXELS for size in sizes):
        reason = "no size of the images and number of classes"
        raise CorruptedRunError(path / run_directory.CONFIG_FILE, reason, run_directory.RESTORE)
    with xla.precision(config.precision):
        return abstract_states(config, sizes[:3], sizes[3])


def initial_minima(states: Mapping[str, np.ndarray], every: int) -> dict[str, np.ndarray]:
    """What a checkpoint holds for the minima of periods when none has begun.

    Args:
        states: what it holds of the states, or arrays of the same names, shapes and dtypes.
        every: steps between candidates.
    """
    dtype = next(array.dtype for name, array in states.items() if name.startswith("params."))
    return with_rule_state(states, initial_rule(len(states["step"]), every, dtype))


def memory_bytes() -> int:
    """All of this machine's memory; without bound where it is not known."""
    if not hasattr(os, "sysconf"):  # on Windows
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def build_sweep(config: RunConfig) -> "Sweep":
    """The grid of a configuration, not compiled yet. Within its `training.xla.precision`.

    Raises:
        ConfigError: its states are larger than this machine's memory.
    """
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.training.initialisation import HEAD
    from periodic_jax.training.spec import TrainingSpec

    shape, classes = config.data.image_shape, config.data.num_classes
    states = abstract_states(config, shape, classes)  # refused here, where they do not fit
    if (grid := config.grid()).has_own_head and not any(name.startswith(f"params.{HEAD}.") for name in states):
        raise UsageError("--head-seed", f"{config.model} has no parameters called {HEAD}", "leave it out")
    spec = TrainingSpec(
        batch_size=config.batch_size, loss=config.loss, schedule=config.schedule,
        per_filter=config.norm_per == "filter", full_batch=config.full_batch, sampling=config.sampling,
        augment=config.augment, track_sharpness=config.track_sharpness, track_eigenvalue=config.track_eigenvalue,
        per_layer=config.per_layer, optimizer=config.optimizer,
    )  # fmt: skip
    sweep = Sweep(
        network(config, classes), config.data, grid, spec, labels=labels_of(config, shape, classes),
        layout=config.layout, deterministic=config.deterministic,
    )  # fmt: skip
    check_sphere(config, bool(sweep.layer_names()))
    return sweep


def plan_session(config: RunConfig, manifest: Mapping[str, Any]) -> "SessionPlan":
    """What a session of the run is to do.

    Args:
        config: that of the run.
        manifest: the content of config.json before the session; empty for a new run.
    """
    from periodic_jax.runs.session import SessionPlan

    return SessionPlan(
        Path(config.out or "."), planned_steps(config), evaluated_every(config),
        eval_at=config.eval_at, first_step=run_directory.first_step(manifest),
        ends=tuple(former_ends(config, manifest)), keep=config.keep, keep_every=config.keep_every,
        seconds=config.checkpoint_seconds,
        keep_period_minima=config.keep_period_minima, is_finished="summary" in manifest,
        run_id=manifest.get("id"),
    )  # fmt: skip
