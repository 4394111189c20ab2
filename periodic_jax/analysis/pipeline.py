"""Analyses a run into one xarray Dataset: regimes, periods, theory, forecasts."""

import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from periodic_jax import dynamics
from periodic_jax.analysis.forecast import ForecastOrigin, forecast, forecast_origin, references
from periodic_jax.analysis.hyperparameters import Hyperparameters, hyperparameters_of
from periodic_jax.analysis.periods import Cycles, Periods, cycles, detect_periods
from periodic_jax.analysis.regimes import BURN_IN, Regimes, classify_regimes
from periodic_jax.analysis.resampling import Interval, resampled_interval
from periodic_jax.analysis.stability import before_onsets
from periodic_jax.analysis.theory_checks import CHECKS, Theory, Trajectory, check_theory
from periodic_jax.core import segments
from periodic_jax.core.blocks import map_blocks
from periodic_jax.core.errors import UsageError
from periodic_jax.core.grid import AXES
from periodic_jax.storage.reader import flattened, read
from periodic_jax.storage.schema import used_by

CURVES = used_by("analysis")  # those after the first five may be missing
NEEDED = ("loss", "weight_norm", "effective_lr", "angular_step")
MOST_IN_MEMORY = 2**30  # bytes of telemetry read at a time
LEAST_PRODUCTS = 3  # of learning rate and decay: the line through two says nothing of how straight it is
QUIET = 0.1  # rotation of a quiet fall over ln(ρ_max/ρ_min): gradients then prolong it by a tenth at most
EVENTS = ("config", "destabilisation")
FITS = ("falling_edge", "falling_edge_quiet", "falling_edge_uncorrected", "period_length")


class Slope(NamedTuple):
    """A straight line through logarithms."""

    slope: float
    low: float  # ends of the interval over configurations, of level `resampling.LEVEL`
    high: float
    intercept: float  # ln y where x is 1
    points: int
    configs: int  # that have points
    products: int  # of learning rate and decay that these have


class BlockAnalysis(NamedTuple):
    """What a block of configurations is analysed into; its arrays have the configurations first."""

    periods: Periods
    regimes: Regimes
    theory: Theory
    final_norm: np.ndarray  # last recorded ρ
    steps: np.ndarray  # steps recorded
    origin: ForecastOrigin | None  # None without forecasts


def analyze(dataset: xr.Dataset, *, predict: bool = False, most_in_memory: int = MOST_IN_MEMORY) -> xr.Dataset:
    """Analyse each configuration of a run: its regime, its periods, and whether they agree with the theory.

    Args:
        dataset: a run in either form of `open_run`; one opened with ``flat=True`` is read block by block of
            configurations. Or a Dataset of your own with ``loss``, ``weight_norm`` and ``angular_step``; see
            `storage.reader.flattened` for what else follows from these.
        predict: also forecast the next destabilisations, and those recorded from half-way down the fall before.
        most_in_memory: bytes of telemetry to read at a time.

    Returns:
        A Dataset over ``config``, with the hyperparameters as coordinates, and ``destabilisation``, ``period``,
        ``check`` and ``fit``. Steps, and losses of mini-batches. ``mean_period`` is the mean distance between onsets,
        NaN with fewer than two.

    Raises:
        ConfigError: what is missing in the Dataset.
        CorruptedRunError: the run is corrupted.

    Example:
        >>> from periodic_jax.core.grid import SweepGrid
        >>> grid, steps = SweepGrid.product(lr=1.0, weight_decay=1e-3), np.arange(400)[None]
        >>> curves = {"loss": 1 / (1 + steps), "weight_norm": 0.999**steps, "effective_lr": 0.999 ** (-2.0 * steps)}
        >>> curves |= {"effective_grad_norm": 1e-3 + 0 * steps, "angular_step": 1e-3 / 0.999 * curves["effective_lr"]}
        >>> run = xr.Dataset({name: (("config", "step"), values) for name, values in curves.items()})
        >>> run = run.assign(diverged_at=("config", [np.nan])).assign_coords(
        ...     {name: ("config", values) for name, values in grid.coords.items()})
        >>> result = analyze(run)
        >>> print(result.regime.item(), int(result.violations.item()))
        converging 0
    """
    dataset = flattened(dataset)
    if (missing := [name for name in NEEDED if name not in dataset]) and "source" not in dataset.encoding:
        raise UsageError("run", f"it has no {' and no '.join(missing)}", f"give a Dataset with {', '.join(NEEDED)}")
    hyper = hyperparameters_of(dataset)
    configs = dataset.sizes["config"]
    # As few blocks as memory allows: each chunk of a store holds all configurations, and is read again for every block.
    names = [name for name in CURVES if name in dataset]
    size = sum(dataset[name].dtype.itemsize for name in names) * max(dataset.sizes["step"], 1)
    block_size = max(math.ceil(configs / max(math.ceil(configs * size / most_in_memory), 1)), 1)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # a diverging run leaves float32's range
        analysis = map_blocks(lambda block: _analyze_block(dataset, block, hyper, predict), configs, block_size)
    periods, between = analysis.periods, cycles(analysis.periods)

    variables = _along("config", **analysis.regimes._asdict(), destabilisations=periods.found)
    variables |= _along("config", **_of_runs(dataset, between), final_weight_norm=analysis.final_norm)
    variables |= _along("config", steps=analysis.steps, **analysis.theory._asdict())
    violations = variables.pop("violations")[1]
    assumptions = {f"{name} assumes": entry.assumes for name, entry in CHECKS.items()}
    variables["check_violations"] = (("config", "check"), violations, assumptions)
    variables["violations"] = ("config", np.nansum(violations, axis=1))
    renamed = {"onset": "onset_step", "end": "end_step", "fall": "fall_step"}
    fields = {renamed.get(name, name): values for name, values in periods._asdict().items() if name != "found"}
    variables |= _along(EVENTS, **fields, **_falling_edges(periods, hyper))
    lowest = {f"lowest_{name}": _lowest_between(dataset, name, periods) for name in ("train_loss", "test_error")}
    lengths = {f"period_{name}": values for name, values in (between._asdict() | lowest).items()}
    variables |= _along(("config", "period"), **lengths)
    _, groups = np.unique(
        np.stack([dataset[name].values for name in AXES if name != "seed"]), axis=1, return_inverse=True
    )
    variables |= _slopes(periods, between, hyper, groups.ravel()) | _stability(dataset, periods, hyper)
    if analysis.origin is not None:
        variables |= _forecasts(analysis.origin, periods, hyper, np.isfinite(read(dataset, "diverged_at")))
    coords = {**{name: dataset[name] for name in AXES}, "check": list(CHECKS), "fit": list(FITS)}
    return xr.Dataset(
        variables,
        coords,
        {
            "run": dataset.attrs.get("name", ""),
            "burn_in": BURN_IN,
            "optimizer": dataset.attrs.get("optimizer", "sgd"),
        },
    )


def _analyze_block(dataset: xr.Dataset, block: slice, hyper: Hyperparameters, predict: bool) -> BlockAnalysis:
    names = dict.fromkeys((*(name for name in CURVES if name in dataset), *NEEDED, "diverged_at"))
    curves = {name: read(dataset, name, config=block) for name in names}
    curves |= {name: np.full_like(curves["loss"], np.nan) for name in CURVES[:5] if name not in curves}
    hyper = hyper.select(block)
    if "step_lr" in curves:  # what the norm makes of the rate, also where η̃ is recorded as an angle for each gradient
        curves["effective_lr"] = curves["step_lr"] / curves["weight_norm"] ** 2
    periods = detect_periods(curves)
    norm, elr, gradient, angle = (curves[name] for name in CURVES[1:5])
    more = (curves.get(name) for name in ("radial_leak", "radial_update", "tangential_update"))
    trajectory = Trajectory(norm, elr, gradient, angle, hyper, *more)
    known = np.isfinite(curves["loss"]) | np.isfinite(norm)
    return BlockAnalysis(
        periods,
        classify_regimes(
            curves, hyper.lr, hyper.pacing_decay, hyper.rotation_momentum, is_held=hyper.is_held, periods=periods
        ),
        check_theory(trajectory),
        _last(norm),
        segments.ends(known),
        forecast_origin(curves, periods, hyper.pacing_decay) if predict else None,
    )


def _along(dims: str | tuple[str, ...], **arrays: Any) -> dict[str, Any]:
    """Variables of a Dataset with these dimensions."""
    return {name: (dims, values) for name, values in arrays.items()}


def _of_runs(dataset: xr.Dataset, between: Cycles) -> dict[str, np.ndarray]:
    """Numbers of whole configurations."""
    with np.errstate(invalid="ignore"):  # NaN without periods
        mean_period = segments.mean(between.length, np.isfinite(between.length))
    extremes = {
        f"{kind}_{name}": reduce(_evaluations(dataset, name))
        for name in ("train_loss", "test_error")
        for kind, reduce in (("final", _last), ("lowest", _lowest))
    }
    return {"mean_period": mean_period, **extremes, "diverged_at": read(dataset, "diverged_at").astype(np.float64)}


def _onset_lr(periods: Periods) -> np.ndarray:
    """η = η̃ρ² at each onset."""
    return periods.onset_effective_lr * periods.onset_weight_norm**2


def _falling_edges(periods: Periods, hyper: Hyperparameters) -> dict[str, np.ndarray]:
    """Steps of the falling edge before each destabilisation, and those that decay alone would take."""
    rate = _onset_lr(periods), hyper.weight_decay[:, None], hyper.pacing_momentum[:, None]
    with np.errstate(all="ignore"):
        predicted = dynamics.falling_edge_steps(periods.fall_weight_norm, periods.onset_weight_norm, *rate)
    predicted = np.where(hyper.pacing_decay[:, None] > 0, predicted, np.nan)
    return {"fall_steps": periods.onset - periods.fall, "predicted_fall_steps": predicted}


def _slopes(periods: Periods, between: Cycles, hyper: Hyperparameters, groups: np.ndarray) -> dict[str, Any]:
    """Slopes of log duration against log ηλ/(1-μ), the ``decay_rate`` at each destabilisation: of `FITS`.

    Without gradients a falling edge takes ln(ρ_max/ρ_min) / (-ln a) steps; with them, by the rotation budget, exactly
    (ln(ρ_max/ρ_min) + Σ -ln cos θ) / (-ln a). ``falling_edge`` is divided by that sum, which holds for plain SGD at a
    constant rate, whatever the gradients do, where every step of the edge is recorded. The others are divided by
    ln(ρ_max/ρ_min) alone: ``falling_edge_quiet`` where the theory that leaves gradients out can be expected to hold
    (`QUIET`), ``falling_edge_uncorrected`` everywhere. ``groups`` labels the configurations, whatever their seed.
    """
    decay = np.where(hyper.pacing_decay > 0, hyper.pacing_decay, np.nan)[:, None]
    rate = _onset_lr(periods) * decay / (1 - hyper.pacing_momentum)[:, None]
    with np.errstate(all="ignore"):
        ratio = np.log(periods.fall_weight_norm / periods.onset_weight_norm)
        steps = periods.onset - periods.fall
        plain = np.where(hyper.is_plain, 0, np.nan)[:, None]  # with momentum rotation does not fix the norm
        exact = plain + steps / (ratio + periods.fall_rotation)
        quiet = np.where(periods.fall_rotation <= QUIET * ratio, plain + steps / ratio, np.nan)
    product = hyper.lr * hyper.pacing_decay / (1 - hyper.pacing_momentum)
    fits = [log_slope(rate, y, product, groups) for y in (exact, quiet, steps / ratio)]
    fits.append(log_slope(rate[:, 1:], between.length, product, groups))
    columns = {"slope" if name == "slope" else f"slope_{name}": list(column) for name, column in
               zip(Slope._fields, zip(*fits, strict=True), strict=True)}  # fmt: skip
    return _along(EVENTS, decay_rate=rate) | _along("fit", **columns)


def log_slope(x: np.ndarray, y: np.ndarray, products: np.ndarray, groups: np.ndarray) -> Slope:
    """Least-squares slope of log y against log x over all periods, with the interval over configurations.

    Args:
        x, y: positive numbers ``(configs, periods)``; pairs with another number in it are left out.
        products: that of learning rate and decay of each configuration, ``(configs,)``.
        groups: a label for each configuration, the same for those that differ in the seed alone, ``(configs,)``.

    Returns:
        NaN where there are fewer than three pairs, or fewer than two different x. No interval, but the slope, with
        fewer than `LEAST_PRODUCTS` products.

    Example:
        >>> x = np.array([[1.0], [2.0], [4.0]])
        >>> fit = log_slope(x, 8 / x, x[:, 0], np.arange(3))
        >>> round(fit.slope, 9), fit.points, fit.configs, fit.products
        (-1.0, 3, 3, 3)
    """
    good = np.isfinite(x) & np.isfinite(y) & (x > 0) & (y > 0)
    has_any = good.any(1)
    # As text: roundings of one product are one product.
    distinct = len({f"{product:.6g}" for product in products[has_any]})
    counts = int(good.sum()), int(has_any.sum()), distinct
    if counts[0] < 3 or np.ptp(np.log(x[good])) < 1e-4:
        return Slope(math.nan, math.nan, math.nan, math.nan, *counts)
    log_x, log_y = np.log(np.where(good, x, 1)), np.log(np.where(good, y, 1))
    centre = log_x[good].mean(), log_y[good].mean()
    along, up = np.where(good, log_x - centre[0], 0), np.where(good, log_y - centre[1], 0)
    moments = [good.sum(1), along.sum(1), up.sum(1), (along**2).sum(1), (along * up).sum(1)]
    sums = np.stack(moments, axis=1).astype(np.float64)[has_any]

    def slopes(times: np.ndarray) -> np.ndarray:
        count, of_x, of_y, of_xx, of_xy = (times @ sums).T
        spread = of_xx / count - (of_x / count) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw of one product has no slope
            return np.where(spread > 1e-8, (of_xy / count - of_x * of_y / count**2) / spread, np.nan)

    slope = float(slopes(np.ones((1, len(sums))))[0])
    interval = Interval(math.nan, math.nan)
    if distinct >= LEAST_PRODUCTS:
        interval = resampled_interval(slopes, groups[has_any])
    return Slope(slope, *interval, float(centre[1] - slope * centre[0]), *counts)


def _lowest_between(dataset: xr.Dataset, name: str, periods: Periods) -> np.ndarray:
    """The lowest evaluation of each period: after the steps from behind one onset to the next; NaN without any."""
    values = _evaluations(dataset, name)
    steps = dataset["eval_step"].values if values.size else np.zeros(0)
    left, right = periods.onset[:, :-1], periods.onset[:, 1:]
    row, k = np.nonzero(np.isfinite(right))
    first, last = (np.searchsorted(steps, onsets[row, k], side="right") for onsets in (left, right))
    lowest = np.full(left.shape, np.nan)
    stretches = zip(row, first, last, strict=True)
    lowest[row, k] = [np.fmin.reduce(values[i, begin:end], initial=np.nan) for i, begin, end in stretches]
    return lowest


def _forecasts(
    origin: ForecastOrigin, periods: Periods, hyper: Hyperparameters, has_diverged: np.ndarray
) -> dict[str, Any]:
    """The forecast for the next destabilisation of what has not diverged, and of recorded ones for a back-test."""
    decay, reference = hyper.pacing_decay, references(periods.onset_effective_lr)
    ahead = forecast(origin, reference, decay, hyper.pacing_momentum, decay > 0)._asdict()
    for name in ("soonest", "latest"):
        ahead[name] = np.where(hyper.is_plain[:, None], ahead[name], np.nan)
    last = {name: np.where(has_diverged, np.nan, values[:, 0]) for name, values in ahead.items()}
    for name in ("soonest", "latest", "expected"):  # what is to come comes after the last step
        last[name] = np.maximum(last[name], last["origin"] + 1)
    earlier = {name: values[:, 1:] for name, values in (ahead | {"next_jump": origin.next_jump}).items()}
    return _along("config", **{f"forecast_{name}": values for name, values in last.items()}) | _along(
        EVENTS, **{f"backtest_{name}": values for name, values in earlier.items()}
    )


def _stability(dataset: xr.Dataset, periods: Periods, hyper: Hyperparameters) -> dict[str, Any]:
    """Sharpness before the destabilisations, of a run that recorded it."""
    if "elr_times_sharpness" not in dataset.variables:
        return {}
    before = before_onsets(read(dataset, "elr_times_sharpness").astype(np.float64), periods)
    # Learning rates as at the start of a schedule.
    return _along(EVENTS, **before._asdict()) | _along("config", stability_threshold=hyper.stability_threshold)


def _evaluations(dataset: xr.Dataset, name: str) -> np.ndarray:
    """An evaluated quantity ``(configs, evaluations)``, without any where the run has none."""
    if name in dataset.variables:
        return read(dataset, name).astype(np.float64)
    return np.full((dataset.sizes["config"], 0), np.nan)


def _last(values: np.ndarray) -> np.ndarray:
    """The last finite value of each row, NaN where there is none."""
    last = segments.ends(np.isfinite(values)) - 1
    return np.pad(values, ((0, 0), (0, 1)), constant_values=np.nan)[np.arange(len(values)), last].astype(np.float64)


def _lowest(values: np.ndarray) -> np.ndarray:
    """The lowest finite value of each row, NaN where there is none."""
    return np.fmin.reduce(np.where(np.isfinite(values), values, np.nan), axis=1, initial=np.nan)
