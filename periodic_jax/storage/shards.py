"""A grid that was cut into shards. Each shard is an ordinary run directory, and all of them open as one Dataset.

DIR/shards.json         the whole configuration and the number of shards, the same whoever writes it first
   /shards/0 ... N-1    run directories, of those that were begun
"""

import contextlib
import errno
import json
import logging
import os
import reprlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from periodic_jax.core.errors import (
    ConfigError,
    CorruptedRunError,
    UnreadableError,
    as_corruption,
    failed_read,
    first_line,
)
from periodic_jax.core.files import PARTIAL, read_json
from periodic_jax.core.grid import AXES, DEFAULTS, LATER_AXES, RUN_AXES, SweepGrid
from periodic_jax.storage.checksums import seal
from periodic_jax.storage.run_directory import CONFIG_FILE, SHARDS, SHARDS_FILE, is_sharded, manifest_error
from periodic_jax.storage.schema import FORMAT, describe

LOG = logging.getLogger("periodic_jax")
REMAKE = "remove it, and give the sweep's command again: it keeps the shards"


class Shards(NamedTuple):
    """What shards.json declares."""

    path: Path
    number: int
    manifest: dict[str, Any]  # as config.json: `config` and `data` of the whole grid
    grid: SweepGrid

    def folder(self, index: int) -> Path:
        """The run directory of a shard."""
        return self.path / SHARDS / str(index)

    def members(self) -> list[np.ndarray]:
        """The configurations of each shard, as places in the whole grid."""
        return self.grid.members(self.number)


def read_shards(path: str | os.PathLike[str]) -> Shards | None:
    """What a folder's shards.json declares; None where there is none.

    Raises:
        CorruptedRunError: it is corrupted, or there are links among its folders, which could lead out of them.
        UnreadableError: it cannot be read now.
    """
    path = Path(path)
    if not is_sharded(path):
        return None
    file = path / SHARDS_FILE
    for place in (file, path / SHARDS, *(path / SHARDS).glob("*")):
        if place.is_symlink():
            raise CorruptedRunError(place, "it is a link, which could lead anywhere", "replace it by what it should be")
    try:
        content = read_json(file)
        if reason := manifest_error(content):
            raise ValueError(reason)
        recorded = {name: [DEFAULTS[name]] for name in LATER_AXES} | content["config"]
        axes = {name: recorded[name] for name in RUN_AXES} | {"schedule_every": content["schedule_every"]}
        grid = SweepGrid.declared(axes, recorded.get("points", ()))
        count = content["config"]["shards"]
        if type(count) is not int or not 1 <= count <= len(grid):
            raise ValueError(f"{reprlib.repr(count)} shards of {len(grid)} configurations")
        return Shards(path, count, {"config": content["config"], "data": content["data"]}, grid)
    except OSError as error:
        if reason := failed_read(error):
            raise UnreadableError(file, reason) from None
        raise CorruptedRunError(file, first_line(error), REMAKE) from None
    except (ConfigError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptedRunError(file, first_line(error), REMAKE) from None


def write_shards(path: Path, manifest: Mapping[str, Any], schedule_every: float) -> None:
    """Write shards.json, unless it is there. The first of several processes wins; readers never see half of it.

    Args:
        path: an existing folder.
        manifest: `config` and `data` of the whole grid, as config.json has them.
        schedule_every: the axis that is not among the settings.

    Raises:
        OSError: it cannot be written.
    """
    content = seal({"format": FORMAT, **manifest, "schedule_every": schedule_every})
    draft = path / f"{SHARDS_FILE}.{secrets.token_hex(4)}{PARTIAL}"  # several processes write at once
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path / SHARDS_FILE)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if not (path / SHARDS_FILE).exists():  # no hard links here: the last one wins, and is compared after
                draft.replace(path / SHARDS_FILE)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def join_shards(shards: Shards, parts: Mapping[int, xr.Dataset], members: Sequence[np.ndarray]) -> xr.Dataset:
    """The flat Datasets of shards as one over the whole grid. Nothing is read before it is used.

    Args:
        shards: what shards.json declares.
        parts: of each shard that was begun; all others are NaN.
        members: `Shards.members`.

    Returns:
        A Dataset as `storage.reader.open_run` gives flat. A quantity of a shard that cannot be read, since it is
        corrupted, is NaN and logged.
    """
    coords = {name: (column, parts[min(parts)][name].attrs) for name, column in shards.grid.coords.items()}
    return _join({index: (part, members[index]) for index, part in parts.items()}, coords, shards.grid.swept)


def join_branches(parts: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """The flat Datasets of branches as one, with a coordinate ``branch_step``. Nothing is read before it is used.

    Args:
        parts: by the step at which each begins, ascending; before it all is NaN.
    """
    ends = np.cumsum([part.sizes["config"] for part in parts.values()])
    placed = {
        step: (part, np.arange(end - part.sizes["config"], end))
        for (step, part), end in zip(parts.items(), ends, strict=True)
    }
    coords = {
        name: (np.concatenate([part[name].values for part in parts.values()]), parts[min(parts)][name].attrs)
        for name in AXES
    }
    starts = np.repeat([*parts], [part.sizes["config"] for part in parts.values()])
    coords["branch_step"] = starts, describe("branch_step").attributes
    swept = list(dict.fromkeys(name for part in parts.values() for name in part.attrs["swept"]))
    return _join(placed, coords, ["branch_step"] * (len(parts) > 1) + swept)


def _join(
    parts: Mapping[int, tuple[xr.Dataset, np.ndarray]],
    configs: Mapping[str, tuple[np.ndarray, Mapping[str, Any]]],
    swept: Sequence[str],
) -> xr.Dataset:
    """Flat Datasets as one.

    Args:
        parts: by number, each with its configurations, as places in the whole.
        configs: coordinates along them, with attributes.
        swept: the axes of the whole.
    """
    longest = max((part for part, _ in parts.values()), key=lambda part: part.sizes["step"])
    evaluated, recorded = (
        np.unique(np.concatenate([part[dim].values for part, _ in parts.values()])) for dim in ("eval_step", "step")
    )
    number = len(next(iter(configs.values()))[0])
    lengths = {**longest.sizes, "config": number, "eval_step": len(evaluated), "step": len(recorded)}
    opened = []
    for index, (dataset, members) in parts.items():
        places = {"config": members, "eval_step": np.searchsorted(evaluated, dataset.eval_step.values)}
        places["step"] = np.searchsorted(recorded, dataset.step.values)
        opened.append(Part(dataset, places, set(), index))
    variables = {}
    for name, array in longest.data_vars.items():
        having = [part for part in opened if name in part.dataset]
        shape = tuple(lengths[str(dim)] for dim in array.dims)
        joined = indexing.LazilyIndexedArray(_Joined(str(name), list(map(str, array.dims)), shape, array.dtype, having))
        variables[name] = xr.Variable(array.dims, joined, array.attrs)
    coords: dict[Any, Any] = {name: xr.Variable("config", *column) for name, column in configs.items()}
    for name, values in (("step", recorded), ("eval_step", evaluated)):
        coords[name] = (name, values, longest[name].attrs)
    if "layer" in longest.coords:
        coords["layer"] = longest.layer.variable
    return xr.Dataset(variables, coords, {**longest.attrs, "swept": list(swept)})


def check_members(part: xr.Dataset, shards: Shards, index: int, members: np.ndarray) -> None:
    """Refuse a shard of another grid in this one's place.

    Raises:
        CorruptedRunError: its configurations are not those that shards.json gives it.
    """
    if any(not np.array_equal(part[name].values, column[members]) for name, column in shards.grid.coords.items()):
        reason = f"its configurations are not those of shard {index} in {SHARDS_FILE}"
        raise CorruptedRunError(shards.folder(index) / CONFIG_FILE, reason, "remove the shard, and train it again")


class Part(NamedTuple):
    """A shard, and where its entries are in the whole."""

    dataset: xr.Dataset
    places: dict[str, np.ndarray]  # along dimensions in which it is not just the beginning of the whole
    corrupted: set[str]  # quantities of which that was logged
    shard: int

    def local(self, dim: str, length: int) -> np.ndarray:
        """For each entry of the whole along a dimension, its place in the shard, or -1."""
        inside = np.full(length, -1)
        here = self.places.get(dim, np.arange(self.dataset.sizes[dim]))
        inside[here] = np.arange(len(here))
        return inside

    def read(self, name: str, chosen: Mapping[str, Any]) -> np.ndarray | None:
        """Some values of a quantity; None where they are corrupted.

        Raises:
            UnreadableError: they cannot be read now.
        """
        try:
            with as_corruption(name, ""):
                return np.asarray(self.dataset[name].isel(chosen).values)
        except CorruptedRunError as error:
            if name not in self.corrupted:
                LOG.warning("%s of shard %d is left out: %s", name, self.shard, error)
                self.corrupted.add(name)
            return None


class _Joined(BackendArray):
    """One quantity of all shards, read from them when it is indexed."""

    def __init__(self, name: str, dims: Sequence[str], shape: tuple[int, ...], dtype: Any, opened: list[Part]):
        self.name, self.dims, self.shape, self.dtype, self._opened = name, dims, shape, np.dtype(dtype), opened

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        wanted = [np.atleast_1d(np.arange(length)[index]) for length, index in zip(self.shape, key, strict=True)]
        whole = np.full([len(places) for places in wanted], np.nan, self.dtype)
        for part in self._opened:
            inside = [
                part.local(dim, length)[places]
                for dim, length, places in zip(self.dims, self.shape, wanted, strict=True)
            ]
            there = [np.flatnonzero(local >= 0) for local in inside]
            if all(map(len, there)):
                chosen = {dim: as_slice(local[at]) for dim, local, at in zip(self.dims, inside, there, strict=True)}
                values = part.read(self.name, chosen)
                if values is not None:
                    whole[np.ix_(*there)] = values
        return whole[tuple(0 if np.ndim(index) == 0 and not isinstance(index, slice) else slice(None) for index in key)]


def as_slice(places: np.ndarray) -> slice | np.ndarray:
    """Ascending neighbours as a slice, which is read much faster; anything else as it is.

    Example:
        >>> as_slice(np.array([2, 3, 4])), as_slice(np.array([2, 4]))
        (slice(2, 5, None), array([2, 4]))
    """
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if np.array_equal(places, np.arange(first, last + 1)) else places
