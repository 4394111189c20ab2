"""The minima of the periods of a run, compared: quality, angles, paths between them, ensembles, weight averages.

What can be measured of networks is in `landscape.networks`; here it is measured of the minima of each configuration.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.grid import AXES
from periodic_jax.inspection.load import LoadedRun, abstract_state, load_run, select_configurations
from periodic_jax.inspection.minima_sources import minima_of, start_of
from periodic_jax.landscape.connectivity import PATHS, Params, average, barrier, cosine, disagreement, on_sphere
from periodic_jax.landscape.networks import Networks, Quality
from periodic_jax.models import has_scale_invariant
from periodic_jax.storage.schema import describe
from periodic_jax.training import xla

EACH: dict[str, Any] = {
    "data_vars": "all",
    "coords": "minimal",
    "compat": "override",
    "join": "outer",
}  # how Datasets are concatenated


class Measured(NamedTuple):
    """A minimum of which all is known that one network can tell."""

    step: int
    ended: int | None
    params: Params  # on the unit sphere
    statistics: Any
    weight_norm: float
    quality: Quality | None  # None: not finite


def compare(
    path: str | Path,
    *,
    select: Mapping[str, Sequence[float]] | None = None,
    last: int | None = 10,
    images: int | None = None,
    points: int = 11,
    dataset: str | None = None,
    data_dir: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> xr.Dataset:
    """Compare the minima of each configuration, and of configurations that differ in the seed alone.

    Args:
        path: the run directory; nothing is written.
        select: for each axis named, the values of the configurations to take.
        last: at most so many minima of each configuration, the last ones; None: all.
        images: training images from which statistics and training losses are taken, random but always the same; None:
            all.
        points: of each path, ends included; at least 3.
        dataset, data_dir: as for `resume_run`.
        progress: told what is done.

    Returns:
        A Dataset over ``config`` with the hyperparameters as coordinates; ``minimum`` and ``other_minimum`` in order of
        their steps, the last of which may be of a period that had not ended, and is then left out of all that several
        make together; ``pair``: of a minimum and the next; ``path``: ``straight`` and ``layers``, see
        `landscape.networks`;
        ``point``, from 0 to 1; ``members``: the last so many minima, or as many seeds. NaN where there is nothing, and
        ``reason`` where there should be. ``seed_...`` is of the last minima of this seed and of the next ones in order,
        each a whole run; ``equal_cost_...`` of the last minimum of each of k seeds within the first k-th of the steps.

    Raises:
        ConfigError: no such run or configuration, no minima, or a network without scale-invariant weights.
    """
    run = load_run(path, dataset=dataset, data_dir=data_dir)
    rows = select_configurations(run, select or {})
    for name, value, least in (("last", last, 1), ("images", images, 2), ("points", points, 3)):
        if value is not None and value < least:
            raise ConfigError(f"--{name}", value, f"a whole number from {least}")
    with xla.precision(run.config.precision):
        xla.check_reductions()
        abstract = abstract_state(run)
        if not has_scale_invariant(abstract.task.model):
            raise ConfigError("run directory", path, "a network with scale-invariant weights")
        source, found = minima_of(run, rows, abstract)
        networks = Networks(abstract.task, run.config.data, images=images)
        saved: list[list[Measured]] = []
        for i, minima in zip(rows, found, strict=True):
            progress(
                f"{run.grid.label(i)}: {len(minima)} minima" + ("" if last is None else f", the last {last} at most")
            )
            saved.append([_measured(networks, *one) for one in minima[-(last or len(minima) or 1) :]])
        starts = [start_of(run, i, abstract) for i in rows]
        configs = [_of_config(networks, *each, points) for each in zip(saved, starts, strict=True)]
        first, seeds = run.first_step, _next_seeds(run, rows)
        of_seeds = [_between_seeds(networks, [saved[k] for k in places], points, first) for places in seeds]
        number = networks.images
    both = [xr.merge(pair, join="outer", compat="no_conflicts") for pair in zip(configs, of_seeds, strict=True)]
    compared = xr.concat(both, "config", fill_value={"reason": ""}, **EACH)
    compared = compared.drop_vars(["minimum", "other_minimum", "pair"])
    compared["reason"] = compared.reason.astype(str)
    for name, array in compared.data_vars.items():
        if name != "reason":
            array.attrs = describe(str(name)).attributes
            if array.attrs["units"] == "nats" and run.config.loss == "squared":
                array.attrs["units"] = "1"
    compared.step.attrs["long_name"] = "updates made at the minimum"
    compared["there"] = ("config", [len(minima) for minima in found])
    compared.attrs = {
        "run": run.path.resolve().name, "source": source, "images": number, "loss": run.config.loss,
        "statistics": f"re-estimated over {number} of {len(run.config.data.labels)} training images",
    }  # fmt: skip
    return compared.assign_coords({name: ("config", run.grid.coords[name][list(rows)]) for name in AXES})


def _measured(networks: Networks, step: int, ended: int | None, params: Params, statistics: Any) -> Measured:
    labels = networks.task.labels
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    squares = [
        np.sum(np.square(leaf, dtype=np.float64))
        for leaf, mark in zip(jax.tree.leaves(params), labels, strict=True)
        if mark
    ]
    norm = math.sqrt(float(np.sum(squares))) if finite else math.nan
    if not finite or norm == 0:
        return Measured(step, ended, params, statistics, norm, None)
    unit = on_sphere(params, labels)
    return Measured(step, ended, unit, statistics, norm, networks.quality(unit, statistics))


def _of_config(networks: Networks, minima: Sequence[Measured], start: Params | None, points: int) -> xr.Dataset:
    """All numbers of one configuration."""
    labels, count, known = networks.task.labels, len(minima), [one.quality for one in minima]
    numbers = {
        "step": [one.step for one in minima],
        "ended": [np.nan if one.ended is None else one.ended for one in minima],
        "weight_norm": [one.weight_norm for one in minima],
        "cosine_to_start": [
            np.nan if start is None or one.quality is None else cosine(one.params, start, labels) for one in minima
        ],
        **{name: [getattr(quality, name, np.nan) for quality in known] for name in Quality._fields[:4]},
    }
    variables: dict[str, Any] = {name: ("minimum", np.array(values, np.float64)) for name, values in numbers.items()}
    reasons = ["weights are not finite" if quality is None else "" for quality in known]
    variables["reason"] = ("minimum", np.array(reasons, object))
    apart = np.array([_apart(a, b, labels) for a in minima for b in minima]).reshape(count, count, 2)
    dims = ("minimum", "other_minimum")
    variables |= {name: (dims, apart[..., k]) for k, name in enumerate(("cosine", "disagreement"))}
    finished = of_ended(minima)
    rows = [_with_average(networks, finished[-k:]) for k in range(1, len(finished) + 1)]
    nothing = _with_average(networks, [None])
    rows += [nothing] * (count - len(rows))
    variables |= {name: ("members", np.array([row[name] for row in rows], np.float64)) for name in nothing}
    places = np.arange(count)
    coords = {"minimum": places, "other_minimum": places, "members": places + 1}
    # One pair too many, without numbers, so that there is one at all; it is cut off again.
    ends: list[tuple[Any, Any]] = [*itertools.pairwise(minima), (None, None)]
    pairs = [_paths(networks, a, b, points) for a, b in ends]
    between = xr.concat(pairs, "pair", **EACH).assign_coords(pair=np.arange(len(pairs))).isel(pair=slice(0, -1))
    return xr.Dataset(variables, coords).merge(between)


def of_ended(minima: Sequence[Measured]) -> Sequence[Measured]:
    """Those whose period had ended; where there are none, all: where the run ends, a period may have just begun."""
    return [one for one in minima if one.ended is not None] or minima


def _apart(a: Measured | None, b: Measured | None, labels: Any) -> tuple[float, float]:
    """Cosine and disagreement; NaN where one is missing or not finite."""
    if a is None or b is None or a.quality is None or b.quality is None:
        return math.nan, math.nan
    return cosine(a.params, b.params, labels), disagreement(a.quality.test_outputs, b.quality.test_outputs)


def _paths(networks: Networks, a: Measured | None, b: Measured | None, points: int) -> xr.Dataset:
    """Barrier, training losses and test errors of each kind of path; NaN where an end is missing or not finite."""
    at, losses = np.linspace(0, 1, points), np.full((len(PATHS), points), np.nan)
    errors, barriers = losses.copy(), losses[:, 0].copy()
    if a is not None and b is not None and a.quality and b.quality:
        for k, path in enumerate(PATHS.values()):
            found = [networks.quality(path(a.params, b.params, t, networks.task.labels), a.statistics) for t in at]
            losses[k], errors[k] = [one.train_loss for one in found], [one.test_error for one in found]
            barriers[k] = barrier(losses[k])
    variables = {"barrier": ("path", barriers)}
    variables |= {n: (("path", "point"), v) for n, v in (("path_train_loss", losses), ("path_test_error", errors))}
    return xr.Dataset(variables, {"path": list(PATHS), "point": at})


def _ensemble(networks: Networks, members: Sequence[Measured | None]) -> tuple[float, float]:
    """Test loss and error of an ensemble; NaN where a member is missing or not finite."""
    outputs = [one.quality.test_outputs for one in members if one is not None and one.quality]
    return networks.together(outputs) if len(outputs) == len(members) else (math.nan, math.nan)


def _with_average(networks: Networks, members: Sequence[Measured | None]) -> dict[str, float]:
    """An ensemble and an average of some minima; NaN where one is missing or not finite."""
    loss, error = _ensemble(networks, members)
    sound = [one for one in members if one is not None and one.quality]
    mean = None
    if len(sound) == len(members):
        mean = networks.quality(average([one.params for one in sound], networks.task.labels), sound[0].statistics)
    names = ("train_loss", "test_loss", "test_error")
    averages = {f"average_{name}": getattr(mean, name, math.nan) for name in names}
    return {"ensemble_loss": loss, "ensemble_error": error, **averages}


def _next_seeds(run: LoadedRun, rows: Sequence[int]) -> list[list[int]]:
    """For each configuration its position, and those of what differs in the seed alone, from the next seed on."""
    groups: dict[tuple[float, ...], list[int]] = {}
    keys = [tuple(float(run.grid.coords[name][i]) for name in AXES if name != "seed") for i in rows]
    seeds = run.grid.seeds[list(rows)]
    for place in sorted(range(len(rows)), key=lambda place: seeds[place]):
        groups.setdefault(keys[place], []).append(place)
    return [(g := groups[key])[g.index(k) :] + g[: g.index(k)] for k, key in enumerate(keys)]


def _between_seeds(networks: Networks, seeds: Sequence[Sequence[Measured]], points: int, first: int) -> xr.Dataset:
    """The last minimum of the first of some seeds against that of the next, and ensembles of several seeds."""
    minima = [of_ended(of_seed) for of_seed in seeds]
    finals = [of_seed[-1] if of_seed and of_seed[-1].quality else None for of_seed in minima]
    this, following = finals[0], finals[1] if len(finals) > 1 else None
    rows = []
    for k in range(1, len(seeds) + 1):
        if this is None or len(seeds) < 2:
            break
        until = first + (this.step - first) / k
        early = [next((m for m in reversed(of_seed) if m.step <= until and m.quality), None) for of_seed in minima[:k]]
        rows.append([*_ensemble(networks, finals[:k]), *_ensemble(networks, early)])
    names = [f"{of}_ensemble_{name}" for of in ("seed", "equal_cost") for name in ("loss", "error")]
    table = np.array(rows, np.float64).reshape(-1, len(names))
    variables: dict[str, Any] = {name: ("members", table[:, k]) for k, name in enumerate(names)}
    variables["seed_barrier"] = ("path", _paths(networks, this, following, points).barrier.values)
    variables["seed_cosine"], variables["seed_disagreement"] = _apart(this, following, networks.task.labels)
    return xr.Dataset(variables, {"members": np.arange(1, len(table) + 1)})
