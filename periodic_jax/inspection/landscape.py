"""The landscape around the checkpoints of a run, as one xarray Dataset: curvature, its leading eigenvalues, gradient
noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from periodic_jax import dynamics
from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import AXES
from periodic_jax.inspection.load import LoadedRun, load_run, load_states, select_checkpoints, select_configurations
from periodic_jax.landscape import PARTS, PRODUCTS, Surface, fixed_batches, hutchinson, lanczos
from periodic_jax.landscape.objective import WEIGHTS
from periodic_jax.storage.schema import describe
from periodic_jax.training import xla
from periodic_jax.training.schedules import learning_rate, scheduled
from periodic_jax.training.state import TrainState

MOST_IN_MEMORY = 2**30  # bytes of Lanczos vectors at a time


class Budget(NamedTuple):
    """How much is computed."""

    images: int | None = 1024  # None: all
    probes: int = 10  # for each trace
    eigenvalues: int = 10
    iterations: int = 100  # of Lanczos, at most
    tolerance: float = 1e-3  # of the residuals, relative to the largest eigenvalue in size


USUAL = Budget()


def measure_landscape(
    path: str | Path,
    *,
    checkpoints: Sequence[str] = ("all",),
    select: Mapping[str, Sequence[float]] | None = None,
    weights: str = "invariant",
    budget: Budget = USUAL,
    dataset: str | None = None,
    data_dir: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> xr.Dataset:
    """Measure the landscape around checkpoints of a run, on the same mini-batches in train mode for all.

    Args:
        path: the run directory; nothing is written.
        checkpoints: ``all`` that were kept, ``last``, or numbers of updates.
        select: for each axis named, the values of the configurations to take.
        weights: ``invariant``: the scale-invariant ones, raw and as seen on the unit sphere; or ``all``.
        budget: how much to compute.
        dataset, data_dir: as for `resume_run`.
        progress: told what is done.

    Returns:
        Numbers over ``(config, checkpoint, part)``, the parts being ``all`` images and where labels were corrupted the
        ``corrupted`` and ``clean`` ones; eigenvalues also over ``rank``. ``sphere_...`` is at x/ρ, projected on the
        tangents of the unit sphere. Where nothing can be measured there is NaN, and ``reason`` says why.

    Raises:
        ConfigError: no such run, checkpoint, configuration, or weights.
    """
    run = load_run(path, dataset=dataset, data_dir=data_dir)
    steps, rows = select_checkpoints(run, checkpoints), select_configurations(run, select or {})
    check_budget(budget)
    if weights not in WEIGHTS:
        raise ConfigError("--weights", weights, " or ".join(WEIGHTS))
    parts = PARTS if run.config.data.corrupted is not None else PARTS[:1]
    found: list[xr.Dataset] = []
    double = run.config.precision == "float64"
    with xla.precision("float64" if double else "float32"):
        xla.check_reductions()
        batches = [
            fixed_batches(
                run.config.data, run.config.batch_size, images=budget.images, part=part,
                dtype=np.float64 if double else np.float32,
            )
            for part in parts
        ]  # fmt: skip
        progress(_selected_states(batches[0].labels.shape, len(run.config.data.images), budget.images))
        for step in steps:
            states = load_states(run, step, rows)
            number = sum(leaf[0].size for leaf in jax.tree.leaves(states.params))
            block = max(MOST_IN_MEMORY // (max(budget.iterations, 1) * number * (8 if double else 4)), 1)
            blocks: list[xr.Dataset] = []
            for first in range(0, len(rows), block):
                here = slice(first, min(first + block, len(rows)))
                chosen = jax.tree.map(lambda leaf, here=here: leaf[here], states)
                of_parts: list[xr.Dataset] = []
                for part, images in zip(parts, batches, strict=True):
                    of = f"configurations {here.start + 1}-{here.stop} of {len(rows)}"
                    progress(f"checkpoint {step}, {of}, {part} images")
                    of_parts.append(_measured(run, rows[here], chosen, images, weights, budget))
                blocks.append(xr.concat(of_parts, "part"))
            found.append(xr.concat(blocks, "config"))
    measured = xr.concat(found, "checkpoint").transpose("config", "checkpoint", "part", ...)
    for name, array in measured.data_vars.items():
        if name != "reason":
            array.attrs = describe(str(name)).attributes
    coords: dict[str, Any] = {name: ("config", run.grid.coords[name][list(rows)]) for name in AXES}
    coords |= {"checkpoint": np.asarray(steps, np.int64), "part": list(parts)}
    attributes = {"run": run.path.resolve().name, "weights": weights, "images": int(batches[0].labels.size)}
    return measured.assign_coords(coords).assign_attrs(attributes)


def _selected_states(batches: Sequence[int], there: int, asked: int | None) -> str:
    """How many images are looked at, and how many were asked for where that is another number."""
    count, more = math.prod(batches), ""
    if asked not in (None, count):
        more = f"; {asked} were asked for" if asked > there else f": whole mini-batches, where {asked} were asked for"
    return f"looking at {count} of the {there} training images, in {batches[0]} mini-batches of {batches[1]}{more}"


def check_budget(budget: Budget) -> None:
    """Refuse numbers that nothing can be computed with.

    Raises:
        ConfigError: one that is too small.
    """
    least = {"images": 2, "probes": 0, "eigenvalues": 0, "iterations": 1}
    for name, smallest in least.items():
        value = getattr(budget, name)
        if value is not None and value < smallest:
            more = ", or all" if name == "images" else ""
            raise ConfigError(f"--{name}", value, f"a whole number from {smallest}{more}")
    if not 0 < budget.tolerance < math.inf:
        raise ConfigError("--tolerance", budget.tolerance, "a number above 0")


def _measured(
    run: LoadedRun, rows: Sequence[int], states: TrainState, batches: Any, weights: str, budget: Budget
) -> xr.Dataset:
    """All numbers of some configurations in one checkpoint and on one part of the images."""
    surface = Surface(states, batches, weights)
    x = surface.weights
    noise = surface.gradient_noise()
    found = {name: np.array([getattr(one, name) for one in noise]) for name in noise[0]._fields}
    norm = np.linalg.norm(np.asarray(x, np.float64), axis=1)
    key = jax.random.key(0)
    start = jnp.broadcast_to(jax.random.normal(key, x.shape[1:], x.dtype), x.shape)
    spaces = {"": False, "sphere_": True} if weights == "invariant" else {"": False}
    for kind in PRODUCTS:
        if budget.probes:
            trace = hutchinson(surface.product(kind), x, key, probes=budget.probes)
            found |= {f"{kind}_trace": trace.value, f"{kind}_trace_error": trace.error}
        for prefix, sphere in spaces.items():
            if not budget.eigenvalues:
                continue
            name = f"{prefix}{kind}"
            if sphere and kind == "gauss_newton":  # G x = 0: the projection takes nothing away, ρ² scales
                of_raw = ("eigenvalue", "eigenvalue_residual")
                found |= {f"{name}_{end}": norm[:, None] ** 2 * found[f"{kind}_{end}"] for end in of_raw}
                continue
            values = lanczos(
                surface.product(kind, sphere=sphere), start, key, count=budget.eigenvalues, most=budget.iterations,
                tolerance=budget.tolerance,
            )  # fmt: skip
            found |= {f"{name}_eigenvalue": values.values, f"{name}_eigenvalue_residual": values.residuals}
            if kind == "hessian":
                found |= {f"{name}_lowest": values.lowest, f"{name}_lowest_residual": values.lowest_residual}
    if weights == "invariant":
        found |= _on_sphere(run, rows, states, norm, found)
    found, reasons = _with_reasons(states, found)
    variables = {name: (("config", "rank")[: v.ndim], v.astype(np.float64)) for name, v in found.items()}
    return xr.Dataset({**variables, "reason": ("config", reasons)})


def _on_sphere(
    run: LoadedRun, rows: Sequence[int], states: TrainState, norm: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What follows at x/ρ from scale invariance, and the sharpness in units of what the learning rate bears."""
    more = {"weight_norm": norm}
    for name in ("gradient_norm", "gradient_std_norm", "mean_gradient_norm"):
        more[f"effective_{name}"] = norm * found[name]
    for kind in PRODUCTS:  # ⟨x, H x⟩ = 0, so the projection does not change the trace
        for end in ("trace", "trace_error"):
            if f"{kind}_{end}" in found:
                more[f"sphere_{kind}_{end}"] = norm**2 * found[f"{kind}_{end}"]

    def rate(hparams: Any, step: Any, norm: Any) -> Any:
        return learning_rate(scheduled(hparams, step, run.config.schedule), norm)

    hparams = jax.tree.map(lambda h: jnp.asarray(h, states.params["head"]["kernel"].dtype), run.hparams(rows))
    lr = np.asarray(jax.vmap(rate)(hparams, states.step, jnp.asarray(norm, hparams.lr.dtype)), np.float64)
    more["effective_lr"] = lr / norm**2
    if "sphere_hessian_eigenvalue" in found:
        more["sphere_sharpness"] = found["sphere_hessian_eigenvalue"][:, 0]
        more["elr_times_sharpness"] = more["effective_lr"] * more["sphere_sharpness"]
    held = run.hparams(rows)
    more["stability_threshold"] = dynamics.sharpness_limit(1.0, lr, held.weight_decay, held.momentum)
    return more


def _with_reasons(states: TrainState, found: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """NaN in place of all numbers that say nothing, and why."""
    diverged = np.asarray(states.diverged_at)
    finite = np.all(
        [np.isfinite(np.asarray(leaf)).reshape(len(diverged), -1).all(1) for leaf in jax.tree.leaves(states.params)], 0
    )
    reasons = []
    for k, reason in enumerate(found.pop("reason")):
        if diverged[k] >= 0:
            reason = f"diverged at step {diverged[k]} and frozen since"
        elif not finite[k]:
            reason = "weights are not finite, or not there yet"
        reasons.append(str(reason))
        if diverged[k] >= 0 or not finite[k]:
            for name, values in found.items():
                found[name] = values.astype(np.float64)
                found[name][k] = np.nan
    return found, reasons
