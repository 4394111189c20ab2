"""The commands that train: ``demo``, ``resume`` and ``branch``; see `cli.sweep` for ``sweep``."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional

import periodic_jax as pj
from periodic_jax.cli.axis import read_axis, read_count, read_run, read_selection, read_steps
from periodic_jax.cli.launch import draw_figures, print_results, train_and_report, train_with_progress
from periodic_jax.cli.options import IF_GIVEN, Data, DataFiles, Folder, Run, arg
from periodic_jax.core.files import shown_path
from periodic_jax.core.formatting import counted
from periodic_jax.core.grid import INITIAL_SEEDS, RUN_AXES
from periodic_jax.runs.config import RunConfig
from periodic_jax.runs.settings import setting
from periodic_jax.storage.run_directory import free_folder


@dataclass(frozen=True)
class Demo:
    """Show periodic training in a minute: ten configurations of a small network on 1,797 real digits, with a table and
    figures.
    """

    out: Folder = setting(
        None, "Run directory: a new one, or that of this very demo; runs/demo, runs/demo-2 ... if not given."
    )
    steps: Annotated[int, read_count("steps")] = setting(6000, "Updates to make.")

    def execute(self) -> None:
        """Train, and print the table and the figures' names."""
        from periodic_jax.runs.run import claim_run

        out, lr, weight_decay = self.out or free_folder("demo"), (0.01, 0.03, 0.1, 0.3, 1.0), (1e-3, 1e-2)
        config = RunConfig(out=out, lr=lr, weight_decay=weight_decay, steps=self.steps)
        claim_run(config)  # what is refused is refused before anything is printed
        print(
            f"ConvNetSI of width {config.width} on scikit-learn's digits: {len(lr)} learning rates x "
            f"{len(weight_decay)} weight decays, {counted(self.steps, 'step')} each."
        )
        run = train_with_progress(pj.run_sweep, config)
        files = draw_figures(run)
        print_results(run)
        print("Look at:", *map(shown_path, files), sep="\n  ")


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint (on a CPU to the same bits), extend a finished one, or
    write its corrupted metadata again.
    """

    run: Run
    steps: Annotated[int | None, read_count("steps"), IF_GIVEN] = setting(
        None, "A new number of the last update, to extend the run; a schedule keeps its end."
    )
    epochs: Annotated[int | None, read_count("epochs"), IF_GIVEN] = setting(
        None, "The new end in epochs, instead of --steps."
    )
    truncate: Annotated[bool, IF_GIVEN] = setting(
        False, "If telemetry is corrupted, go back to the checkpoint before the corruption and compute the rest again."
    )
    data: Data = DataFiles()

    def execute(self) -> None:
        """Train on, and print the results."""
        train_and_report(
            pj.resume_run, self.run, steps=self.steps, epochs=self.epochs, truncate=self.truncate, **vars(self.data)
        )


CHANGEABLE = [name for name in RUN_AXES if name not in INITIAL_SEEDS]  # the weights are the parent's
_NEW_VALUES = {
    "fixed_norm": "New values, as for the sweep; negative: the norm at the branch.",
    "schedule_end": "New values, as for the sweep; the parent's, if not given.",
    "seed": "Another order of the data, with the parent's weights.",
    "data_seed": "Another order of the data; -1: that of --seed.",
}


def _new_values(axis: str) -> tuple[str, Any, Any]:
    """The option of an axis of a branch's grid."""
    kind = Annotated[tuple[float, ...], read_axis(axis), IF_GIVEN]
    return axis, kind, setting((), _NEW_VALUES.get(axis, "New values, as for the sweep."))


ChangedAxes: Any = dataclasses.make_dataclass("ChangedAxes", map(_new_values, CHANGEABLE), frozen=True)
ChangedGrid: Any = OmitArgPrefixes[ChangedAxes]


@dataclass(frozen=True)
class Branch:
    """Start a new run from a checkpoint: some of a run's configurations with other hyperparameters."""

    run: Positional[Annotated[Path, read_run(), arg("DIR", "Run directory of the parent.")]]
    select: Annotated[dict[str, Any] | None, read_selection(), IF_GIVEN] = setting(
        None,
        """The configurations to take, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given. Select one value
        of each axis that you change.""",
    )
    step: Annotated[tuple[int, ...], read_steps("step"), IF_GIVEN] = setting(
        (),
        """The checkpoint to start from; the newest, if not given. See --keep-every of the sweep. With several, such as
        1000 2000 3000, each starts a run of its own in the folder --out: branch_step=1000 and so on.""",
    )
    grid: ChangedGrid = setting(  # pyright: ignore[reportInvalidTypeForm] (built at run time)
        ChangedAxes(), "Axes of the new grid. One that is not given keeps the selected values."
    )
    steps: Annotated[int | None, read_count("steps"), IF_GIVEN] = setting(
        None, "Number of the last update, counted from the parent's start; the parent's, if not given."
    )
    out: Folder = setting(
        None,
        """Run directory: a new one, or that of this very branch, which the command then continues; runs/branch,
        runs/branch-2 ... if not given.""",
    )
    data: Data = DataFiles()

    def execute(self) -> None:
        """Train the new run, and print the results."""
        change = {name: values for name, values in vars(self.grid).items() if values}
        out, options = self.out or free_folder("branch"), {"select": self.select, "change": change, "steps": self.steps}
        options |= vars(self.data)
        if len(self.step) < 2:
            step = self.step[0] if self.step else None
            train_and_report(pj.branch_run, self.run, out, step=step, **options)
            return
        from periodic_jax.runs.branch import branch_from_each

        for run in train_with_progress(branch_from_each, self.run, out, self.step, **options):
            draw_figures(run)
            print_results(run)
        print(f"all of them: periodic_jax.open_run({str(out)!r}), along branch_step")
