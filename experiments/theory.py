"""The theory against every step of a large grid: exact relations, bounds, rotation budget, equilibrium, forecasts."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, decided, laptop, paper
from experiments.pages import percent, table
from periodic_jax import plots
from periodic_jax.analysis.theory_checks import CHECKS

EXACT = ("norm_recursion", "angular_step")
BUDGET = 1e-3  # relative, of the rotation; what float32 sums and a leak leave
FITS = {
    "falling_edge": "falls / (ln(norm ratio) + rotation)",
    "falling_edge_quiet": "quiet falls / ln(norm ratio)",
    "falling_edge_uncorrected": "all falls / ln(norm ratio)",
    "period_length": "period length",
}

RUNS = {
    "laptop": {
        "run": laptop(
            lr=(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0),
            weight_decay=(1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 0.1), steps=4000, eval_every=400,
        ),
    },
    "paper": {
        "run": paper(
            lr=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 10.0),
            weight_decay=(1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2),
        ),
    },
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Violations, residuals, and how far equilibria and forecasts are off."""
    found = runs["run"]
    violations = found.check_violations
    checks = {
        name: [
            int(np.isfinite(violations.sel(check=name).values).sum()),
            int((violations.sel(check=name).values > 0).sum()),
            int(np.nansum(violations.sel(check=name).values)),
        ]
        for name in CHECKS
    }
    ratio = found.measured_weight_norm.values / found.equilibrium_weight_norm.values
    equilibrium = {
        regime: _spread(ratio[found.regime.values == regime])
        for regime in ("equilibrium", "periodic", "converging")
    }  # fmt: skip
    onset, expected = found.onset_step.values, found.backtest_expected.values
    windows = np.isfinite(found.backtest_latest.values) & np.isfinite(onset)
    held = windows & (found.backtest_soonest.values <= onset) & (onset <= found.backtest_latest.values)
    early = windows & (onset < found.backtest_soonest.values)
    errors = np.abs(expected - onset) / found.fall_steps.values
    naive = np.abs(_mean_so_far(found.fall_steps.values) - found.fall_steps.values) / found.fall_steps.values
    both = np.isfinite(errors) & np.isfinite(naive)
    regimes = {name: int((found.regime.values == name).sum()) for name in np.unique(found.regime.values)}
    return {
        "configurations": int(found.sizes["config"]),
        "steps": float(found.steps.values.sum()),
        "regimes": regimes,
        "destabilisations": int(found.destabilisations.values.sum()),
        "checks": checks,
        "budget": _spread(np.abs(found.budget_residual.values)),
        "equilibrium": equilibrium,
        "slopes": {
            fit: [float(found[f"slope{end}"].sel(fit=fit)) for end in ("", "_low", "_high", "_points")] for fit in FITS
        },
        "windows": [int(windows.sum()), int(held.sum()), int(early.sum())],
        "forecast_error": _spread(errors[both]),
        "naive_error": _spread(naive[both]),
    }


def _spread(values: np.ndarray) -> dict[str, float]:
    """Number, lowest, median and highest of the known values."""
    known = np.asarray(values, np.float64)[np.isfinite(values)]
    if not len(known):
        return {"count": 0.0, "low": np.nan, "median": np.nan, "high": np.nan}
    return {
        "count": float(len(known)), "low": float(known.min()), "median": float(np.median(known)),
        "high": float(known.max()),
    }  # fmt: skip


def _mean_so_far(falls: np.ndarray) -> np.ndarray:
    """The mean of a configuration's earlier falls, the forecast of one who knows no theory; NaN before the second."""
    known = np.isfinite(falls)
    total = np.cumsum(np.where(known, falls, 0), axis=1)
    count = np.cumsum(known, axis=1)
    before = np.full(falls.shape, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        before[:, 1:] = total[:, :-1] / count[:, :-1]
    return np.where(known, before, np.nan)


def findings(numbers: Numbers) -> list[Finding]:
    """Of the theory."""
    checks, budget = numbers["checks"], numbers["budget"]
    exact = sum(checks[name][2] for name in EXACT)
    bounds = {name: count for name, count in checks.items() if name not in EXACT}
    broken = sum(count[2] for count in bounds.values())
    settled, periodic = numbers["equilibrium"]["equilibrium"], numbers["equilibrium"]["periodic"]
    exact_falls, quiet, length = (
        numbers["slopes"][fit] for fit in ("falling_edge", "falling_edge_quiet", "period_length")
    )
    windows, held, early = numbers["windows"]
    error, naive = numbers["forecast_error"], numbers["naive_error"]
    return [
        Finding(
            exact == 0,
            "The recursions of norm and angle hold at every step.",
            f"{exact} of {numbers['steps']:,.0f} steps of {numbers['configurations']} configurations "
            "are off by more than "
            "1e-4.",
        ),
        Finding(
            broken == 0,
            "No bound is violated: attracting interval, highest effective learning rate, largest and smallest turn, "
            "waits for the next jump.",
            f"{broken} violations in {sum(count[0] for count in bounds.values())} checks of whole trajectories.",
        ),
        Finding(
            decided(budget["high"] < BUDGET, budget["high"]),
            "The rotation budget is met: Σ -ln cos θ = -T ln a + ln(ρ_T/ρ_0).",
            f"Off by {budget['median']:.1e} (median) and at most {budget['high']:.1e} of the rotation in "
            f"{budget['count']:.0f} configurations.",
        ),
        Finding(
            decided(max(abs(settled["low"] - 1), abs(settled["high"] - 1)) < 0.05, settled["low"], settled["high"]),
            "Equilibria lie where gradients and decay balance, ρ⁴ = ηG²/(λ(2-ηλ)).",
            f"Measured over predicted norm {settled['low']:.3f} to {settled['high']:.3f} in the {settled['count']:.0f} "
            "equilibria."
            if settled["count"]
            else "No equilibrium in the grid.",
        ),
        Finding(
            decided(max(abs(periodic["low"] - 1), abs(periodic["high"] - 1)) < 0.25, periodic["low"], periodic["high"]),
            "The same balance gives the mean norm of periodic training, too.",
            f"Measured over predicted norm {periodic['low']:.2f} to {periodic['high']:.2f} (median "
            f"{periodic['median']:.2f}) in {periodic['count']:.0f} configurations, after the first third of the steps; "
            "within a quarter is called the same."
            if periodic["count"]
            else "No periodic configuration in the grid.",
        ),
        Finding(
            decided(abs(exact_falls[0] + 1) < 0.02, exact_falls[0]),
            "Falling edges take (ln(norm ratio) + rotation)/(ηλ) steps.",
            f"Slope {exact_falls[0]:.3f} [{exact_falls[1]:.3f}, {exact_falls[2]:.3f}] of {exact_falls[3]:.0f} of them.",
        ),
        Finding(
            decided(abs(quiet[0] + 1) < 0.05, quiet[0]),
            "Quiet falling edges take ln(norm ratio)/(ηλ) steps.",
            f"Slope {quiet[0]:.3f} [{quiet[1]:.3f}, {quiet[2]:.3f}] of {quiet[3]:.0f} of them.",
        ),
        Finding(
            decided(length[1] <= -1 <= length[2], *length[1:3]),
            "Whole periods are inversely proportional to ηλ.",
            f"Slope {length[0]:.3f} [{length[1]:.3f}, {length[2]:.3f}] of {length[3]:.0f} of them.",
        ),
        Finding(
            held / windows > 0.95 if windows else None,
            "The next destabilisation falls into the window [t_min, t_max] told half-way down its fall.",
            f"{held} of {windows}; {early} came earlier, {windows - held - early} later. The window "
            "takes the gradients of "
            "the fall so far for those of the rest, and tells of the next jump of the angle, which "
            "may be a smaller one.",
        ),
        Finding(
            decided(error["median"] < naive["median"], error["median"], naive["median"]),
            "Decay tells when the next destabilisation comes better than the mean of the falls so far.",
            f"Median error {percent(error['median'])} of the fall against {percent(naive['median'])}, "
            f"{error['count']:.0f} destabilisations.",
        ),
    ]


def tables(numbers: Numbers) -> str:
    """Regimes, checks, fits."""
    regimes = ", ".join(f"{count} {name}" for name, count in numbers["regimes"].items())
    checks = [[name, *count] for name, count in numbers["checks"].items()]
    fits = [[words, *numbers["slopes"][fit]] for fit, words in FITS.items()]
    equilibria = [
        [regime, spread["count"], spread["low"], spread["median"], spread["high"]]
        for regime, spread in numbers["equilibrium"].items()
    ]
    return "\n\n".join(
        [
            f"{numbers['configurations']} configurations: {regimes}; {numbers['destabilisations']:,} destabilisations.",
            table(("check", "configurations where it applies", "that violate it", "violations"), checks),
            table(("slope of its logarithm against ln(ηλ)", "slope", "from", "to", "points"), fits),
            table(("measured over predicted norm", "configurations", "lowest", "median", "highest"), equilibria),
        ]
    )


def draw(_: Runs, found: Runs) -> Iterator[tuple[str, Figure]]:
    """The regime map, the equilibria and the period lengths."""
    yield "regimes", plots.regimes(found["run"])
    yield "equilibria", plots.equilibria(found["run"])
    yield "periods", plots.periods(found["run"])


EXPERIMENT = Experiment(
    name="theory",
    title="The theory over a large grid",
    claim="exact relations, bounds on the effective learning rate and on the waits between jumps, "
    "the equilibrium and the "
    "rotation budget hold for every configuration, and tell when the next destabilisation comes.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={
        "regimes": "What each configuration did.",
        "equilibria": "Measured against predicted norm and effective learning rate.",
        "periods": "Every period of the grid against the product of learning rate and decay.",
    },
    limits={
        "all": (
            "The bounds take the lowest and highest gradient norm from the record itself, so they can be "
            "violated by an error "
            "in the recorded numbers or in the theory, not by an unusual gradient.",
            "Float32, plain SGD, a constant learning rate.",
        )
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
