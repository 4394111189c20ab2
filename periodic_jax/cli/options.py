"""The options of each command.

All are words to tyro, so that one place, `words`, turns them into numbers and says what is accepted.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

Numbers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...")]
OptionalNumbers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...", help_behavior_hint="(optional)")]
Whole = Annotated[str, tyro.conf.arg(metavar="COUNT")]
OptionalWhole = Annotated[str, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(optional)")]
Number = Annotated[str, tyro.conf.arg(metavar="NUMBER")]
Word = Annotated[str, tyro.conf.arg(metavar="NAME")]
File = Annotated[str, tyro.conf.arg(metavar="FILE")]
Folder = Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(optional)")]
Pairs = Annotated[tuple[str, ...], tyro.conf.arg(metavar="AXIS=NUMBER ...", help_behavior_hint="(optional)")]

# Options that several commands have.
Run = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR", help="Run directory.")]]
Selected = Annotated[
    Pairs,
    tyro.conf.arg(help="The configurations to look at, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given."),
]
DatasetFile = Annotated[
    str,
    tyro.conf.arg(
        metavar="FILE",
        help_behavior_hint="(optional)",
        help="The .npz file, where the run's data set is one: no path in a run directory is followed.",
    ),
]
DataFolder = Annotated[Folder, tyro.conf.arg(help="As for the sweep, which must be given again.")]


@dataclass(frozen=True)
class Sweep:
    """Train a grid of hyperparameters side by side and record every step.

    Every option with NUMBER ... is an axis of the grid and takes one or more numbers, or ranges: logspace:1e-3:1:7,
    linspace:0:0.9:4. All combinations are trained.
    """

    lr: Numbers = ("0.1",)
    """Learning rates, above 0."""
    weight_decay: OptionalNumbers = ("default",)
    """Weight decays (coupled, L2), above 0, with lr x decay below 1; the word none for training without. 1e-3 if not
    given, none where every --elr is above 0."""
    momentum: Numbers = ("0",)
    """Momenta, from 0 to below 1."""
    noninvariant_lr: Numbers = ("0",)
    """Learning rates of the weights that are not scale-invariant: 0 freezes them, negative means the same as --lr."""
    elr: Numbers = ("0",)
    """Fixed effective learning rates: lr = ELR x norm^2 at every step; 0: off."""
    fixed_norm: Numbers = ("0",)
    """Norms to project the scale-invariant weights on after each step; 0: free, negative: the initial norm."""
    schedule_end: Numbers = ("0",)
    """Updates after which a schedule is done; 0: the end of the run."""
    schedule_factor: Numbers = ("10",)
    """Divisors p of the schedules c and d."""
    seed: Numbers = ("0",)
    """Seeds, whole numbers from 0: each has its own initial weights and data order."""
    dataset: Word = "digits"
    """digits (1,797 real 8x8 scans, embedded), cifar10, cifar100 or svhn (looked for on this machine), synthetic
    (made-up 32x32 images), or the path of an .npz file with images, labels, test_images and test_labels."""
    data_dir: Folder = ""
    """Folder with the official files (CIFAR: cifar-10-batches-py or the .tar.gz; SVHN: the .mat files) or a data set
    prepared by TFDS. After it come ~/datasets/NAME and ~/tensorflow_datasets."""
    download: bool = False
    """Let TFDS download the data set if it is found nowhere; needs the extra tfds. Nothing else uses the network."""
    augment: bool = False
    """Random crops (4 pixels of black around the image) and horizontal flips, the same for all configurations of a
    seed."""
    validation: OptionalWhole = ""
    """Evaluate on the last COUNT training images instead of the test set, and do not train on them; the reference
    takes 5000."""
    split_classes: Annotated[str, tyro.conf.arg(metavar="0|1", help_behavior_hint="(optional)")] = ""
    """Only half of CIFAR-10's classes. 0: airplane, automobile, bird, ship, truck; 1: cat, deer, dog, frog, horse."""
    use_data_size: OptionalWhole = ""
    """Train on the first COUNT images only."""
    corrupt_train: Number = "0"
    """Fraction of the training images that get a random label, which may be the true one."""
    resize: OptionalWhole = ""
    """Height in pixels to shrink the images to, by averaging over square blocks; 16 for small machines."""
    model: Word = "ConvNetSI"
    """ConvNetSI, ConvNetSIAf, ConvNet, ResNet18SI, ResNet18SIAf or ResNet18; SI: all but the head scale-invariant; Af:
    with affine batch normalisation."""
    width: Whole = "4"
    """Channels of the first layer."""
    depth: Whole = "3"
    """Convolutions after the first."""
    init_scale: Number = "10"
    """Norm of the head's weight at the start; not positive: PyTorch's default initialisation."""
    batch_size: Whole = "128"
    """Images in a mini-batch."""
    steps: OptionalWhole = ""
    """Updates to make: this or --epochs."""
    epochs: OptionalWhole = ""
    """Passes over the whole mini-batches of the training set: this or --steps."""
    eval_every: OptionalWhole = ""
    """Updates between evaluations; if not given a hundredth of the run, or as many as take three times as long as an
    evaluation."""
    layout: Word = "auto"
    """How configurations are laid out: auto, vmap, unroll, map, or map:K for blocks of K."""
    precision: Word = "float32"
    """float32, tf32, bf16 or float64."""
    loss: Word = "cross_entropy"
    """cross_entropy or squared."""
    schedule: Word = "constant"
    """Of the learning rate: constant, cosine, c (flat for a quarter, then linear to lr/p), d (divided by p at each
    quarter) or default (flat for a half, then linear to 1 % at 90 %)."""
    schedule_per: Word = "step"
    """step or epoch: how often the schedule changes the rate."""
    norm_per: Word = "total"
    """total or filter: whether --fixed-norm holds all scale-invariant weights together or each output filter."""
    full_batch: bool = False
    """Full-batch gradient descent, accumulated over mini-batches: a step is an epoch."""
    per_layer: bool = False
    """Record the dynamics of every layer too."""
    track_sharpness: Annotated[str, tyro.conf.arg(metavar="EVERY", help_behavior_hint="(optional)")] = ""
    """Record the sharpness of the mini-batch on the unit sphere every so many updates; at 50 it costs some 8 %."""
    keep_period_minima: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[COUNT]")] = ("off",)
    """Keep the lowest point of each period of each configuration, for periodic-jax minima. Candidates are COUNT steps
    apart (10 to 10000), 100 if not given: a small part of a period, such as an epoch."""
    keep: Whole = "2"
    """How many of the last checkpoints to keep."""
    keep_every: OptionalWhole = ""
    """Keep the checkpoints at all multiples of COUNT updates too, to branch from them."""
    checkpoint_seconds: Number = "10"
    """Least time between two checkpoints; one is always written at the end."""
    out: Folder = ""
    """Run directory: a new one, or that of this very run, unfinished, which then goes on; runs/sweep, runs/sweep-2 ...
    if not given."""
    dry_run: bool = False
    """Only tell what the sweep would take: configurations of each device, memory, disk, time, and how to split it."""


@dataclass(frozen=True)
class Resume:
    """Continue a run that was stopped, from its last checkpoint and to the same bits, or extend a finished one."""

    run: Run
    steps: OptionalWhole = ""
    """A new number of the last update, to extend the run; a schedule keeps its end."""
    epochs: OptionalWhole = ""
    """The same in epochs."""
    dataset: DatasetFile = ""
    data_dir: DataFolder = ""
    truncate: bool = False
    """Where telemetry is corrupted, go back to the checkpoint before it and compute it again."""


@dataclass(frozen=True)
class Branch:
    """Start a new run from a checkpoint: some of a run's configurations with other hyperparameters.

    Every option with NUMBER ... is an axis of the new grid. An axis that is not given keeps the selected values.
    """

    run: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Run directory of the parent."""
    select: Pairs = ()
    """The configurations to take, such as lr=0.1 weight_decay=1e-3,1e-2; all, if not given. One value of each axis that
    is changed."""
    step: OptionalWhole = ""
    """The checkpoint to start from; the newest, if not given. See --keep-every of the sweep."""
    lr: OptionalNumbers = ()
    """New values, as for the sweep."""
    weight_decay: OptionalNumbers = ()
    """Likewise; 0 or none: without."""
    momentum: OptionalNumbers = ()
    """Likewise."""
    noninvariant_lr: OptionalNumbers = ()
    """Likewise."""
    elr: OptionalNumbers = ()
    """Likewise."""
    fixed_norm: OptionalNumbers = ()
    """Likewise; negative: the norm at the branch."""
    schedule_end: OptionalNumbers = ()
    """Likewise; the parent's, if not given."""
    schedule_factor: OptionalNumbers = ()
    """Likewise."""
    seed: OptionalNumbers = ()
    """Likewise: another order of the data, with the parent's weights."""
    steps: OptionalWhole = ""
    """Number of the last update, counted from the parent's start; the parent's, if not given."""
    dataset: DatasetFile = ""
    data_dir: DataFolder = ""
    out: Folder = ""
    """Run directory, which must hold no run yet; runs/branch, runs/branch-2 ... if not given."""


@dataclass(frozen=True)
class Info:
    """Tell what a run directory holds, how far the run came, and whether it is as written."""

    run: Run
    verify: bool = False
    """Read every telemetry chunk, checkpoint and kept minimum, and compare the checksums."""


@dataclass(frozen=True)
class Replay:
    """Run a recorded trajectory of the PyTorch reference through the same train step, and compare it step by step."""

    recording: tyro.conf.Positional[File]
    """npz file with config, order, init/... and what was recorded."""
    images: File
    """npz file with the images and labels."""
    out: File
    """npz file to write: step/..., final/... in PyTorch's names, eval_logits."""
    precision: Word = "float64"
    """float64 or float32."""
    copies: Whole = "1"
    """Stacked copies that are trained side by side; the last is written."""
    layout: Word = "map"
    """How the copies are laid out: vmap, unroll, map, or map:K for blocks of K."""


@dataclass(frozen=True)
class Analyze:
    """Say what each configuration of a run did, how long its periods are, and whether the theory held.

    Prints tables and writes summary.csv and analysis.zarr into the run directory. The run may still be going on.
    """

    run: Run
    predict: bool = False
    """Also say when the next destabilisation can come and is to be expected, and test such forecasts on those that
    came."""


@dataclass(frozen=True)
class Plot:
    """Draw all figures that apply to a run into DIR/figures. The run may still be going on."""

    run: Run
    format: Annotated[tuple[str, ...], tyro.conf.arg(metavar="png|pdf ...")] = ("png", "pdf")
    """Files to write: png, pdf (vector graphics) or both."""
    in_epochs: bool = False
    """Count epochs instead of steps."""
    log_steps: bool = False
    """A logarithmic axis of steps."""


@dataclass(frozen=True)
class Report:
    """Write DIR/report.html: one file without a network to explore a run in a browser, or serve it while the run goes
    on.
    """

    run: Run
    live: bool = False
    """Serve the report on this machine (127.0.0.1) instead, and refresh it until interrupted."""
    port: Annotated[str, tyro.conf.arg(metavar="NUMBER")] = "8000"
    """Port of --live."""
    every: Annotated[str, tyro.conf.arg(metavar="SECONDS")] = "10"
    """Seconds between refreshments of --live."""


@dataclass(frozen=True)
class Export:
    """Write a run in the format of another tool. Nothing is sent anywhere."""

    run: Run
    to: Word
    """tensorboard, wandb (offline runs), csv, netcdf or npz."""
    out: Folder = ""
    """File or folder to create; DIR/export/NAME if not given."""


@dataclass(frozen=True)
class Landscape:
    """Measure the loss landscape around checkpoints: curvature, leading eigenvalues, gradient noise.

    On the same mini-batches in train mode for all configurations. Prints a table, writes landscape.zarr and a figure.
    """

    run: Run
    checkpoints: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COUNT|all|last ...")] = ("all",)
    """Checkpoints to look at, by their number of updates; all that were kept, or the last. See --keep-every of the
    sweep."""
    select: Selected = ()
    weights: Word = "invariant"
    """invariant or all: the scale-invariant weights, on the unit sphere too, or all of them."""
    images: Annotated[str, tyro.conf.arg(metavar="COUNT|all")] = "1024"
    """Training images, in whole mini-batches of the run's size, as far as there are so many."""
    eigenvalues: Whole = "10"
    """Leading eigenvalues of each matrix; 0: none."""
    probes: Whole = "10"
    """Random probes for each trace; 0: no traces."""
    iterations: Whole = "100"
    """Most Lanczos iterations."""
    tolerance: Number = "1e-3"
    """Residual at which an eigenvalue has converged, relative to the largest in size."""
    dataset: DatasetFile = ""
    data_dir: DataFolder = ""
    overwrite: bool = False
    """Replace a landscape.zarr that is there."""


@dataclass(frozen=True)
class Minima:
    """Compare the minima of a run's periods: quality, angles, barriers between them, ensembles, weight averages.

    Takes those that a sweep with --keep-period-minima kept, or else the last checkpoints before each onset. Statistics
    of batch normalisation are re-estimated everywhere. Prints tables, writes minima.zarr and a figure.
    """

    run: Run
    select: Selected = ()
    last: Annotated[str, tyro.conf.arg(metavar="COUNT|all")] = "10"
    """At most so many minima of each configuration, the last ones."""
    images: Annotated[str, tyro.conf.arg(metavar="COUNT|all")] = "all"
    """Training images from which statistics and training losses are taken."""
    points: Whole = "11"
    """Points of each path, ends included; at least 3."""
    overwrite: bool = False
    """Replace the comparison that is there."""
    dataset: DatasetFile = ""
    data_dir: DataFolder = ""


@dataclass(frozen=True)
class Demo:
    """Show periodic training in a minute: ten configurations of a small network on 1,797 real digits, with a table and
    figures.
    """

    out: Folder = ""
    """Run directory, which must hold no run yet; runs/demo, runs/demo-2 ... if not given."""
    steps: Whole = "6000"
    """Updates to make."""


COMMANDS: dict[str, type] = {
    "demo": Demo, "sweep": Sweep, "resume": Resume, "branch": Branch, "info": Info, "replay": Replay,
    "analyze": Analyze, "landscape": Landscape, "minima": Minima, "plot": Plot, "report": Report, "export": Export,
}  # fmt: skip
