"""The commands that compute with the weights of a run or of a recording: ``landscape``, ``minima`` and ``replay``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional

import periodic_jax as pj
from periodic_jax.cli.axis import read_count, read_number, read_path
from periodic_jax.cli.launch import log_line
from periodic_jax.cli.options import IF_GIVEN, Data, DataFiles, Run, Selected, arg
from periodic_jax.cli.results import print_and_write
from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.runs.settings import setting
from periodic_jax.storage.run_directory import COMPARISON, LANDSCAPE, is_sharded, read_config
from periodic_jax.training import xla

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Landscape:
    """Measure the loss landscape around checkpoints: curvature, leading eigenvalues, gradient noise.

    Measures all configurations on the same mini-batches in train mode. Prints a table, writes landscape.nc and a
    figure.
    """

    run: Run
    checkpoints: Annotated[tuple[str, ...], arg("N|all|last ...")] = setting(
        ("all",),
        """Checkpoints to look at, by their number of updates; all that were kept, or the last. See --keep-every of the
        sweep.""",
    )
    select: Selected = None
    weights: Annotated[str, arg("NAME")] = setting(
        "invariant", "invariant or all: the scale-invariant weights, on the unit sphere too, or all of them."
    )
    images: Annotated[int | None, read_count("images", 2, or_all=True)] = setting(
        1024, "Training images, in whole mini-batches of the run's size, as far as there are so many."
    )
    eigenvalues: Annotated[int, read_count("eigenvalues")] = setting(10, "Leading eigenvalues of each matrix; 0: none.")
    probes: Annotated[int, read_count("probes")] = setting(10, "Random probes for each trace; 0: no traces.")
    iterations: Annotated[int, read_count("iterations")] = setting(100, "Largest number of Lanczos iterations.")
    tolerance: Annotated[float, read_number("tolerance")] = setting(
        1e-3, "Residual at which an eigenvalue has converged, relative to the largest in size."
    )
    density: Annotated[int, read_count("density")] = setting(
        0, "Iterations of stochastic Lanczos from each probe, for the spectral density of each matrix; 0: none."
    )
    overwrite: Annotated[bool, IF_GIVEN] = setting(False, "Replace an existing landscape.nc.")
    data: Data = DataFiles()

    def execute(self) -> None:
        """Measure, print and write."""
        from periodic_jax.inspection.landscape import Budget, measure_landscape

        xla.use_cores_as_devices()
        budget = Budget(self.images, self.probes, self.eigenvalues, self.iterations, self.tolerance, self.density)
        measure = partial(
            measure_landscape, checkpoints=self.checkpoints, select=self.select, weights=self.weights, budget=budget,
            **vars(self.data),
        )  # fmt: skip
        _measure(self, LANDSCAPE, measure, pj.tables.landscape_as_text, pj.plots.save_landscape)


@dataclass(frozen=True)
class Minima:
    """Compare the minima of a run's periods: quality, angles, barriers between them, ensembles, weight averages.

    Takes those that a sweep with --keep-period-minima saved, or else the last checkpoints before each onset. Statistics
    of batch normalisation are re-estimated everywhere. Prints tables, writes minima.nc and a figure.
    """

    run: Run
    select: Selected = None
    last: Annotated[int | None, read_count("last", 1, or_all=True)] = setting(
        10, "At most so many minima of each configuration, the last ones."
    )
    images: Annotated[int | None, read_count("images", 2, or_all=True)] = setting(
        None, "Training images from which statistics and training losses are taken."
    )
    points: Annotated[int, read_count("points")] = setting(11, "Points of each path, ends included; at least 3.")
    overwrite: Annotated[bool, IF_GIVEN] = setting(False, "Replace an existing minima.nc.")
    data: Data = DataFiles()

    def execute(self) -> None:
        """Compare, print and write."""
        measure = partial(
            pj.minima.compare, select=self.select, last=self.last, images=self.images, points=self.points,
            **vars(self.data),
        )  # fmt: skip
        _measure(self, COMPARISON, measure, pj.tables.minima_as_text, pj.plots.save_minima)


def _measure(
    options: Landscape | Minima,
    file: str,
    measure: "Callable[..., xr.Dataset]",
    as_text: "Callable[[xr.Dataset], str]",
    save_figures: "Callable[[xr.Dataset, Path], list[Path]]",
) -> None:
    """Measure what a run's directory does not hold yet, print it, and write the file and its figures."""
    from periodic_jax.storage.datasets import write_store

    path = options.run
    if not is_sharded(path):
        read_config(path)
    if (path / file).exists() and not options.overwrite:
        raise UsageError(path / file, "this was measured before", "give --overwrite to measure anew and replace it")
    xla.keep_compiled_programs()
    measured = measure(path, progress=log_line)
    print_and_write(
        as_text(measured), lambda: [write_store(measured, path / file), *save_figures(measured, path / "figures")]
    )


@dataclass(frozen=True)
class Replay:
    """Run a recorded trajectory of the PyTorch reference through the same train step, and compare it step by step."""

    recording: Positional[Annotated[Path, arg("FILE", "npz file with config, order, init/... and what was recorded.")]]
    images: Annotated[Path, arg("FILE", "npz file with the images and labels.")]
    out: Annotated[
        str,
        read_path("out", "file", metavar="FILE"),
        arg("FILE", "npz file to write: step/..., final/... in PyTorch's names, eval_logits."),
    ]
    precision: Annotated[str, arg("NAME")] = setting("float64", "float64 or float32.")
    copies: Annotated[int, read_count("copies", 1)] = setting(
        1, "Copies to train side by side; the command writes the last one."
    )
    layout: Annotated[str, arg("NAME")] = setting(
        "map", "How the copies are laid out: vmap, unroll, map, or map:K for blocks of K."
    )

    def execute(self) -> None:
        """Train, write the result and print the differences."""
        from periodic_jax.inspection import replay

        if self.precision not in ("float32", "float64"):
            raise ConfigError("--precision", self.precision, "float32 or float64")
        if not Path(self.out).resolve().parent.is_dir() or Path(self.out).is_dir():
            raise ConfigError("--out", self.out, "a file in an existing folder")
        recording, images = replay.load_recording(self.recording), replay.load_recording(self.images)
        with xla.precision(self.precision):
            xla.check_reductions()
            result = replay.replay(recording, images, copies=self.copies, layout=self.layout)
        replay.save(result, self.out)
        first = 10 if self.precision == "float64" else 5
        print(f"{'largest relative difference':28s}{f'first {first} steps':>16s}{'all steps':>12s}")
        for name, (early, late) in replay.compare(result, recording, first).items():
            print(f"{name:28s}{early:16.1e}{late:12.1e}")
