"""Configurations that are no product: the rows of a table, or a Sobol sequence. No JAX."""

import csv
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from periodic_jax.core.errors import ConfigError, DataFileError, first_line
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import RUN_AXES, SEED_AXES, axis_rule, checked_values

Points = dict[str, tuple[float, ...]]  # for each axis its value in every configuration
MOST_DRAWN = 10_000


class SobolRange(NamedTuple):
    """An axis that is drawn."""

    first: float
    last: float
    number: int
    log: bool = False  # evenly in the logarithm


def as_points(table: Any) -> Points:
    """The columns of a table of configurations.

    Args:
        table: the path of a csv file with a row for each configuration and a column for each axis; or a mapping from
            axes to sequences of numbers, or a DataFrame.

    Returns:
        The values by axis. Their lengths, and equal rows, are checked where a grid is made of them.

    Raises:
        ConfigError: no column, one that is no axis, or a number that its axis does not accept.
        DataFileError: no csv file, or a cell that holds no number.

    Example:
        >>> as_points({"lr": [0.1, 1.0], "seed": [0, 0]})
        {'lr': (0.1, 1.0), 'seed': (0, 0)}
    """
    try:
        columns = _read(table) if isinstance(table, str | os.PathLike) else {name: table[name] for name in table}
    except (TypeError, KeyError, IndexError):
        given = type(table).__name__
        raise ConfigError("--points", given, "a csv file, or a mapping of axes to numbers") from None
    if not columns:
        raise ConfigError("--points", "no column", "columns among " + ", ".join(RUN_AXES))
    points: Points = {}
    for name, values in columns.items():
        if name not in RUN_AXES:
            raise ConfigError("--points", f"the column {name}", "columns among " + ", ".join(RUN_AXES))
        try:
            numbers = checked_values(name, np.asarray(values))
        except ConfigError as error:
            raise ConfigError("--points", f"{name}={error.value}", error.accepted) from None
        points[name] = tuple(map(int, numbers) if name in SEED_AXES else numbers)
    return points


def _read(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """The columns of a csv file as numbers."""
    import pandas as pd

    wanted = "a csv file with a row for each configuration and a column for each axis"
    try:
        with open(path, encoding="utf-8-sig") as file:  # not by its name, which pandas might take for an address
            names = [name.strip() for name in next(csv.reader(file, skipinitialspace=True), [])]
            file.seek(0)
            # As text: a cell that is no number must not become one, or be lost.
            table = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError, OverflowError, csv.Error) as error:
        raise DataFileError(path, first_line(error), wanted) from None
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataFileError(path, f"the column {min(twice)} given twice", wanted)
    if table.empty:
        raise DataFileError(path, "no configuration", wanted)
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much in each row for names of rows
        raise DataFileError(path, "rows of more cells than there are columns", wanted)
    return {str(name).strip(): _numbers(path, str(name).strip(), table[name].tolist()) for name in table}


def _numbers(path: str | os.PathLike[str], name: str, cells: list[Any]) -> list[float]:
    numbers = list[float]()
    for row, cell in enumerate(cells, 1):
        try:
            numbers.append(float(cell))  # not by pandas, whose numbers may be off in the last digit
        except ValueError:
            numbers.append(math.nan)
        if not math.isfinite(numbers[-1]):
            shown = repr(cell) if isinstance(cell, str) and cell.strip() else "no number"
            raise DataFileError(path, f"{shown} in row {row} of column {name}", "a finite number in each cell")
    return numbers


def sobol_points(ranges: Mapping[str, SobolRange], seed: int = 0) -> Points:
    r"""Points of a scrambled Sobol sequence with a dimension for each axis: they fill the box of the ranges evenly.

    $$ x_{ij} = a_j + (b_j - a_j)\, u_{ij}, \qquad \text{or} \quad x_{ij} = a_j (b_j / a_j)^{u_{ij}} $$

    with $u_i \in [0, 1)^d$ the sequence's i-th point.

    Args:
        ranges: of each axis; all of the same count.
        seed: of the scrambling.

    Returns:
        The values by axis, of 15 digits.

    Raises:
        ConfigError: different counts, no count from 2 to 10,000, an end that the axis does not accept, or one not above
            0 on a logarithmic axis; an axis that is a seed.

    Example:
        >>> points = sobol_points({"lr": SobolRange(1e-3, 1.0, 4, log=True), "momentum": SobolRange(0.0, 0.9, 4)})
        >>> len(points["lr"]), all(1e-3 <= lr <= 1 for lr in points["lr"])
        (4, True)

    Source: Sobol, On the distribution of points in a cube, 1967; the scrambling: Owen, 1998.
    """
    from scipy.stats import qmc

    for name, (first, last, count, log) in ranges.items():
        wanted, accepts = axis_rule(name)
        shown = f"sobol:{first:g}:{last:g}:{count}" + (":log" if log else "")
        if name in SEED_AXES:
            raise ConfigError(flag_of(name), shown, wanted)
        if not 2 <= count <= MOST_DRAWN:
            raise ConfigError(flag_of(name), shown, f"a COUNT from 2 to {MOST_DRAWN}")
        if not math.isfinite(last - first) or first == last or (log and min(first, last) <= 0):
            raise ConfigError(flag_of(name), shown, "two different ends" + (" above 0" if log else ""))
        if not (accepts(first) and accepts(last)):
            raise ConfigError(flag_of(name), shown, wanted)
    counts = {name: span.number for name, span in ranges.items()}
    if len(set(counts.values())) != 1:
        given = ", ".join(f"{count} of {flag_of(name)}" for name, count in counts.items())
        raise ConfigError("sobol axes", given, "the same count for all: they are drawn together")
    count = next(iter(counts.values()))
    # A power of 2, as the sequence is balanced at these alone, and of it the beginning.
    generator: Any = {"seed": np.random.default_rng(seed)}  # called rng from SciPy 1.15 on, which takes both
    unit = qmc.Sobol(len(ranges), **generator).random_base2((count - 1).bit_length())[:count]
    points: Points = {}
    for (name, (first, last, _, log)), u in zip(ranges.items(), unit.T, strict=True):
        values = first * (last / first) ** u if log else first + (last - first) * u
        low, high = sorted((first, last))
        points[name] = tuple(float(f"{value:.15g}") for value in np.clip(values, low, high))
    return points
