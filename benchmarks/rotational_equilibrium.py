"""How near do norm and angle come to the rotational equilibrium of each optimiser?

    python -m benchmarks.rotational_equilibrium [--steps 4000] [--runs DIR]

Trains `ConvNetSI` of width 4 on digits, in mini-batches of 32, with each of `CASES`, and gives measured over predicted
angle and norm as `analyze` has them. Runs that are in DIR already are gone on with, or read.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import save, table
from periodic_jax.training import xla


class Case(NamedTuple):
    """A grid of one optimiser."""

    optimizer: str
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    labels: str = "true"  # or random


CASES = (
    Case("sgd", (0.1, 0.3), (0.01, 0.03)),
    Case("nesterov", (0.1, 0.3), (0.01, 0.03)),
    Case("sgdw", (0.1, 0.3), (0.01, 0.03)),
    Case("adamw", (0.01, 0.03), (0.3,)),
    Case("lion", (0.01, 0.03), (0.3,)),
    Case("adamw", (0.03,), (0.3,), "random"),
    Case("lion", (0.03,), (0.3,), "random"),
)
SHARES: dict[str, dict[str, Any]] = {
    "sgd": {"momentum": 0.9}, "nesterov": {"momentum": 0.9}, "sgdw": {"momentum": 0.9},
    "adamw": {"beta1": 0.9, "beta2": 0.999}, "lion": {"beta1": 0.9, "beta2": 0.99},
}  # fmt: skip


def measured(case: Case, folder: Path, steps: int, **settings: Any) -> list[dict[str, Any]]:
    """Of each configuration its regime, and measured over predicted angle and norm.

    Args:
        case: what to train.
        folder: of its run.
        steps: of the run.
        **settings: of `RunConfig`, in place of those of the benchmark.
    """
    from periodic_jax import RunCallbacks, RunConfig, run_sweep

    usual = {"width": 4, "batch_size": 32, "corrupt_train": 1.0 if case.labels == "random" else 0.0}
    config = RunConfig(
        out=folder / f"{case.optimizer}-{case.labels}", optimizer=case.optimizer, lr=case.lr,
        weight_decay=case.weight_decay, steps=steps, **SHARES[case.optimizer], **(usual | settings),
    )  # fmt: skip
    found = run_sweep(config, callbacks=RunCallbacks(log=lambda line: None)).analysis
    angle = found.measured_angular_step.values / found.equilibrium_angular_step.values
    norm = found.measured_weight_norm.values / found.equilibrium_weight_norm.values
    return [
        {
            "optimizer": case.optimizer, "labels": case.labels, "lr": float(found.lr[i]),
            "weight_decay": float(found.weight_decay[i]), "steps": steps, "regime": str(found.regime.values[i]),
            "angle": float(angle[i]), "norm": float(norm[i]),
        }
        for i in range(found.sizes["config"])
    ]  # fmt: skip


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Of `measured`."""
    header = ("optimiser", "labels", "lr", "weight decay", "regime", "θ", "norm")
    cells = [
        (f"`{row['optimizer']}`", row["labels"], row["lr"], row["weight_decay"], row["regime"],
         f"{row['angle']:.3f}", f"{row['norm']:.3f}")
        for row in rows
    ]  # fmt: skip
    return table(header, cells)


def main() -> None:
    """Print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000, help="of each run")
    parser.add_argument("--runs", type=Path, help="folder for the runs; a temporary one, if not given")
    parser.add_argument("--out", help="folder for the JSON file")
    options = parser.parse_args()
    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.runs or Path(temporary)
        rows = [row for case in CASES for row in measured(case, folder, options.steps)]
    print(as_table(rows))
    print(save("rotational_equilibrium", rows, options.out))


if __name__ == "__main__":
    main()
