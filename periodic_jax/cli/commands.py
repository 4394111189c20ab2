"""The options of each command, with their types."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from periodic_jax.cli.axis import read_axis, read_count, read_path, read_run, read_selection
from periodic_jax.cli.sweep_options import IF_GIVEN, Sweep, option
from periodic_jax.runs.config import RUN_AXES


def _arg(metavar: str, text: str | None = None, *, is_optional: bool = False) -> Any:
    """The metavar and, unless the field has one, the help of an option."""
    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint="(optional)" if is_optional else None)


Run = Positional[Annotated[Path, read_run(), _arg("DIR", "Run directory.")]]
Folder = Annotated[str | None, read_path("out"), IF_GIVEN]
File = Annotated[Path, _arg("FILE")]
Selected = Annotated[
    dict[str, Any],
    read_selection(),
    IF_GIVEN,
    tyro.conf.arg(help="The configurations to look at, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given."),
]
DatasetFile = Annotated[
    str | None,
    _arg("FILE", "The .npz file, where the run's data set is one: no path there is followed.", is_optional=True),
]
DataFolder = Annotated[
    str | None, read_path("data_dir"), _arg("DIR", "As for the sweep; give it again.", is_optional=True)
]


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint and to the same bits, or extend a finished one."""

    run: Run
    steps: Annotated[int | None, read_count("steps"), IF_GIVEN] = option(
        None, "A new number of the last update, to extend the run; a schedule keeps its end."
    )
    epochs: Annotated[int | None, read_count("epochs"), IF_GIVEN] = option(None, "The same in epochs.")
    dataset: DatasetFile = None
    data_dir: DataFolder = None
    truncate: bool = option(
        False, "Where telemetry is corrupted, go back to the checkpoint before it and compute it again."
    )


_NEW_VALUES = {
    "weight_decay": "New values, as for the sweep; 0 or none: without.",
    "fixed_norm": "New values, as for the sweep; negative: the norm at the branch.",
    "schedule_end": "New values, as for the sweep; the parent's, if not given.",
    "seed": "Another order of the data, with the parent's weights.",
}
ChangedAxes: Any = dataclasses.make_dataclass(
    "ChangedAxes",
    [
        (
            name,
            Annotated[tuple[float, ...], read_axis(name, allows_zero_decay=True), IF_GIVEN],
            option((), _NEW_VALUES.get(name, "New values, as for the sweep.")),
        )
        for name in RUN_AXES
    ],
    namespace={"__doc__": "Axes of the new grid. One that is not given keeps the selected values."},
    frozen=True,
)

ChangedGrid: Any = OmitArgPrefixes[ChangedAxes]


@dataclass(frozen=True)
class Branch:
    """Start a new run from a checkpoint: some of a run's configurations with other hyperparameters."""

    run: Positional[Annotated[Path, read_run(), _arg("DIR", "Run directory of the parent.")]]
    select: Annotated[dict[str, Any], read_selection(), IF_GIVEN] = dataclasses.field(
        default_factory=dict,
        metadata={
            "help": "The configurations to take, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given. One value "
            "of each axis that is changed."
        },
    )
    step: Annotated[int | None, read_count("step"), IF_GIVEN] = option(
        None, "The checkpoint to start from; the newest, if not given. See --keep-every of the sweep."
    )
    grid: ChangedGrid = option(  # pyright: ignore[reportInvalidTypeForm] (built at run time)
        ChangedAxes(), "Axes of the new grid. One that is not given keeps the selected values."
    )
    steps: Annotated[int | None, read_count("steps"), IF_GIVEN] = option(
        None, "Number of the last update, counted from the parent's start; the parent's, if not given."
    )
    dataset: DatasetFile = None
    data_dir: DataFolder = None
    out: Folder = option(
        None, "Run directory, which must hold no run yet; runs/branch, runs/branch-2 ... if not given."
    )


@dataclass(frozen=True)
class Info:
    """Tell what a run directory holds, how far the run came, and whether it is as written."""

    run: Run
    verify: bool = option(False, "Read every telemetry chunk, checkpoint and saved minimum, and compare the checksums.")


@dataclass(frozen=True)
class Replay:
    """Run a recorded trajectory of the PyTorch reference through the same train step, and compare it step by step."""

    recording: Positional[Annotated[Path, _arg("FILE", "npz file with config, order, init/... and what was recorded.")]]
    images: Annotated[Path, _arg("FILE", "npz file with the images and labels.")]
    out: Annotated[
        str,
        read_path("out", "file", metavar="FILE"),
        _arg("FILE", "npz file to write: step/..., final/... in PyTorch's names, eval_logits."),
    ]
    precision: Annotated[str, _arg("NAME")] = option("float64", "float64 or float32.")
    copies: Annotated[int, read_count("copies")] = option(
        1, "Stacked copies that are trained side by side; the last is written."
    )
    layout: Annotated[str, _arg("NAME")] = option(
        "map", "How the copies are laid out: vmap, unroll, map, or map:K for blocks of K."
    )


@dataclass(frozen=True)
class Analyze:
    """Say what each configuration of a run did, how long its periods are, and whether the theory held.

    Prints tables and writes summary.csv and analysis.nc into the run directory. The run may still be going on.
    """

    run: Run
    predict: bool = option(
        False,
        """Also say when the next destabilisation can come and is to be expected, and test such forecasts on those that
        came.""",
    )


@dataclass(frozen=True)
class Plot:
    """Draw all figures that apply to a run into DIR/figures. The run may still be going on."""

    run: Run
    format: Annotated[tuple[str, ...], _arg("png|pdf ...")] = option(
        ("png", "pdf"), "Files to write: png, pdf (vector graphics) or both."
    )
    in_epochs: bool = option(False, "Count epochs instead of steps.")
    log_steps: bool = option(False, "A logarithmic axis of steps.")


@dataclass(frozen=True)
class Report:
    """Write DIR/report.html, to explore a run in a browser without a network, or serve it while the run goes on."""

    run: Run
    live: bool = option(False, "Serve the report on this machine (127.0.0.1) and refresh it until interrupted.")
    port: Annotated[int, read_count("port", "a whole number from 0 to 65535")] = option(8000, "Port of --live.")
    every: Annotated[int, _arg("SECONDS")] = option(10, "Seconds between refreshments of --live.")


@dataclass(frozen=True)
class Export:
    """Write a run in the format of another tool. Nothing is sent anywhere."""

    run: Run
    to: Annotated[str, _arg("NAME", "tensorboard, wandb (offline runs), csv, netcdf or npz.")]
    out: Folder = option(None, "File or folder to create; DIR/export/NAME if not given.")


@dataclass(frozen=True)
class Landscape:
    """Measure the loss landscape around checkpoints: curvature, leading eigenvalues, gradient noise.

    On the same mini-batches in train mode for all configurations. Prints a table, writes landscape.nc and a figure.
    """

    run: Run
    checkpoints: Annotated[tuple[str, ...], _arg("COUNT|all|last ...")] = option(
        ("all",),
        """Checkpoints to look at, by their number of updates; all that were kept, or the last. See --keep-every of the
        sweep.""",
    )
    select: Selected = dataclasses.field(default_factory=dict)
    weights: Annotated[str, _arg("NAME")] = option(
        "invariant", "invariant or all: the scale-invariant weights, on the unit sphere too, or all of them."
    )
    images: Annotated[int | None, read_count("images", "a whole number from 2, or all", or_all=True)] = option(
        1024, "Training images, in whole mini-batches of the run's size, as far as there are so many."
    )
    eigenvalues: Annotated[int, read_count("eigenvalues")] = option(10, "Leading eigenvalues of each matrix; 0: none.")
    probes: Annotated[int, read_count("probes")] = option(10, "Random probes for each trace; 0: no traces.")
    iterations: Annotated[int, read_count("iterations")] = option(100, "Most Lanczos iterations.")
    tolerance: Annotated[float, _arg("NUMBER")] = option(
        1e-3, "Residual at which an eigenvalue has converged, relative to the largest in size."
    )
    dataset: DatasetFile = None
    data_dir: DataFolder = None
    overwrite: bool = option(False, "Replace a landscape.nc that is there.")


@dataclass(frozen=True)
class Minima:
    """Compare the minima of a run's periods: quality, angles, barriers between them, ensembles, weight averages.

    Takes those that a sweep with --keep-period-minima saved, or else the last checkpoints before each onset. Statistics
    of batch normalisation are re-estimated everywhere. Prints tables, writes minima.nc and a figure.
    """

    run: Run
    select: Selected = dataclasses.field(default_factory=dict)
    last: Annotated[int | None, read_count("last", "a whole number from 1, or all", or_all=True)] = option(
        10, "At most so many minima of each configuration, the last ones."
    )
    images: Annotated[int | None, read_count("images", "a whole number from 2, or all", or_all=True)] = option(
        None, "Training images from which statistics and training losses are taken."
    )
    points: Annotated[int, read_count("points")] = option(11, "Points of each path, ends included; at least 3.")
    overwrite: bool = option(False, "Replace the comparison that is there.")
    dataset: DatasetFile = None
    data_dir: DataFolder = None


@dataclass(frozen=True)
class Demo:
    """Show periodic training in a minute: ten configurations of a small network on 1,797 real digits, with a table and
    figures.
    """

    out: Folder = option(None, "Run directory, which must hold no run yet; runs/demo, runs/demo-2 ... if not given.")
    steps: Annotated[int, read_count("steps")] = option(6000, "Updates to make.")


@dataclass(frozen=True)
class Launch:
    """Hand the shards of a sweep to Slurm or Ray; see periodic-jax launch slurm --help, and launch ray --help."""

    arguments: Positional[tuple[str, ...]]  # parsed by `cli.launch_engines`


COMMANDS: dict[str, type] = {
    "demo": Demo, "sweep": Sweep, "launch": Launch, "resume": Resume, "branch": Branch, "info": Info, "replay": Replay,
    "analyze": Analyze, "landscape": Landscape, "minima": Minima, "plot": Plot, "report": Report, "export": Export,
}  # fmt: skip
