"""The minima of the periods of a run, compared: quality, angles, paths between them, ensembles, weight averages.

What can be measured of networks is in `landscape.networks`; here it is measured of the minima of each configuration.
"""

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
from periodic_jax.storage.run_directory import first_step, read_config
from periodic_jax.storage.schema import describe
from periodic_jax.training import xla

DIMS = {
    "cosine": ("config", "minimum", "other_minimum"),
    "disagreement": ("config", "minimum", "other_minimum"),
    "barrier": ("config", "pair", "path"),
    "seed_barrier": ("config", "path"),
    "path_train_loss": ("config", "pair", "path", "point"),
    "path_test_error": ("config", "pair", "path", "point"),
}
BY_MINIMUM = ("step", "ended", "reason", "weight_norm", "cosine_to_start", *Quality._fields[:4])
BY_MEMBERS = (
    "ensemble_loss", "ensemble_error", "average_train_loss", "average_test_loss", "average_test_error",
    "seed_ensemble_loss", "seed_ensemble_error", "equal_cost_ensemble_loss", "equal_cost_ensemble_error",
)  # fmt: skip


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
        outline = abstract_state(run)
        if not has_scale_invariant(outline.task.model):
            raise ConfigError("run directory", path, "a network with scale-invariant weights")
        source, found = minima_of(run, rows, outline)
        networks = Networks(outline.task, run.config.data, images=images)
        kept: list[list[Measured]] = []
        for i, mine in zip(rows, found, strict=True):
            progress(
                f"{run.grid.label(i)}: {len(mine)} minima" + ("" if last is None else f", the last {last} at most")
            )
            kept.append([_measured(networks, *one) for one in mine[-(last or len(mine) or 1) :]])
        columns = [
            _of_config(networks, mine, start_of(run, i, outline), points) for i, mine in zip(rows, kept, strict=True)
        ]
        for group in _groups(run, rows):
            _between_seeds(networks, group, kept, columns, points, first_step(read_config(path)))
        number = networks.images
    attributes = {
        "run": run.path.resolve().name, "source": source, "images": number, "loss": run.config.loss,
        "statistics": f"re-estimated over {number} of {len(run.config.data.labels)} training images",
    }  # fmt: skip
    return _assembled(run, rows, [len(mine) for mine in found], columns, points, attributes)


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


def _of_config(networks: Networks, mine: Sequence[Measured], start: Params | None, points: int) -> dict[str, Any]:
    """All numbers of one configuration, each as an array over its own minima."""
    labels, count = networks.task.labels, len(mine)
    sound = [one.quality is not None for one in mine]
    told: dict[str, Any] = {name: np.full(count, np.nan) for name in BY_MINIMUM if name != "reason"}
    told["reason"] = np.array(["" if one else "weights are not finite" for one in sound], dtype=object)
    told |= {name: np.full((count, count), np.nan) for name in ("cosine", "disagreement")}
    told |= {name: np.full(count, np.nan) for name in BY_MEMBERS}
    told["barrier"] = np.full((max(count - 1, 0), len(PATHS)), np.nan)
    told |= {
        n: np.full((max(count - 1, 0), len(PATHS), points), np.nan) for n in ("path_train_loss", "path_test_error")
    }
    told["seed_barrier"] = np.full(len(PATHS), np.nan)
    told |= dict.fromkeys(("seed_cosine", "seed_disagreement"), np.nan)
    for k, one in enumerate(mine):
        told["step"][k], told["weight_norm"][k] = one.step, one.weight_norm
        told["ended"][k] = np.nan if one.ended is None else one.ended
        if one.quality is None:
            continue
        for name in Quality._fields[:4]:
            told[name][k] = getattr(one.quality, name)
        if start is not None:
            told["cosine_to_start"][k] = cosine(one.params, start, labels)
        for j in range(count):
            if (other := mine[j].quality) is not None:
                told["cosine"][k, j] = cosine(one.params, mine[j].params, labels)
                told["disagreement"][k, j] = disagreement(one.quality.test_outputs, other.test_outputs)
        if k and sound[k - 1]:
            paths = _paths(networks, mine[k - 1], one, points)
            told["barrier"][k - 1], told["path_train_loss"][k - 1], told["path_test_error"][k - 1] = paths
    finished = of_ended(mine)
    for k in range(1, len(finished) + 1):
        if all(one.quality is not None for one in finished[-k:]):
            _with_members(networks, finished[-k:], k - 1, told)
    return told


def of_ended(mine: Sequence[Measured]) -> Sequence[Measured]:
    """Those whose period had ended; where there are none, all: where the run ends, a period may have just begun."""
    return [one for one in mine if one.ended is not None] or mine


def _paths(networks: Networks, a: Measured, b: Measured, points: int) -> tuple[list[float], list[Any], list[Any]]:
    """Barrier, training losses and test errors of each kind of path between two minima."""
    barriers, losses, errors = [], [], []
    for path in PATHS.values():
        at = [path(a.params, b.params, t, networks.task.labels) for t in np.linspace(0, 1, points)]
        found = [networks.quality(params, a.statistics) for params in at]
        losses.append([one.train_loss for one in found])
        errors.append([one.test_error for one in found])
        barriers.append(barrier(np.array(losses[-1])))
    return barriers, losses, errors


def _with_members(networks: Networks, members: Sequence[Measured], k: int, told: dict[str, Any]) -> None:
    """An ensemble and an average of some minima."""
    outputs = [one.quality.test_outputs for one in members if one.quality]
    told["ensemble_loss"][k], told["ensemble_error"][k] = networks.together(outputs)
    mean = networks.quality(average([one.params for one in members], networks.task.labels), members[0].statistics)
    for name in ("train_loss", "test_loss", "test_error"):
        told[f"average_{name}"][k] = getattr(mean, name)


def _groups(run: LoadedRun, rows: Sequence[int]) -> list[list[int]]:
    """Positions among the chosen configurations that differ in the seed alone, in the order of the seeds."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for place, i in enumerate(rows):
        groups.setdefault(tuple(float(run.grid.coords[name][i]) for name in AXES if name != "seed"), []).append(place)
    seeds = run.grid.seeds[list(rows)]
    return [sorted(group, key=lambda place: seeds[place]) for group in groups.values() if len(group) > 1]


def _between_seeds(
    networks: Networks, group: Sequence[int], kept: Sequence[Sequence[Measured]], columns: list[dict[str, Any]],
    points: int, begun: int,
) -> None:  # fmt: skip
    """Compare the last minimum of each seed with that of the next, and make ensembles of several seeds."""
    for place, at in enumerate(group):
        in_order = [*group[place:], *group[:place]]
        minima = [of_ended(kept[i]) for i in in_order]
        finals = [mine[-1] if mine and mine[-1].quality else None for mine in minima]
        told = columns[at]
        if (one := finals[0]) is None or one.quality is None:
            continue
        if (other := finals[1]) is not None and other.quality is not None:
            told["seed_cosine"] = cosine(one.params, other.params, networks.task.labels)
            told["seed_disagreement"] = disagreement(one.quality.test_outputs, other.quality.test_outputs)
            told["seed_barrier"] = np.array(_paths(networks, one, other, points)[0])
        more = max(len(group), len(kept[at]))
        for name in BY_MEMBERS[5:]:
            told[name] = np.full(more, np.nan)
        for k in range(1, len(group) + 1):
            until = begun + (one.step - begun) / k
            early = [next((m for m in reversed(mine) if m.step <= until and m.quality), None) for mine in minima[:k]]
            for name, chosen in (("seed", finals[:k]), ("equal_cost", early)):
                outputs = [m.quality.test_outputs for m in chosen if m is not None and m.quality]
                if len(outputs) == k:
                    loss, error = networks.together(outputs)
                    told[f"{name}_ensemble_loss"][k - 1], told[f"{name}_ensemble_error"][k - 1] = loss, error


def _assembled(
    run: LoadedRun, rows: Sequence[int], there: Sequence[int], columns: Sequence[dict[str, Any]], points: int,
    attributes: dict[str, Any],
) -> xr.Dataset:  # fmt: skip
    """All configurations as one Dataset, the shorter ones filled up with NaN."""
    variables: dict[str, Any] = {}
    for name in columns[0]:
        values = [np.asarray(column[name]) for column in columns]
        shape = tuple(max(value.shape[axis] for value in values) for axis in range(values[0].ndim))
        words = values[0].dtype == object
        filled = np.full((len(values), *shape), "" if words else np.nan, object if words else np.float64)
        for k, value in enumerate(values):
            filled[(k, *map(slice, value.shape))] = value
        usual = ("config", "minimum") if name in BY_MINIMUM else ("config", "members")
        dims = DIMS.get(name, usual if len(shape) else ("config",))
        variables[name] = (dims, filled)
    members = max((values.shape[1] for dims, values in variables.values() if dims[1:] == ("members",)), default=0)
    named = {}
    for name, (dims, values) in variables.items():
        if dims[1:] == ("members",):
            values = np.pad(values, ((0, 0), (0, members - values.shape[1])), constant_values=np.nan)
        about = describe(name).attributes
        if name == "step":
            about["long_name"] = "updates made at the minimum"
        if about["units"] == "nats" and run.config.loss == "squared":
            about["units"] = "1"
        words = values.dtype == object
        about = {} if words else about
        named[name] = (dims, values.astype(str) if words else values, about)
    coords: dict[str, Any] = {name: ("config", run.grid.coords[name][list(rows)]) for name in AXES}
    coords |= {"path": list(PATHS), "point": np.linspace(0, 1, points), "members": np.arange(1, members + 1)}
    return xr.Dataset({**named, "there": ("config", np.asarray(there, np.int64))}, coords, attributes)
