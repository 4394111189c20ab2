"""Hyperparameters of one configuration, and the grid of configurations of a sweep. NumPy only."""

import itertools
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.limits import MOST_CONFIGS


class HParams(NamedTuple):
    """The numbers of one configuration that a train step takes as traced arguments, so that all of them can be swept.

    Each field is a scalar, or an array with the configuration axis first in a stacked tree.

    Example:
        >>> HParams(lr=0.1, weight_decay=1e-3).shrink
        0.9999
    """

    lr: Any = 0.1  # η, learning rate of the scale-invariant weights
    weight_decay: Any = 0.0  # λ; coupled (L2): λx is added to the gradient, or decoupled: ηλx is taken off the weights
    momentum: Any = 0.0  # μ of SGD, in [0, 1)
    noninvariant_lr: Any = 0.0  # learning rate of all other weights; 0 freezes them, negative: the same as the rest
    elr: Any = 0.0  # fixed effective learning rate: lr = elr ρ²; 0: off, lr holds
    fixed_norm: Any = 0.0  # ρ after each step; 0: free, negative: the initial norm
    schedule_end: Any = 0.0  # updates after which a learning-rate schedule is done
    schedule_factor: Any = 10.0  # p, divisor of the schedules c and d
    schedule_every: Any = 1.0  # updates between changes of a schedule: 1, or those of an epoch
    beta1: Any = 0.9  # β1 of Adam and Lion: how much of the average of gradients stays, in [0, 1)
    beta2: Any = 0.999  # β2: of Adam's average of squared gradients, of Lion's average of gradients, in [0, 1)
    eps: Any = 1e-8  # ε of Adam, added to the root of the averaged squares

    @property
    def shrink(self) -> Any:
        """The factor a = 1 - ηλ, the factor by which one plain SGD step shrinks the weights."""
        return 1 - self.lr * self.weight_decay


# What each axis takes, in words and as a test; the seeds alone are not fields of HParams.
_OWN_SEED = ("whole numbers from 0 to 4294967295, or -1 for that of --seed", lambda v: -1 <= v < 2**32 and v == int(v))
_ACCEPTED: dict[str, tuple[str, Any]] = {
    "lr": ("finite numbers above 0", lambda v: v > 0),
    "weight_decay": ("finite numbers from 0", lambda v: v >= 0),
    "momentum": ("numbers from 0 to below 1", lambda v: 0 <= v < 1),
    "noninvariant_lr": ("finite numbers (0 freezes, negative: the same as lr)", lambda v: True),
    "elr": ("finite numbers from 0 (0: off)", lambda v: v >= 0),
    "fixed_norm": ("finite numbers (0: free, negative: the initial norm)", lambda v: True),
    "schedule_end": ("numbers of updates from 0 (0: the end of the run)", lambda v: v >= 0),
    "schedule_factor": ("finite numbers above 0", lambda v: v > 0),
    "schedule_every": ("numbers of updates from 1", lambda v: v >= 1),
    "beta1": ("numbers from 0 to below 1", lambda v: 0 <= v < 1),
    "beta2": ("numbers from 0 to below 1", lambda v: 0 <= v < 1),
    "eps": ("finite numbers above 0", lambda v: v > 0),
    "seed": ("whole numbers from 0 to 4294967295", lambda v: 0 <= v < 2**32 and v == int(v)),
    "init_seed": _OWN_SEED,
    "data_seed": _OWN_SEED,
    "head_seed": _OWN_SEED,
}
AXES = tuple(_ACCEPTED)
RUN_AXES = tuple(name for name in AXES if name != "schedule_every")  # those that a run is given
SEED_AXES = ("seed", "init_seed", "data_seed", "head_seed")
INITIAL_SEEDS = ("init_seed", "head_seed")  # without a part in what follows the start
DEFAULTS = {**HParams()._asdict(), **dict.fromkeys(SEED_AXES, -1), "seed": 0}  # of each axis
LATER_AXES = ("beta1", "beta2", "eps", *SEED_AXES[1:])  # which the first run directories lack, and had the defaults of


@dataclass(frozen=True)
class SweepGrid:
    """A flat list of configurations with the coordinates that name them.

    Attributes:
        coords: for each axis of `AXES`, a ``(configs,)`` array with its value in every configuration.
        swept: the axes given with more than one value, in the order given, of a product grid; empty otherwise.

    Example:
        >>> grid = SweepGrid.product(lr=[0.01, 0.1], weight_decay=[1e-3], seed=[0, 1])
        >>> len(grid), grid.swept
        (4, ('lr', 'seed'))
        >>> grid.hparams().lr
        array([0.01, 0.01, 0.1 , 0.1 ])
    """

    coords: Mapping[str, np.ndarray]
    swept: tuple[str, ...] = ()

    @staticmethod
    def product(**axes: float | Sequence[float] | np.ndarray) -> "SweepGrid":
        """All combinations of the given axes, the last axis varying fastest.

        Args:
            **axes: names of `AXES` with one value or a sequence of distinct values.

        Returns:
            The grid.

        Raises:
            ConfigError: an unknown axis, an empty one, a value outside what the axis accepts, a duplicate, lr x
                decay >= 1, or more than 100,000 combinations.
        """
        values = {name: checked_axis(name, given) for name, given in axes.items()}
        if (configs := math.prod(map(len, values.values()))) > MOST_CONFIGS:
            raise ConfigError("grid", f"{configs} configurations", f"at most {MOST_CONFIGS}")
        configurations = [dict(zip(values, numbers, strict=True)) for numbers in itertools.product(*values.values())]
        swept = tuple(name for name, given in values.items() if len(given) > 1)
        return SweepGrid(_coordinates(configurations), swept)

    @staticmethod
    def points(together: Sequence[str], **axes: float | Sequence[float] | np.ndarray) -> "SweepGrid":
        """A configuration for each place along axes that are given together: a list of points, and no product.

        Args:
            together: the axes that have a value for each configuration.
            **axes: names of `AXES`, all those ``together`` among them; of each other axis one value.

        Returns:
            The grid, in the order of the points.

        Raises:
            ConfigError: as `product`, or axes of different lengths, several values of another axis, or two equal
                points.

        Example:
            >>> grid = SweepGrid.points(("lr", "weight_decay"), lr=[0.1, 0.1, 1.0], weight_decay=[0.0, 1e-3, 1e-3])
            >>> len(grid), grid.label(1)
            (3, 'lr=0.1 weight_decay=0.001')
        """
        columns = {name: checked_values(name, axes.get(name, ())) for name in together}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1:
            given = ", ".join(f"{length} of {name}" for name, length in lengths.items()) or "none"
            raise ConfigError("--points", given, "as many values of each of its axes, and one at least")
        if (configs := next(iter(lengths.values()))) > MOST_CONFIGS:
            raise ConfigError("--points", f"{configs} configurations", f"at most {MOST_CONFIGS}")
        for name in axes.keys() - columns.keys():
            if len(values := checked_axis(name, axes[name])) > 1:
                shown = " ".join(f"{value:.15g}" for value in values[:5])
                raise UsageError(
                    flag_of(name), f"several values ({shown}) with points", "give one, or make it one of their axes"
                )
            columns[name] = values * configs
        rows = zip(*columns.values(), strict=True)
        grid = SweepGrid(_coordinates([dict(zip(columns, row, strict=True)) for row in rows]))
        return grid.checked_distinct("--points")

    @staticmethod
    def declared(axes: Mapping[str, Any], points: Sequence[str] = ()) -> "SweepGrid":
        """The grid of a run: all combinations of its axes, or where some of them are given together, its points."""
        return SweepGrid.points(points, **axes) if points else SweepGrid.product(**axes)

    @staticmethod
    def of(configurations: Iterable[Mapping[str, float]]) -> "SweepGrid":
        """Exactly the given configurations, each a mapping from names of `AXES` to numbers.

        Raises:
            ConfigError: as `product`, or no configuration at all, or two equal ones.
        """
        checked = [{name: _single(name, value) for name, value in given.items()} for given in configurations]
        if not checked:
            raise UsageError("configurations", "there is none", "give at least one")
        return SweepGrid(_coordinates(checked)).checked_distinct("configurations")

    def checked_distinct(self, argument: str) -> "SweepGrid":
        """The grid itself.

        Raises:
            ConfigError: two configurations are equal.
        """
        _, first, times = np.unique(np.stack([*self.coords.values()]), axis=1, return_index=True, return_counts=True)
        for i in first[times > 1]:
            raise ConfigError(argument, f"{self.label(i)} given twice", "each configuration once")
        return self

    def __len__(self) -> int:
        return len(self.coords["seed"])

    def hparams(self) -> HParams:
        """The traced numbers, each a float64 array ``(configs,)``."""
        return HParams(**{name: self.coords[name] for name in HParams._fields})

    @property
    def seeds(self) -> np.ndarray:
        """The seed of every configuration, uint32 ``(configs,)``."""
        return self.coords["seed"]

    def seeds_of(self, name: str) -> np.ndarray:
        """The seed of every configuration for one purpose, uint32 ``(configs,)``.

        Args:
            name: of `SEED_AXES`; one that is not given is that of all.

        Example:
            >>> SweepGrid.product(seed=[3, 4], data_seed=[-1, 7]).seeds_of("data_seed").tolist()
            [3, 7, 4, 7]
        """
        return np.where(self.coords[name] < 0, self.coords["seed"], self.coords[name]).astype(np.uint32)

    @property
    def has_own_head(self) -> bool:
        """Whether the head of some configuration has a seed of its own."""
        return bool((self.coords["head_seed"] >= 0).any())

    def initial_seeds(self) -> np.ndarray:
        """The seeds of the initial weights and of the head's, uint32 ``(configs, 2)``."""
        body, head = self.seeds_of("init_seed"), self.coords["head_seed"]
        return np.stack([body, np.where(head < 0, body, head).astype(np.uint32)], axis=1)

    def members(self, count: int) -> list[np.ndarray]:
        """The configurations of each of ``count`` shards, ascending: parts of equal size, or one less, in which those
        of a data seed, which share their mini-batches, stay together as far as that goes.

        Raises:
            ConfigError: there are fewer configurations than shards, or no shard.

        Example:
            >>> [part.tolist() for part in SweepGrid.product(lr=[0.1, 1.0], seed=[0, 1]).members(2)]
            [[0, 2], [1, 3]]
        """
        if not 1 <= count <= len(self):
            raise ConfigError(
                "--shards", count, f"a whole number from 1 to {len(self)}, as many as there are configurations"
            )
        return [np.sort(part) for part in np.array_split(np.argsort(self.seeds_of("data_seed"), kind="stable"), count)]

    def shard(self, index: int, count: int) -> "SweepGrid":
        """One of ``count`` shards; see `members`.

        Raises:
            ConfigError: as `members`, or there is no such shard.
        """
        if not 0 <= index < count:
            raise ConfigError("--shard", index, f"a whole number from 0 to {count - 1}, below --shards {count}")
        chosen = self.members(count)[index]
        return SweepGrid({name: column[chosen] for name, column in self.coords.items()}, self.swept)

    def label(self, index: int) -> str:
        """A short name of one configuration, of the axes that distinguish it."""
        differing = tuple(name for name in AXES if len(np.unique(self.coords[name])) > 1)
        names = self.swept or differing or ("lr", "weight_decay", "seed")
        return " ".join(f"{name}={self.coords[name][index]:.15g}" for name in names)


def axis_rule(name: str) -> tuple[str, Any]:
    """What an axis accepts, in English and as a test of one value."""
    if name not in _ACCEPTED:
        raise ConfigError("axis", name, "one of " + ", ".join(AXES))
    return _ACCEPTED[name]


def checked_axis(name: str, given: Any) -> list[float]:
    """The values of an axis as floats.

    Raises:
        ConfigError: a value that the axis does not accept, one that is given twice, or none.
    """
    values = checked_values(name, given)
    distinct, times = np.unique(values, return_counts=True)
    for value in distinct[times > 1]:
        raise ConfigError(flag_of(name), f"{value:.15g} given twice", "each value once")
    return values


def checked_values(name: str, given: Any) -> list[float]:
    """As `checked_axis`, where a value may come several times."""
    wanted, test = axis_rule(name)
    try:
        array = np.atleast_1d(np.asarray(given))
    except (TypeError, ValueError, OverflowError):  # ragged, or an integer beyond all floats
        raise ConfigError(flag_of(name), reprlib.repr(given), wanted) from None
    if array.size == 0:
        raise ConfigError(flag_of(name), "an empty axis", wanted)
    if array.ndim > 1 or array.dtype.kind not in "iuf":  # words, truth values, complex numbers and objects
        raise ConfigError(flag_of(name), reprlib.repr(given), wanted)
    values = [float(v) for v in array]
    for value in values:
        if not math.isfinite(value) or not test(value):
            raise ConfigError(flag_of(name), f"{value:.15g}", wanted)
    return values


def _single(name: str, given: Any) -> float:
    values = checked_axis(name, given)
    if len(values) > 1:
        raise ConfigError(flag_of(name), reprlib.repr(given), "one number in each configuration")
    return values[0]


def _coordinates(configurations: Sequence[Mapping[str, float]]) -> dict[str, np.ndarray]:
    coords: dict[str, np.ndarray] = {
        name: np.array([given.get(name, DEFAULTS[name]) for given in configurations], np.float64) for name in AXES
    }
    with np.errstate(over="ignore"):
        product = coords["lr"] * coords["weight_decay"]
    if (product >= 1).any():
        worst = int(np.argmax(product))
        pair = f"--lr {coords['lr'][worst]:g} with --weight-decay {coords['weight_decay'][worst]:g}"
        raise UsageError(pair, f"lr x weight decay is {product[worst]:g}", "give numbers whose product is below 1")
    kinds = {name: np.uint32 if name == "seed" else np.int64 for name in SEED_AXES}
    return coords | {name: coords[name].astype(kind) for name, kind in kinds.items()}
