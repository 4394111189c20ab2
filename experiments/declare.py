"""What an experiment declares: runs at each scale, what to measure, what to say of it, what to draw."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from matplotlib.figure import Figure

from periodic_jax.core.errors import ConfigError
from periodic_jax.runs.config import RunConfig

SCALES = ("laptop", "desktop", "paper")
SIXTEENTH = (
    "3,000 images at 16x16 pixels and a network of width 8, a sixteenth of the paper's, with as many weights to an "
    "image: the paper's test errors are not to be expected."
)
Numbers = dict[str, Any]  # what JSON can hold
Runs = Mapping[str, xr.Dataset]


@dataclass(frozen=True)
class Branch:
    """A run that starts from a checkpoint of another one; see `periodic_jax.runs.branch.branch_run`."""

    parent: str
    step: int
    select: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    change: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    steps: int | None = None


class Finding(NamedTuple):
    """One thing that the claim says, whether the numbers bear it out (None: they cannot tell), and the numbers in
    words.
    """

    holds: bool | None
    claim: str
    measured: str


def decided(holds: bool, *numbers: float) -> bool | None:
    """Whether numbers bear a claim out; None where one of them is missing, or there are none.

    Example:
        >>> decided(True, 1.0, 2.0), decided(False, 1.0, float("nan")), decided(True)
        (True, None, None)
    """
    return bool(holds) if numbers and all(map(math.isfinite, numbers)) else None


@dataclass(frozen=True)
class Experiment:
    """A claim of the paper and how it is tested.

    Attributes:
        name: of the module and of the page.
        title: of the page.
        claim: what the paper says, in our words.
        runs: for each of `SCALES`, or for some, the runs by name; parents before their branches. ``out`` is filled in
            later.
        measure: from the evidence of the runs (see `evidence.gather`) to numbers.
        findings: from the numbers to what holds and what does not.
        tables: from the numbers to Markdown.
        draw: from the flat runs and their evidence to named figures.
        captions: of each figure that may be drawn, in the order of the page.
        limits: for a scale, or for all, what it cannot tell, in words.
        extra: further evidence from the checkpoints of the runs, given their folders.
        optional: runs that the page can do without; it names those that are missing.
    """

    name: str
    title: str
    claim: str
    runs: Mapping[str, Mapping[str, RunConfig | Branch]]
    measure: Callable[[Runs], Numbers]
    findings: Callable[[Numbers], list[Finding]]
    tables: Callable[[Numbers], str]
    draw: Callable[[Runs, Runs], Iterable[tuple[str, Figure]]]
    captions: Mapping[str, str]
    limits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: Callable[[Mapping[str, Path]], dict[str, xr.Dataset]] | None = None
    optional: frozenset[str] = frozenset()


def runs_of(experiment: Experiment, scale: str) -> Mapping[str, RunConfig | Branch]:
    """The runs of a scale.

    Raises:
        ConfigError: the experiment has none of that scale.
    """
    if scale not in experiment.runs:
        raise ConfigError("--scale", scale, f"one of {', '.join(experiment.runs)} for {experiment.name}")
    return experiment.runs[scale]


def placed(experiment: Experiment, scale: str, out: Path, data_dir: str | None) -> dict[str, RunConfig | Branch]:
    """The runs of a scale with their folders below ``out``, and where the data are."""
    return {
        name: replace(run, out=out / name, data_dir=data_dir) if isinstance(run, RunConfig) else run
        for name, run in runs_of(experiment, scale).items()
    }


def paper(**settings: Any) -> RunConfig:
    """The paper's setting: ConvNetSI of width 32 on CIFAR-10, 1,000 epochs of plain SGD with a frozen head."""
    usual: dict[str, Any] = {
        "dataset": "cifar10", "width": 32, "epochs": 1000, "eval_every": 3900, "checkpoint_seconds": 300.0
    }  # fmt: skip
    return RunConfig(out="", **(usual | settings))


def desktop(**settings: Any) -> RunConfig:
    """The paper's setting, sixteen times smaller: ConvNetSI of width 8 on 3,000 images of CIFAR-10 at 16x16 pixels, 700
    epochs, three seeds. There are eight scale-invariant weights to an image, as in the paper.
    """
    usual: dict[str, Any] = {
        "dataset": "cifar10", "resize": 16, "use_data_size": 3000, "width": 8, "epochs": 700, "eval_every": 230,
        "seed": (0, 1, 2), "checkpoint_seconds": 60.0,
    }  # fmt: skip
    return RunConfig(out="", **(usual | settings))


def laptop(**settings: Any) -> RunConfig:
    """ConvNetSI of width 4 on scikit-learn's 8x8 digits."""
    return RunConfig(out="", **settings)


def small_images(**settings: Any) -> RunConfig:
    """ConvNetSI of width 8 on 2,000 images of CIFAR-10 at 8x8 pixels: too many to learn at a high rate."""
    usual: dict[str, Any] = {"dataset": "cifar10", "resize": 8, "use_data_size": 2000, "width": 8}
    return RunConfig(out="", **(usual | settings))
