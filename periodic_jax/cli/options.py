"""The options that several commands have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from periodic_jax.cli.axis import read_path, read_run, read_selection
from periodic_jax.runs.settings import setting

IF_GIVEN = tyro.conf.arg(help_behavior_hint="(optional)")  # in the place of a default of None


def arg(metavar: str, text: str | None = None) -> Any:
    """The metavar and, unless the field has one, the help of an option."""
    return tyro.conf.arg(metavar=metavar, help=text)


@dataclass(frozen=True)
class DataFiles:
    """What a run's config.json must not lead to: no path in it is followed, and nothing is imported."""

    dataset: Annotated[str | None, arg("FILE"), IF_GIVEN] = setting(
        None, "The .npz file, where the run's data set is one."
    )
    data_dir: Annotated[str | None, read_path("data_dir"), IF_GIVEN] = setting(None, "As for the sweep; give it again.")
    model: Annotated[str | None, arg("MODULE:NAME"), IF_GIVEN] = setting(
        None, "The import path of the run's network, where it is one of your own."
    )


Run = Positional[Annotated[Path, read_run(), arg("DIR", "Run directory.")]]
Folder = Annotated[str | None, read_path("out"), IF_GIVEN]
Selected = Annotated[
    dict[str, Any] | None,
    read_selection(),
    IF_GIVEN,
    arg("AXIS=NUMBER ...", "The configurations to look at, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given."),
]
Data = OmitArgPrefixes[DataFiles]
