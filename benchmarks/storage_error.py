"""How far do activations stored in bfloat16 move a training?

    python -m benchmarks.storage_error [--only steps] [--runs DIR]

Two answers, both on digits (8x8, batch 128) with `ConvNetSI`. The first steps: what is recorded at steps 1, 10 and 100
against the same steps in float64, from the same weights. The demo's grid: its regimes and periods, beside those in
float64, which show what rounding alone changes. Runs that are in DIR already are gone on with, or read.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import save, table
from periodic_jax.training import xla

STEPS = (1, 10, 100)
NAMES = ("loss", "weight_norm", "effective_grad_norm")
RATES = (0.03, 0.3, 1.0)
# name -> precision and storage
WAYS = {"float64": ("float64", "float32"), "float32": ("float32", "float32"), "bf16": ("float32", "bf16")}


def sweep_of(width: int, precision: str, storage: str) -> Any:
    """Three learning rates, not compiled yet."""
    import jax
    import jax.numpy as jnp

    from periodic_jax import SweepGrid, data, models
    from periodic_jax.sweeps.sweep import Sweep
    from periodic_jax.training.spec import TrainingSpec

    dtype = jnp.float64 if precision == "float64" else jnp.float32
    return Sweep(
        models.build("ConvNetSI", width=width, param_dtype=dtype, storage=storage), data.load("digits"),
        SweepGrid.product(lr=RATES, weight_decay=1e-3), TrainingSpec(batch_size=128), layout="map", capacity=STEPS[-1],
        devices=jax.devices()[:1],
    )  # fmt: skip


def recorded(width: int) -> dict[str, dict[str, np.ndarray]]:
    """Way -> name -> (rates, steps), of the first steps from the same float32 weights."""
    with xla.precision("float32"):
        states = (first := sweep_of(width, "float32", "float32")).placement.fetch(first.states)
    found = {}
    for way, (precision, storage) in WAYS.items():
        with xla.precision(precision):
            sweep = sweep_of(width, precision, storage)
            dtype = np.float64 if precision == "float64" else np.float32
            sweep.restore({n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in states.items()}, 0)
            chunks = list(sweep.chunks(STEPS[-1], eval_every=None))
        found[way] = {name: np.concatenate([c.telemetry[name] for c in chunks], 1).astype(float) for name in NAMES}
    return found


def first_steps(widths: list[int]) -> list[dict[str, Any]]:
    """The relative difference from float64 by width, way, rate and name, at each of `STEPS`."""
    rows = []
    for width in widths:
        values = recorded(width)
        for way in ("float32", "bf16"):
            for i, rate in enumerate(RATES):
                difference = {
                    name: [
                        float(abs(values[way][name][i, t - 1] / values["float64"][name][i, t - 1] - 1)) for t in STEPS
                    ]
                    for name in NAMES
                }
                rows.append({"width": width, "storage": way, "lr": rate, **difference})
    return rows


def regimes(folder: Path, steps: int, ways: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Way -> configurations of the demo's grid: regime, number of periods, their median length."""
    from periodic_jax import RunCallbacks, RunConfig, run_sweep

    found = {}
    for way in ways:
        precision, storage = WAYS[way]
        config = RunConfig(
            out=folder / way, lr=(0.01, 0.03, 0.1, 0.3, 1.0), weight_decay=(1e-3, 1e-2), steps=steps,
            precision=precision, storage=storage,
        )  # fmt: skip
        found[way] = summarise(run_sweep(config, callbacks=RunCallbacks(log=lambda line: None)).analysis)
    return found


def summarise(analysis: Any) -> list[dict[str, Any]]:
    """Of each configuration its rates, regime, number of periods and their median length; None without periods."""
    lengths = analysis.period_length.values
    return [
        {
            "lr": float(analysis.lr[i]),
            "weight_decay": float(analysis.weight_decay[i]),
            "regime": str(analysis.regime.values[i]),
            "periods": int(np.isfinite(lengths[i]).sum()),
            "length": float(np.nanmedian(lengths[i])) if np.isfinite(lengths[i]).any() else None,
        }
        for i in range(len(lengths))
    ]


def steps_table(rows: list[dict[str, Any]]) -> str:
    """Of `first_steps`."""
    header = ("width", "storage", "lr", *(name.replace("_", " ") for name in NAMES))
    cells = [
        (row["width"], row["storage"], row["lr"], *(" ".join(f"{x:.0e}" for x in row[name]) for name in NAMES))
        for row in rows
    ]
    return table(header, cells)


def regimes_table(found: Mapping[str, list[dict[str, Any]]]) -> str:
    """Of `regimes`."""
    rows = [
        (entries[0]["lr"], entries[0]["weight_decay"], *(shown(entry) for entry in entries))
        for entries in zip(*found.values(), strict=True)
    ]
    return table(("lr", "weight decay", *found), rows)


def shown(entry: Mapping[str, Any]) -> str:
    """A configuration in a few words."""
    return entry["regime"] + (f", {entry['periods']} of {entry['length']:.0f} steps" if entry["periods"] else "")


def main() -> None:
    """Print the tables and write the JSON files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("steps", "regimes"), help="one of the answers")
    parser.add_argument("--widths", type=int, nargs="+", default=[4, 8], help="for the first steps")
    parser.add_argument("--steps", type=int, default=6000, help="of the demo's grid")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="to train it")
    parser.add_argument("--runs", type=Path, help="folder for its runs; a temporary one, if not given")
    parser.add_argument("--out", help="folder for the JSON files")
    options = parser.parse_args()
    xla.use_cores_as_devices()
    if options.only != "regimes":
        rows = first_steps(options.widths)
        print(steps_table(rows), save("storage_error-steps", {"steps": STEPS, "rows": rows}, options.out), sep="\n")
    if options.only != "steps":
        with tempfile.TemporaryDirectory() as folder:
            found = regimes(options.runs or Path(folder), options.steps, options.ways)
        print(
            regimes_table(found),
            save("storage_error-regimes", {"steps": options.steps, **found}, options.out),
            sep="\n",
        )


if __name__ == "__main__":
    main()
