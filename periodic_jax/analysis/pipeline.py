"""Everything the package can tell of a run, as one xarray Dataset: regimes, periods, theory, forecasts."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy import stats

from periodic_jax import dynamics
from periodic_jax.analysis.forecast import Forecast, ForecastOrigin, forecast, forecast_origin, references
from periodic_jax.analysis.periods import Cycles, Periods, cycles, detect_periods
from periodic_jax.analysis.regimes import BURN_IN, Regimes, classify_regimes
from periodic_jax.analysis.stability import before_onsets, threshold
from periodic_jax.analysis.theory_checks import ASSUMED, CHECKS, Theory, check
from periodic_jax.core import segments
from periodic_jax.core.grid import AXES
from periodic_jax.storage.reader import read
from periodic_jax.storage.schema import used_by

CURVES = used_by("analysis")  # the last one, radial leak, may be missing
MOST_IN_MEMORY = 2**30  # bytes of telemetry read at a time
INTERVAL = 0.95  # of a fitted slope
QUIET = 0.1  # rotation of a quiet fall over ln(ρ_max/ρ_min): gradients then prolong it by a tenth at most
FITS = ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected", "period_length")


class Slope(NamedTuple):
    """A straight line through logarithms."""

    slope: float
    low: float  # ends of the interval of level `INTERVAL`
    high: float
    intercept: float  # ln y where x is 1
    points: int


def analyze(dataset: xr.Dataset, *, predict: bool = False, most_in_memory: int = MOST_IN_MEMORY) -> xr.Dataset:
    """What each configuration of a run did, how long its periods are, and whether the theory held.

    Args:
        dataset: a run opened with ``open_run(path, flat=True)``; read block by block of configurations.
        predict: also forecast the next destabilisations, and those recorded from half-way down the fall before.
        most_in_memory: bytes of telemetry to read at a time.

    Returns:
        A Dataset over ``config``, with the hyperparameters as coordinates, and ``destabilisation``, ``period``,
        ``check`` and ``fit``. Steps, and losses of mini-batches. ``mean_period`` is the mean distance between onsets,
        NaN with fewer than two.

    Example:
        >>> from periodic_jax.grid import SweepGrid
        >>> grid, steps = SweepGrid.product(lr=1.0, weight_decay=1e-3), np.arange(400)[None]
        >>> curves = {"loss": 1 / (1 + steps), "weight_norm": 0.999**steps, "effective_lr": 0.999 ** (-2.0 * steps)}
        >>> curves |= {"effective_grad_norm": 1e-6 + 0 * steps, "angular_step": 1e-6 * curves["effective_lr"]}
        >>> run = xr.Dataset({name: (("config", "step"), values) for name, values in curves.items()})
        >>> run = run.assign(diverged_at=("config", [np.nan])).assign_coords(
        ...     {name: ("config", values) for name, values in grid.coords.items()})
        >>> found = analyze(run)
        >>> print(found.regime.item(), int(found.violations.item()))
        converging 0
    """
    hyper = {name: np.asarray(dataset[name].values) for name in AXES}
    free = hyper["fixed_norm"] == 0
    # Where the norm is held, or the effective learning rate, decay sets no pace.
    decay = np.where(free & (hyper["elr"] == 0), hyper["weight_decay"], 0.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a diverging run leaves float32's range
        parts = [
            _of_block(block, rows, hyper, decay, free, predict) for rows, block in _blocks(dataset, most_in_memory)
        ]
    found = Periods(*_stacked([part[0] for part in parts]))
    regimes = Regimes(*_stacked([part[1] for part in parts]))
    theory = Theory(*_stacked([part[2] for part in parts]))
    final_norm, steps = _stacked([part[3] for part in parts])

    variables: dict[str, Any] = {name: ("config", values) for name, values in regimes._asdict().items()}
    variables["destabilisations"] = ("config", found.found)
    variables |= {name: ("config", values) for name, values in _of_runs(dataset, found).items()}
    variables |= {"final_weight_norm": ("config", final_norm), "steps": ("config", steps)}
    checks = theory._asdict()
    violations = checks.pop("violations")
    variables |= {name: ("config", values) for name, values in checks.items()}
    variables["check_violations"] = (("config", "check"), violations, {f"{n} assumes": w for n, w in ASSUMED.items()})
    variables["violations"] = ("config", np.nansum(violations, axis=1))
    edges, predicted = _falling_edges(found, hyper["weight_decay"], hyper["momentum"], decay > 0)
    both = {
        **{n: v for n, v in found._asdict().items() if n != "found"},
        "fall_steps": edges,
        "predicted_fall_steps": predicted,
    }
    variables |= {_plain(name): (("config", "destabilisation"), values) for name, values in both.items()}
    between = cycles(found)
    variables |= {f"period_{name}": (("config", "period"), values) for name, values in between._asdict().items()}
    variables |= {
        f"period_lowest_{name}": (("config", "period"), _lowest_between(dataset, name, found))
        for name in ("train_loss", "test_error")
    }
    variables |= _slopes(found, between, hyper, decay)
    variables |= _stability(dataset, found, hyper)
    coords = {**{name: dataset[name] for name in AXES}, "check": list(CHECKS), "fit": list(FITS)}
    if predict:
        now = ForecastOrigin(*_stacked([part[4] for part in parts]))
        gone = np.isfinite(read(dataset, "diverged_at"))
        variables |= _forecasts(now, found, hyper, decay, gone)
    return xr.Dataset(variables, coords, {"run": dataset.attrs.get("name", ""), "burn_in": BURN_IN})


def _blocks(dataset: xr.Dataset, most_in_memory: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """The curves of some configurations after the other, as few times as memory allows: each chunk of a store holds
    all configurations, and is read again for every block.
    """
    names = [name for name in CURVES if name in dataset]
    configs, steps = dataset.sizes["config"], dataset.sizes["step"]
    size = sum(dataset[name].dtype.itemsize for name in names) * max(steps, 1)
    blocks = max(math.ceil(configs * size / most_in_memory), 1)
    rows = math.ceil(configs / blocks)
    for first in range(0, configs, rows):
        chosen = slice(first, min(first + rows, configs))
        block = {name: read(dataset, name, config=chosen) for name in names}
        missing = set(CURVES[:5]) - set(names)
        block |= {name: np.full_like(block["loss"], np.nan) for name in missing}
        block["diverged_at"] = read(dataset, "diverged_at", config=chosen)
        yield chosen, block


def _of_block(
    block: dict[str, np.ndarray], rows: slice, hyper: dict[str, np.ndarray], decay: np.ndarray, free: np.ndarray,
    predict: bool,
) -> tuple[Any, ...]:  # fmt: skip
    found = detect_periods(block)
    each = [array[rows] for array in (hyper["lr"], decay, hyper["momentum"])]
    regimes = classify_regimes(block, *each, periods=found)
    curves = {name: block[name] for name in CURVES[1:] if name in block}
    theory = check(curves, hyper["weight_decay"][rows], hyper["momentum"][rows], free[rows])
    known = np.isfinite(block["loss"]) | np.isfinite(block["weight_norm"])
    steps = np.max(np.where(known, np.arange(known.shape[1]) + 1, 0), axis=1, initial=0)
    now = forecast_origin(block, found, decay[rows]) if predict else None
    return found, regimes, theory, (_last(block["weight_norm"]), steps), now


def _stacked(parts: list[Any]) -> list[np.ndarray]:
    """Fields of blocks one after the other, the shorter ones filled up with NaN before the last of `ForecastOrigin`."""
    stacked = []
    for columns in zip(*parts, strict=True):
        if columns[0].ndim < 2:
            stacked.append(np.concatenate(columns))
            continue
        most = max(column.shape[1] for column in columns)
        moved = isinstance(parts[0], ForecastOrigin)  # whose last entry is that of the last step, and stays the last
        filled = [
            np.insert(column, [column.shape[1] - moved] * (most - column.shape[1]), np.nan, axis=1)
            for column in columns
        ]
        stacked.append(np.concatenate(filled))
    return stacked


def _of_runs(dataset: xr.Dataset, found: Periods) -> dict[str, np.ndarray]:
    """Numbers of whole configurations."""
    gaps = np.diff(found.onset, axis=1)
    with np.errstate(invalid="ignore"):
        mean_period = np.nansum(gaps, axis=1) / np.where(found.found > 1, found.found - 1, np.nan)
    return {
        "mean_period": mean_period,
        "final_train_loss": _last(_evaluations(dataset, "train_loss")),
        "lowest_train_loss": _lowest(_evaluations(dataset, "train_loss")),
        "final_test_error": _last(_evaluations(dataset, "test_error")),
        "lowest_test_error": _lowest(_evaluations(dataset, "test_error")),
        "diverged_at": read(dataset, "diverged_at").astype(np.float64),
    }


def _falling_edges(
    found: Periods, weight_decay: np.ndarray, momentum: np.ndarray, decays: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the falling edge before each destabilisation, and those that decay alone would take."""
    lr = found.onset_effective_lr * found.onset_weight_norm**2
    with np.errstate(all="ignore"):
        predicted = dynamics.falling_edge_steps(
            found.fall_weight_norm, found.onset_weight_norm, lr, weight_decay[:, None], momentum[:, None]
        )
    return found.onset - found.fall, np.where(decays[:, None], predicted, np.nan)


def _slopes(found: Periods, between: Cycles, hyper: dict[str, np.ndarray], decay: np.ndarray) -> dict[str, Any]:
    """Slopes of log duration against log ηλ/(1-μ), the ``decay_rate`` at each destabilisation: of `FITS`.

    Without gradients a falling edge takes ln(ρ_max/ρ_min) / (-ln a) steps; with them, by the rotation budget, exactly
    (ln(ρ_max/ρ_min) + Σ -ln cos θ) / (-ln a). ``falling_edge`` is divided by that sum, which holds for plain SGD at a
    constant rate, whatever the gradients do, where every step of the edge is recorded. The others are divided by
    ln(ρ_max/ρ_min) alone: ``falling_edge_quiet`` where the theory that leaves gradients out can be expected to hold
    (`QUIET`), ``falling_edge_uncorrected`` everywhere.
    """
    lr = found.onset_effective_lr * found.onset_weight_norm**2
    rate = lr * np.where(decay > 0, decay, np.nan)[:, None] / (1 - hyper["momentum"])[:, None]
    with np.errstate(all="ignore"):
        ratio = np.log(found.fall_weight_norm / found.onset_weight_norm)
        steps = found.onset - found.fall
        plain = np.where(hyper["momentum"] == 0, 0, np.nan)[:, None]  # rotation tells little of the norm otherwise
        exact = plain + steps / (ratio + found.fall_rotation)
        quiet = np.where(found.fall_rotation <= QUIET * ratio, plain + steps / ratio, np.nan)
    fits = [log_slope(rate, y) for y in (exact, quiet, steps / ratio)] + [log_slope(rate[:, 1:], between.length)]
    found_rate = {"decay_rate": (("config", "destabilisation"), rate)}
    return found_rate | {f"slope{end}": ("fit", [getattr(fit, field) for fit in fits]) for end, field in
            (("", "slope"), ("_low", "low"), ("_high", "high"), ("_intercept", "intercept"), ("_points", "points"))
            }  # fmt: skip


def log_slope(x: np.ndarray, y: np.ndarray) -> Slope:
    """Least-squares slope of log y against log x, with its interval from Student's distribution.

    Args:
        x, y: positive numbers of one shape; pairs with another number in it are left out.

    Returns:
        NaN where there are fewer than three pairs, or fewer than two different x.

    Example:
        >>> log_slope(np.array([1.0, 2.0, 4.0]), np.array([8.0, 4.0, 2.0])).slope
        -1.0
    """
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    points = int(good.sum())
    if points < 3 or np.ptp(np.log(x[good])) < 1e-4:
        return Slope(math.nan, math.nan, math.nan, math.nan, points)
    fit: Any = stats.linregress(np.log(x[good]), np.log(y[good]))
    error = float(np.nan_to_num(fit.stderr))  # of a perfect fit, rounding may leave no number
    half = float(stats.t.ppf((1 + INTERVAL) / 2, points - 2)) * error
    return Slope(float(fit.slope), float(fit.slope - half), float(fit.slope + half), float(fit.intercept), points)


def _lowest_between(dataset: xr.Dataset, name: str, found: Periods) -> np.ndarray:
    """The lowest evaluation of each period: after the steps from behind one onset to the next; NaN without any."""
    values = _evaluations(dataset, name)
    steps = dataset["eval_step"].values if values.size else np.zeros(0)
    left, right = found.onset[:, :-1], found.onset[:, 1:]
    row, k = np.nonzero(np.isfinite(right))
    first = np.searchsorted(steps, left[row, k], side="right")
    last = np.searchsorted(steps, right[row, k], side="right")
    some = last > first
    row, k, first, last = row[some], k[some], first[some], last[some]
    lowest = np.full(left.shape, np.nan)
    offset = row * values.shape[1]
    lowest[row, k] = -segments.highest(-values.ravel(), offset + first, offset + last)
    return lowest


def _forecasts(
    now: ForecastOrigin, found: Periods, hyper: dict[str, np.ndarray], decay: np.ndarray, gone: np.ndarray
) -> dict[str, Any]:
    """The forecast for the next destabilisation of what has not diverged, and of recorded ones for a back-test."""
    ahead: Forecast = forecast(now, references(found.onset_effective_lr), decay, hyper["momentum"], decay > 0)
    names = ("origin", "soonest", "latest", "expected")
    last = {name: np.where(gone, np.nan, getattr(ahead, name)[:, -1]) for name in names}
    for name in names[1:]:  # what is to come comes after the last step
        last[name] = np.maximum(last[name], last["origin"] + 1)
    variables: dict[str, Any] = {f"forecast_{name}": ("config", values) for name, values in last.items()}
    dims = ("config", "destabilisation")
    variables |= {f"backtest_{n}": (dims, getattr(ahead, n)[:, :-1]) for n in names}
    variables["backtest_next_jump"] = (dims, now.next_jump[:, :-1])
    return variables


def _plain(name: str) -> str:
    """The name in the Dataset of a field of `Periods`."""
    return {"onset": "onset_step", "end": "end_step", "fall": "fall_step"}.get(name, name)


def _stability(dataset: xr.Dataset, found: Periods, hyper: dict[str, np.ndarray]) -> dict[str, Any]:
    """Sharpness before the destabilisations, of a run that recorded it."""
    if "elr_times_sharpness" not in dataset.variables:
        return {}
    before = before_onsets(read(dataset, "elr_times_sharpness").astype(np.float64), found)
    limit = threshold(hyper["lr"], hyper["weight_decay"], hyper["momentum"])
    variables = {name: (("config", "destabilisation"), values) for name, values in before._asdict().items()}
    return {**variables, "stability_threshold": ("config", limit)}


def _evaluations(dataset: xr.Dataset, name: str) -> np.ndarray:
    """An evaluated quantity ``(configs, evaluations)``, without any where the run has none."""
    if name in dataset.variables:
        return read(dataset, name).astype(np.float64)
    return np.full((dataset.sizes["config"], 0), np.nan)


def _last(values: np.ndarray) -> np.ndarray:
    """The last finite value along the last dimension, NaN where there is none."""
    finite = np.isfinite(values)
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    last = values.shape[-1] - 1 - np.argmax(finite[..., ::-1], axis=-1)
    return np.where(finite.any(-1), np.take_along_axis(values, last[..., None], -1)[..., 0], np.nan).astype(np.float64)


def _lowest(values: np.ndarray) -> np.ndarray:
    lowest = np.where(np.isfinite(values), values, np.inf).min(-1, initial=np.inf)
    return np.where(np.isfinite(lowest), lowest, np.nan).astype(np.float64)
