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
from periodic_jax.inspection import load
from periodic_jax.landscape import PARTS, PRODUCTS, Surface, fixed_batches, hutchinson, lanczos, stochastic_lanczos
from periodic_jax.landscape.objective import WEIGHTS
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
    density: int = 0  # Lanczos iterations from each probe, for the spectral density; 0: none


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
    model: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> xr.Dataset:
    """Measure the landscape around checkpoints of a run, on the same mini-batches in train mode for all.

    Args:
        path: the run directory; nothing is written.
        checkpoints: ``all`` that were kept, ``last``, or numbers of updates.
        select: for each axis named, the values of the configurations to take.
        weights: ``invariant``: the scale-invariant ones, raw and as seen on the unit sphere; or ``all``.
        budget: how much to compute.
        dataset, data_dir, model: as for `resume_run`.
        progress: called with a line about what is done.

    Returns:
        Numbers over ``(config, checkpoint, part)``, the parts being ``all`` images and where labels were corrupted the
        ``corrupted`` and ``clean`` ones; eigenvalues also over ``rank``, nodes and weights of spectral densities over
        ``probe`` and ``node``. ``sphere_...`` is at x/ρ, projected on the tangents of the unit sphere, of which the
        direction of x adds an eigenvalue of 0. Where nothing can be measured there is NaN, and ``reason`` says why.

    Raises:
        ConfigError: no such run, checkpoint, configuration, or weights.
    """
    run = load.load_run(path, dataset=dataset, data_dir=data_dir, model=model)
    steps, configs = load.select_checkpoints(run, checkpoints), load.select_configurations(run, select or {})
    check_budget(budget)
    if weights not in WEIGHTS:
        raise ConfigError("--weights", weights, " or ".join(WEIGHTS))
    parts = PARTS if run.config.data.corrupted is not None else PARTS[:1]
    of_steps: list[xr.Dataset] = []
    precision = "float64" if run.config.precision == "float64" else "float32"
    dtype = np.dtype(precision)
    with xla.precision(precision):
        xla.check_reductions()
        batches = [
            fixed_batches(run.config.data, run.config.batch_size, images=budget.images, part=part, dtype=dtype)
            for part in parts
        ]
        progress(_selected_states(batches[0].labels.shape, len(run.config.data.images), budget.images))
        for step in steps:
            states = load.load_states(run, step, configs)
            number = sum(leaf[0].size for leaf in jax.tree.leaves(states.params))
            block = max(MOST_IN_MEMORY // (max(budget.iterations, budget.density) * number * dtype.itemsize), 1)
            blocks: list[xr.Dataset] = []
            for first in range(0, len(configs), block):
                here = slice(first, min(first + block, len(configs)))
                chosen = jax.tree.map(lambda leaf, here=here: leaf[here], states)
                of_parts: list[xr.Dataset] = []
                for part, images in zip(parts, batches, strict=True):
                    of = f"configurations {here.start + 1}-{here.stop} of {len(configs)}"
                    progress(f"checkpoint {step}, {of}, {part} images")
                    of_parts.append(_measured(run, configs[here], chosen, images, weights, budget))
                blocks.append(xr.concat(of_parts, "part"))
            of_steps.append(xr.concat(blocks, "config"))
    measured = xr.concat(of_steps, "checkpoint").transpose("config", "checkpoint", "part", ...)
    coords = {"checkpoint": np.asarray(steps, np.int64), "part": list(parts)}
    attributes = {"run": run.path.resolve().name, "weights": weights, "images": int(batches[0].labels.size)}
    return load.with_metadata(measured, run, configs).assign_coords(coords).assign_attrs(attributes)


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
    load.check_least("images", budget.images, 2, ", or all")
    for name, least in (("probes", 0), ("eigenvalues", 0), ("iterations", 1), ("density", 0)):
        load.check_least(name, getattr(budget, name), least)
    if budget.density and not budget.probes:
        raise ConfigError(
            "--density", f"{budget.density} with --probes 0", "at least one probe, of which it is the mean"
        )
    if not 0 < budget.tolerance < math.inf:
        raise ConfigError("--tolerance", budget.tolerance, "a number above 0")


def _measured(
    run: load.LoadedRun, configs: Sequence[int], states: TrainState, batches: Any, weights: str, budget: Budget
) -> xr.Dataset:
    """All numbers of some configurations in one checkpoint and on one part of the images."""
    surface = Surface(states, batches, weights)
    x = surface.weights
    noise = surface.gradient_noise()
    numbers = {name: np.array([getattr(estimate, name) for estimate in noise]) for name in noise[0]._fields}
    reasons, measurable = _reasons(states, numbers.pop("reason"))
    norm = np.linalg.norm(np.asarray(x, np.float64), axis=1)
    key = jax.random.key(0)
    start = jnp.broadcast_to(jax.random.normal(key, x.shape[1:], x.dtype), x.shape)
    spaces = {"": False, "sphere_": True} if weights == "invariant" else {"": False}
    for kind in PRODUCTS:
        if budget.probes:
            trace = hutchinson(surface.product(kind), x, key, probes=budget.probes)
            numbers |= {f"{kind}_trace": trace.value, f"{kind}_trace_error": trace.error}
        for prefix, sphere in spaces.items():
            name = f"{prefix}{kind}"
            if sphere and kind == "gauss_newton":  # G x = 0: the projection takes nothing away, ρ² scales
                numbers |= _scaled(numbers, kind, prefix, norm**2)
                continue
            if budget.density:
                density = stochastic_lanczos(
                    surface.product(kind, sphere=sphere), x, key, probes=budget.probes, iterations=budget.density
                )
                numbers |= {f"{name}_density_{end}": values for end, values in density._asdict().items()}
            if not budget.eigenvalues:
                continue
            values = lanczos(
                surface.product(kind, sphere=sphere), start, key, count=budget.eigenvalues, most=budget.iterations,
                tolerance=budget.tolerance,
            )  # fmt: skip
            numbers |= {f"{name}_eigenvalue": values.values, f"{name}_eigenvalue_residual": values.residuals}
            if kind == "hessian":
                numbers |= {f"{name}_lowest": values.lowest, f"{name}_lowest_residual": values.lowest_residual}
    if weights == "invariant":
        numbers |= _on_sphere(run, configs, states, norm, numbers)
    dims = {1: ("config",), 2: ("config", "rank"), 3: ("config", "probe", "node")}
    variables = {name: (dims[v.ndim], v.astype(np.float64)) for name, v in numbers.items()}
    return xr.Dataset(variables).where(xr.DataArray(measurable, dims="config")).assign(reason=("config", reasons))


def _scaled(numbers: dict[str, np.ndarray], kind: str, prefix: str, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Eigenvalues and densities of matrices, of a number for each times the matrix."""
    ends = {"eigenvalue": True, "eigenvalue_residual": True, "density_nodes": True, "density_weights": False}
    there = {end: numbers[f"{kind}_{end}"] for end in ends if f"{kind}_{end}" in numbers}
    return {
        f"{prefix}{kind}_{end}": (factor.reshape(-1, *[1] * (values.ndim - 1)) if ends[end] else 1) * values
        for end, values in there.items()
    }


def _on_sphere(
    run: load.LoadedRun, configs: Sequence[int], states: TrainState, norm: np.ndarray, raw: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """What follows at x/ρ from scale invariance, and the sharpness in units of what the learning rate bears."""
    more = {"weight_norm": norm}
    for name in ("gradient_norm", "gradient_std_norm", "mean_gradient_norm"):
        more[f"effective_{name}"] = norm * raw[name]
    # ⟨x, H x⟩ = 0, so the projection does not change the trace.
    more |= {f"sphere_{name}": norm**2 * trace for name, trace in raw.items() if "_trace" in name}

    def rate(hparams: Any, step: Any, norm: Any) -> Any:
        return learning_rate(scheduled(hparams, step, run.config.schedule), norm)

    hparams = jax.tree.map(lambda h: jnp.asarray(h, states.params["head"]["kernel"].dtype), run.hparams(configs))
    lr = np.asarray(jax.vmap(rate)(hparams, states.step, jnp.asarray(norm, hparams.lr.dtype)), np.float64)
    more["effective_lr"] = lr / norm**2
    if "sphere_hessian_eigenvalue" in raw:
        more["sphere_sharpness"] = raw["sphere_hessian_eigenvalue"][:, 0]
        more["elr_times_sharpness"] = more["effective_lr"] * more["sphere_sharpness"]
    decay, momentum = run.hparams(configs).weight_decay, run.hparams(configs).momentum
    more["stability_threshold"] = dynamics.sharpness_limit(1.0, lr, decay, momentum)
    return more


def _reasons(states: TrainState, of_noise: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Why numbers are missing of each configuration, and of which there are any."""
    diverged = np.asarray(states.diverged_at)
    finite = np.all(
        [np.isfinite(np.asarray(leaf)).reshape(len(diverged), -1).all(1) for leaf in jax.tree.leaves(states.params)], 0
    )
    frozen = [f"diverged at step {step} and frozen since" for step in diverged]
    reasons = np.where(diverged >= 0, frozen, np.where(finite, of_noise, "weights are not finite, or not there yet"))
    return reasons.tolist(), (diverged < 0) & finite
