"""Replays a recorded trajectory of the PyTorch reference through the train step that sweeps use, and compares.

A recording is an npz file: ``config`` (JSON), ``order`` (indices of each mini-batch), ``init/NAME`` (PyTorch state
dict), and, to compare with, ``step/QUANTITY``, ``final/NAME`` and ``eval_logits``. Another npz file holds the images.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.files import write_atomically

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # of CIFAR-10, as the reference normalises
QUANTITIES = ("loss", "accuracy", "rho", "grad_norm_si", "grad_norm_all", "cosine_distance")
_NEEDED = ("model", "width", "depth", "init_scale", "lr", "wd", "momentum", "noninvariant_lr", "steps", "batch", "loss")


def load_recording(path: str | Path) -> dict[str, Any]:
    """Read a recording or an images file, without pickles.

    Raises:
        ConfigError: no such file, or not an npz file of plain arrays.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise ConfigError("file", path, "an existing npz file") from None
    except Exception as error:  # whatever a corrupted or foreign file makes NumPy raise
        raise ConfigError("file", path, f"an npz file of plain arrays ({type(error).__name__})") from None


def replay(
    recording: Mapping[str, Any],
    images: Mapping[str, Any],
    *,
    copies: int = 1,
    layout: str = "map",
    platform: str | None = None,
) -> dict[str, np.ndarray]:
    """Run a recorded configuration from its initial weights over its mini-batches.

    Args:
        recording: as `load_recording` returns it.
        images: with ``images`` uint8 ``(count, height, width, 3)`` and ``labels``, and optionally ``eval_images``.
        copies: stacked copies of the state that are trained side by side; the last one is reported.
        layout: how they are laid out, see `training.vectorize`.
        platform: whose form of convolutions the network takes; see `models.build`.

    Returns:
        ``step/QUANTITY`` ``(steps,)``, ``final/NAME`` in PyTorch's names and layouts, and ``eval_logits``. In the
        precision in force: float64 where 64-bit numbers are enabled.

    Raises:
        ConfigError: a recording that lacks something or does not fit its images or its network.
    """
    import jax
    import jax.numpy as jnp

    from periodic_jax import models
    from periodic_jax.core.grid import HParams
    from periodic_jax.models import forms
    from periodic_jax.models.adapters import LinenNetwork
    from periodic_jax.sweeps import autotune
    from periodic_jax.training.state import Batch, Task, state_of
    from periodic_jax.training.step import full_batch_step, train_step
    from periodic_jax.training.vectorize import check_layout, lay_out

    check_layout(layout)
    config = _config_of(recording)
    if layout == "auto":
        layout = autotune.candidates(forms.check_platform(platform), copies, config["width"])[0]
    dtype = jnp.result_type(float)
    full_batch, size = bool(config.get("full_batch")), int(config["batch"])
    pixels, classes = _checked_images(images)
    order = np.arange(len(pixels) // size * size).reshape(-1, size) if full_batch else _order_of(recording, len(pixels))
    model = models.build(
        config["model"], width=config["width"], depth=config["depth"], num_classes=config.get("num_classes", 10),
        init_scale=config["init_scale"], param_dtype=dtype, platform=platform,
    )  # fmt: skip
    initial = {name.removeprefix("init/"): recording[name] for name in recording if name.startswith("init/")}
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), models.from_torch(model, initial))
    task = Task(LinenNetwork(model), models.leaf_labels(variables["params"], model.labels()), config["loss"])
    state = state_of(task, variables)
    hparams = HParams(
        lr=config["lr"], weight_decay=config["wd"], momentum=config["momentum"],
        noninvariant_lr=config["noninvariant_lr"], elr=config.get("elr") or 0.0,
        fixed_norm=config.get("fixed_norm") or 0.0,
    )  # fmt: skip

    def stack(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * copies), tree)

    def normalised(some: Any) -> Any:
        return (some.astype(dtype) / 255 - jnp.asarray(MEAN, dtype)) / jnp.asarray(STD, dtype)

    @jax.jit
    def run(states: Any, hparams: HParams, pixels: Any, classes: Any, order: Any) -> Any:
        def step(states: Any, rows: Any) -> Any:
            batch = Batch(normalised(pixels[rows]), classes[rows])
            advance = full_batch_step if full_batch else train_step
            states, metrics = lay_out(lambda s, h: advance(s, h, batch), layout)(states, hparams)
            return states, {name: value[-1] for name, value in metrics.items() if value.ndim == 1}

        steps = jnp.broadcast_to(order, (config["steps"], *order.shape)) if full_batch else order
        return jax.lax.scan(step, states, steps)

    rates = HParams(*(jnp.asarray(value, dtype) for value in hparams))
    states, metrics = run(stack(state), stack(rates), jnp.asarray(pixels), jnp.asarray(classes, jnp.int32), order)
    final = jax.tree.map(lambda leaf: leaf[-1], {"params": states.params, "batch_stats": states.batch_stats})
    out = {f"step/{name}": value for name, value in _quantities(metrics, any(task.labels)).items()}
    seen = config["steps"] * (len(order) if full_batch else 1)
    for name, value in models.to_torch(model, final, num_batches_tracked=seen).items():
        out[f"final/{name}"] = np.asarray(value)
    if "eval_images" in images:
        evaluate = jax.jit(lambda v, x: model.apply(v, normalised(x), train=False))
        out["eval_logits"] = np.asarray(evaluate(final, jnp.asarray(images["eval_images"])))
    return out


def compare(result: Mapping[str, np.ndarray], recording: Mapping[str, Any], first: int = 10) -> dict[str, list[float]]:
    """The largest relative differences between a replay and its recording.

    Args:
        result: of `replay`.
        recording: with what was recorded.
        first: how many steps count as the first ones.

    Returns:
        For each quantity of each step the largest relative difference over the first steps and over all; for ``final``
        (the worst tensor) and ``eval_logits`` the norm of the difference over the norm, twice.
    """
    table: dict[str, list[float]] = {}
    for name in (f"step/{quantity}" for quantity in QUANTITIES):
        if name in recording and len(recording[name]):
            error = np.abs(result[name] - recording[name]) / np.maximum(np.abs(recording[name]), np.finfo(float).tiny)
            error = np.where(result[name] == recording[name], 0, error)
            table[name] = [float(error[:first].max()), float(error.max())]
    names = [name for name in recording if name.startswith("final/") and recording[name].dtype.kind == "f"]
    if names:
        worst = max(_distance(result[name], recording[name]) for name in names)
        table["final"] = [worst, worst]
    if "eval_logits" in recording and "eval_logits" in result:
        table["eval_logits"] = [_distance(result["eval_logits"], recording["eval_logits"])] * 2
    return table


def _distance(a: Any, b: Any) -> float:
    """|a - b| / |b|; in units of 1e-9 where |b| is less, as of biases whose gradient is zero but for rounding."""
    return float(np.linalg.norm(np.asarray(a, float) - b) / max(float(np.linalg.norm(b)), 1e-9))


def save(result: Mapping[str, Any], path: str | Path) -> None:
    """Write a replay as an npz file, atomically.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        write_atomically(Path(path), lambda file: np.savez(file, **result))
    except OSError as error:
        raise ConfigError("--out", path, f"a file that can be written ({error.strerror})") from None


def _quantities(metrics: Mapping[str, Any], invariant: bool) -> dict[str, np.ndarray]:
    """The recorded quantities under their own names; zeros and nothing where no weight is scale-invariant."""
    seen = {name: np.asarray(value) for name, value in metrics.items()}
    if not invariant:
        zero = np.zeros_like(seen["loss"])
        rho, grad, distance = zero, zero, zero[:0]
    else:
        rho, grad = seen["weight_norm"], seen["grad_norm"]
        distance = 2 * np.sin(seen["angular_step"] / 2) ** 2  # 1 - cos θ without cancellation
    return {
        "loss": seen["loss"], "accuracy": seen["accuracy"], "rho": rho, "grad_norm_si": grad,
        "grad_norm_all": np.hypot(grad, seen["noninvariant_grad_norm"]), "cosine_distance": distance,
    }  # fmt: skip


def _config_of(recording: Mapping[str, Any]) -> dict[str, Any]:
    from periodic_jax.training.losses import LOSSES

    try:
        config = json.loads(str(recording["config"]))
    except (KeyError, ValueError):
        raise UsageError("recording", "its config is no JSON object", "give a recording of the reference") from None
    missing = [name for name in _NEEDED if not isinstance(config, dict) or name not in config]
    if missing:
        raise UsageError("recording", f"its config has no {', '.join(missing)}", "give a recording of the reference")
    if config["loss"] not in LOSSES:
        raise ConfigError("recording loss", config["loss"], "one of " + ", ".join(LOSSES))
    return config


def _checked_images(images: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    for name in ("images", "labels"):
        if name not in images:
            raise UsageError("images file", f"it has no array {name}", "give one with the arrays images and labels")
    pixels, labels = images["images"], images["labels"]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(labels) != len(pixels):
        raise ConfigError(
            "images file", f"{pixels.dtype} {pixels.shape}", "uint8 (count, height, width, 3), a label each"
        )
    return pixels, labels


def _order_of(recording: Mapping[str, Any], count: int) -> np.ndarray:
    order = recording.get("order")
    if order is None or order.ndim != 2 or order.dtype.kind not in "iu":
        raise UsageError("recording", "its order is no array of integers (steps, batch)", "give one of the reference")
    if order.size and not 0 <= order.min() <= order.max() < count:
        raise ConfigError("recording order", f"{order.min()} to {order.max()}", f"indices below the {count} images")
    return order
