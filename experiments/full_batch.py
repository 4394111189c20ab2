"""Full-batch gradient descent: periods without any noise of mini-batches."""

from collections.abc import Iterator

from matplotlib.figure import Figure

from experiments import reading
from experiments.common import main
from experiments.declare import Experiment, Finding, Numbers, Runs, decided, laptop, paper
from experiments.drawing import four_panels
from experiments.pages import table

RUNS = {
    "laptop": {
        "run": laptop(
            full_batch=True, use_data_size=640, lr=(0.1, 0.3, 1.0), weight_decay=(1e-2,), steps=8000, eval_every=80
        ),
    },
    "paper": {
        "run": paper(
            full_batch=True, lr=(0.1, 0.3, 1.0, 3.0), weight_decay=(1e-3,), epochs=10_000, eval_every=100
        ),
    },
}  # fmt: skip


def measure(runs: Runs) -> Numbers:
    """Of each configuration what every page tells, and how quiet its falls are."""
    found = runs["run"]
    rows = []
    for i, row in reading.configurations(found):
        falls, decay = reading.of(found, "fall_steps", i), reading.of(found, "predicted_fall_steps", i)
        row["fall_over_decay"] = float((falls.sum() / decay.sum()) if len(falls) else float("nan"))
        row["burst_share"] = float(found.burst_share.values[i])
        rows.append(row)
    slopes = [float(found[f"slope{end}"].sel(fit="period_length")) for end in ("", "_low", "_high")]
    return {"rows": rows, "slope": slopes}


def findings(numbers: Numbers) -> list[Finding]:
    """Of the claim."""
    rows = numbers["rows"]
    periodic = [row for row in rows if row["regime"] == "periodic"]
    falls = ", ".join(f"{row['fall_over_decay']:.2f}" for row in periodic)
    off = [abs(row["fall_over_decay"] - 1) for row in periodic]
    slope, low, high = numbers["slope"]
    return [
        Finding(
            len(periodic) > 1,
            "Full-batch gradient descent is periodic: mini-batch noise is not the cause.",
            f"{len(periodic)} of {len(rows)} learning rates are periodic, with "
            f"{', '.join(str(row['jumps']) for row in periodic) or 'no'} destabilisations.",
        ),
        Finding(
            decided(low <= -1 <= high, low, high),
            "The period is inversely proportional to the product of learning rate and decay.",
            f"Slope of ln(period) against ln(product): {slope:.2f} [{low:.2f}, {high:.2f}].",
        ),
        Finding(
            decided(max(off, default=0) < 0.1, *off),
            "Between the bursts the norm only decays.",
            f"Falls take {falls or '-'} times the steps of decay alone.",
        ),
    ]


def tables(numbers: Numbers) -> str:
    """The configurations."""
    rows = [
        [
            f"{row['lr']:g}", f"{row['weight_decay']:g}", row["regime"], row["jumps"], row["mean_period"],
            row["onset_elr"], row["fall_over_decay"], row["burst_share"], row["lowest_train_loss"],
        ]
        for row in numbers["rows"]
    ]  # fmt: skip
    header = (
        "learning rate", "decay", "regime", "jumps", "mean period [steps]", "ELR at onset (median)",
        "falls / falls by decay alone", "share of rotation in bursts", "lowest training loss",
    )  # fmt: skip
    return table(header, rows)


def draw(flat: Runs, _: Runs) -> Iterator[tuple[str, Figure]]:
    """Four panels."""
    yield "run", four_panels(flat["run"], "lr", "learning rate")


EXPERIMENT = Experiment(
    name="full_batch",
    title="Full-batch gradient descent",
    claim="the periods are no effect of mini-batch noise: full-batch gradient descent has them too.",
    runs=RUNS,
    measure=measure,
    findings=findings,
    tables=tables,
    draw=draw,
    captions={"run": "Three learning rates; a step is one pass over all images."},
    limits={
        "laptop": ("640 images. Batch normalisation still sees 128 images at a time, always the same ones together.",)
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
