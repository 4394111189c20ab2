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

from periodic_jax.core.errors import UsageError
from periodic_jax.core.formatting import counted
from periodic_jax.core.grid import AXES
from periodic_jax.inspection import load
from periodic_jax.inspection.minima_sources import SavedState, minima_of, start_of
from periodic_jax.landscape.connectivity import PATHS, Params, average, barrier, cosine, disagreement, on_sphere
from periodic_jax.landscape.networks import Networks, Quality
from periodic_jax.training import xla

NUMBERS = ("step", "ended", "weight_norm", "cosine_to_start", *Quality._fields[:4])  # of each minimum
TOGETHER = ("ensemble_loss", "ensemble_error", "average_train_loss", "average_test_loss", "average_test_error")


class Measured(NamedTuple):
    """A minimum, and what is measured of it alone."""

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
    model: str | None = None,
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
        dataset, data_dir, model: as for `resume_run`.
        progress: called with a line about what is done.

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
    run = load.load_run(path, dataset=dataset, data_dir=data_dir, model=model)
    configs = load.select_configurations(run, select or {})
    for name, value, least in (("last", last, 1), ("images", images, 2), ("points", points, 3)):
        load.check_least(name, value, least)
    with xla.precision(run.config.precision):
        xla.check_reductions()
        abstract = load.abstract_state(run)
        if not any(abstract.task.labels):
            raise UsageError(
                path,
                "its network has no scale-invariant weights, whose minima are compared",
                "periodic-jax landscape measures it",
            )
        if abstract.key is not None or abstract.other:
            reason = "its network draws random numbers, or changes more than running statistics"
            raise UsageError(path, reason, "periodic-jax landscape measures it")
        source, saved = minima_of(run, configs, abstract)
        networks = Networks(abstract.task, run.config.data, images=images)
        limit = "" if last is None else f", the last {last} at most"
        measured: list[list[Measured]] = []
        for i, minima in zip(configs, saved, strict=True):
            progress(f"{run.grid.label(i)}: {counted(len(minima), 'minimum', 'minima')}{limit}")
            measured.append([_measured(networks, minimum) for minimum in minima[-(last or len(minima) or 1) :]])
        starts = [start_of(run, i, abstract) for i in configs]
        alone = [_of_config(networks, *each, points) for each in zip(measured, starts, strict=True)]
        first, seeds = run.first_step, _next_seeds(run, configs)
        of_seeds = [_between_seeds(networks, [measured[k] for k in places], points, first) for places in seeds]
    both = [xr.merge(pair, join="outer", compat="no_conflicts") for pair in zip(alone, of_seeds, strict=True)]
    compared = xr.concat(
        both, "config", fill_value={"reason": ""}, data_vars="all", coords="minimal", compat="override", join="outer",
    )  # fmt: skip
    compared = compared.drop_vars(["minimum", "other_minimum", "pair"])
    compared["reason"] = compared.reason.astype(str)
    compared = load.with_metadata(compared, run, configs)
    for array in compared.data_vars.values():
        if array.attrs.get("units") == "nats" and run.config.loss == "squared":
            array.attrs["units"] = "1"
    compared.step.attrs["long_name"] = "updates made at the minimum"
    compared["there"] = ("config", [len(minima) for minima in saved])
    compared.attrs = {
        "run": run.path.resolve().name, "source": source, "images": networks.images, "loss": run.config.loss,
        "statistics": f"re-estimated over {networks.images} of {len(run.config.data.labels)} training images",
    }  # fmt: skip
    return compared


def _measured(networks: Networks, minimum: SavedState) -> Measured:
    params, labels = minimum.params, networks.task.labels
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    invariant = [leaf for leaf, mark in zip(jax.tree.leaves(params), labels, strict=True) if mark]
    squares = [np.sum(np.square(leaf, dtype=np.float64)) for leaf in invariant]
    norm = math.sqrt(float(np.sum(squares))) if finite else math.nan
    if not finite or norm == 0:
        return Measured(*minimum, norm, None)
    unit = on_sphere(params, labels)
    return Measured(*minimum._replace(params=unit), norm, networks.quality(unit, minimum.statistics))


def _of_config(networks: Networks, minima: Sequence[Measured], start: Params | None, points: int) -> xr.Dataset:
    """All numbers of one configuration."""
    labels, count = networks.task.labels, len(minima)
    numbers = np.full((count, len(NUMBERS)), np.nan)
    for k, minimum in enumerate(minima):
        numbers[k, :3] = minimum.step, np.nan if minimum.ended is None else minimum.ended, minimum.weight_norm
        if minimum.quality:
            numbers[k, 3] = np.nan if start is None else cosine(minimum.params, start, labels)
            numbers[k, 4:] = minimum.quality[:4]
    variables: dict[str, Any] = {name: ("minimum", numbers[:, k]) for k, name in enumerate(NUMBERS)}
    reasons = ["" if minimum.quality else "weights are not finite" for minimum in minima]
    variables["reason"] = ("minimum", np.array(reasons, object))
    apart = np.array([_apart(a, b, labels) for a in minima for b in minima]).reshape(count, count, 2)
    dims = ("minimum", "other_minimum")
    variables |= {name: (dims, apart[..., k]) for k, name in enumerate(("cosine", "disagreement"))}
    finished, together = of_ended(minima), np.full((count, len(TOGETHER)), np.nan)
    for k in range(len(finished)):
        together[k] = _with_average(networks, finished[-k - 1 :])
    variables |= {name: ("members", together[:, k]) for k, name in enumerate(TOGETHER)}
    pairs = [_paths(networks, a, b, points) for a, b in itertools.pairwise(minima)]
    paths = np.array(pairs).reshape(-1, len(PATHS), 2, points)
    dims = ("pair", "path", "point")
    variables["barrier"] = (dims[:2], _barriers(paths))
    variables |= {name: (dims, paths[:, :, k]) for k, name in enumerate(("path_train_loss", "path_test_error"))}
    places = np.arange(count)
    coords = {"minimum": places, "other_minimum": places, "members": places + 1, "pair": places[:-1]}
    return xr.Dataset(variables, {**coords, "path": list(PATHS), "point": np.linspace(0, 1, points)})


def of_ended(minima: Sequence[Measured]) -> Sequence[Measured]:
    """Those whose period had ended; where there are none, all: where the run ends, a period may have just begun."""
    return [minimum for minimum in minima if minimum.ended is not None] or minima


def _apart(a: Measured | None, b: Measured | None, labels: Any) -> tuple[float, float]:
    """Cosine and disagreement; NaN where one is missing or not finite."""
    if a is None or b is None or a.quality is None or b.quality is None:
        return math.nan, math.nan
    return cosine(a.params, b.params, labels), disagreement(a.quality.test_outputs, b.quality.test_outputs)


def _paths(networks: Networks, a: Measured | None, b: Measured | None, points: int) -> np.ndarray:
    """Training loss and test error on each kind of path ``(path, 2, point)``; NaN where an end has no quality."""
    numbers = np.full((len(PATHS), 2, points), np.nan)
    if a and b and a.quality and b.quality:
        for k, path in enumerate(PATHS.values()):
            for j, t in enumerate(np.linspace(0, 1, points)):
                quality = networks.quality(path(a.params, b.params, t, networks.task.labels), a.statistics)
                numbers[k, :, j] = quality.train_loss, quality.test_error
    return numbers


def _barriers(paths: np.ndarray) -> np.ndarray:
    """The barrier of the training loss of each path ``(..., 2, point)``."""
    losses = paths[..., 0, :]
    return np.array([barrier(losses[place]) for place in np.ndindex(losses.shape[:-1])]).reshape(losses.shape[:-1])


def _ensemble(networks: Networks, members: Sequence[Measured | None]) -> tuple[float, float]:
    """Test loss and error of an ensemble; NaN where a member is missing or not finite."""
    outputs = [member.quality.test_outputs for member in members if member and member.quality]
    return networks.together(outputs) if len(outputs) == len(members) else (math.nan, math.nan)


def _with_average(networks: Networks, members: Sequence[Measured]) -> list[float]:
    """Of some minima as an ensemble and as an average, the numbers of `TOGETHER`; NaN where one is not finite."""
    if not all(member.quality for member in members):
        return [math.nan] * len(TOGETHER)
    unit = average([member.params for member in members], networks.task.labels)
    mean = networks.quality(unit, members[0].statistics)
    return [*_ensemble(networks, members), mean.train_loss, mean.test_loss, mean.test_error]


def _next_seeds(run: load.LoadedRun, configs: Sequence[int]) -> list[list[int]]:
    """For each configuration its position, and those of what differs in the seed alone, from the next seed on."""
    groups: dict[tuple[float, ...], list[int]] = {}
    keys = [tuple(float(run.grid.coords[name][i]) for name in AXES if name != "seed") for i in configs]
    seeds = run.grid.seeds[list(configs)]
    for place in sorted(range(len(configs)), key=lambda place: seeds[place]):
        groups.setdefault(keys[place], []).append(place)
    return [(g := groups[key])[g.index(k) :] + g[: g.index(k)] for k, key in enumerate(keys)]


def _between_seeds(networks: Networks, seeds: Sequence[Sequence[Measured]], points: int, first: int) -> xr.Dataset:
    """The last minimum of the first of some seeds against that of the next, and ensembles of several seeds."""
    minima = [of_ended(of_seed) for of_seed in seeds]
    finals = [of_seed[-1] if of_seed and of_seed[-1].quality else None for of_seed in minima]
    this, following = finals[0], finals[1] if len(finals) > 1 else None
    ensembles = []
    for k in range(1, len(seeds) + 1):
        if this is None or len(seeds) < 2:
            break
        until = first + (this.step - first) / k
        early = [next((m for m in reversed(of_seed) if m.step <= until and m.quality), None) for of_seed in minima[:k]]
        ensembles.append([*_ensemble(networks, finals[:k]), *_ensemble(networks, early)])
    names = [f"{of}_ensemble_{name}" for of in ("seed", "equal_cost") for name in ("loss", "error")]
    table = np.array(ensembles, np.float64).reshape(-1, len(names))
    variables: dict[str, Any] = {name: ("members", table[:, k]) for k, name in enumerate(names)}
    variables["seed_barrier"] = ("path", _barriers(_paths(networks, this, following, points)))
    variables["seed_cosine"], variables["seed_disagreement"] = _apart(this, following, networks.task.labels)
    return xr.Dataset(variables, {"members": np.arange(1, len(table) + 1)})
