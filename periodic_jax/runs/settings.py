"""The settings of a run by theme, each declared once: type, default, help, and whether it is an axis of the grid.

`RunConfig` has all of them as fields, and the command line derives an option from each.
"""

import dataclasses
import os
import reprlib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.formatting import flag_of
from periodic_jax.core.grid import axis_rule

IN_WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "True or False", Path: "a path", type(None): "None",
}  # fmt: skip


def setting(default: Any, text: str, *, metavar: str | None = None, is_axis: bool = False) -> Any:
    """A field of a theme.

    Args:
        default: its default.
        text: its help.
        metavar: how its value is called in the help; by its type, if None.
        is_axis: it takes several values, of which the grid has all combinations.
    """
    metadata = {"help": " ".join(text.split()), "metavar": metavar, "is_axis": is_axis}
    return dataclasses.field(default=default, metadata=metadata)


def axis(default: tuple[Any, ...], text: str) -> Any:
    """A field that is an axis of the grid."""
    return setting(default, text, is_axis=True)


@dataclass(frozen=True)
class GridAxes:
    """Axes of the grid, each with one or more values."""

    lr: tuple[float, ...] = axis((0.1,), "Learning rates, above 0.")
    weight_decay: tuple[float, ...] = axis(
        (1e-3,), "Weight decays from 0, with lr x decay below 1; 0, if --elr is given and this is not."
    )
    seed: tuple[int, ...] = axis((0,), "Seeds of the initial weights and the order of the data, from 0.")
    momentum: tuple[float, ...] = axis((0.0,), "Momentum of sgd, sgdw and nesterov: from 0 to below 1.")
    beta1: tuple[float, ...] = axis((0.9,), "First decay rate of adam, adamw and lion: from 0 to below 1.")
    beta2: tuple[float, ...] = axis(
        (0.999,), "Second decay rate of adam, adamw and lion (usual there: 0.99): from 0 to below 1."
    )
    eps: tuple[float, ...] = axis((1e-8,), "Epsilon of adam and adamw, above 0.")
    noninvariant_lr: tuple[float, ...] = axis(
        (0.0,), "Learning rates of the weights that are not scale-invariant; 0 freezes them, negative: as --lr."
    )
    elr: tuple[float, ...] = axis((0.0,), "Fixed effective learning rates, lr = ELR x norm^2; 0: off.")
    fixed_norm: tuple[float, ...] = axis(
        (0.0,), "Norms of the scale-invariant weights after each step; 0: free, negative: the initial norm."
    )
    schedule_end: tuple[float, ...] = axis((0.0,), "Steps after which a schedule ends; 0: the end of the run.")
    schedule_factor: tuple[float, ...] = axis((10.0,), "Divisors p of the schedules c and d.")
    init_seed: tuple[int, ...] = axis((-1,), "Seeds of the initial weights; -1: that of --seed.")
    data_seed: tuple[int, ...] = axis((-1,), "Seeds of the order of the data and of --augment; -1: that of --seed.")
    head_seed: tuple[int, ...] = axis((-1,), "Seeds of the head's initial weights; -1: as the other weights.")
    points: tuple[str, ...] = setting(
        (),
        """A csv file with a row for each configuration and a column for each of some axes, such as lr,weight_decay.
        The sweep trains these rows, and not a product.""",
        metavar="FILE",
    )


@dataclass(frozen=True)
class DataSettings:
    """The data set and its variations."""

    dataset: str = setting(
        "digits",
        """digits (1,797 real 8x8 scans, embedded), cifar10, cifar100 or svhn (looked for on this machine), synthetic
        (made-up 32x32 images), or the path of an .npz file with images, labels, test_images and test_labels.""",
    )
    data_dir: str | Path | None = setting(
        None,
        """Folder with the official files (CIFAR: cifar-10-batches-py or the .tar.gz; SVHN: the .mat files) or a data
        set prepared by TFDS. After it come ~/datasets/NAME and ~/tensorflow_datasets.""",
        metavar="DIR",
    )
    download: bool = setting(
        False,
        "Let TFDS download what is not found.",
    )
    augment: bool = setting(
        False,
        "Random crops (after a border of 4 pixels) and flips, the same for all configurations of a seed.",
    )
    validation: int | None = setting(
        None,
        "Evaluate on the last N training images, left out of training, instead of the test set.",
    )
    split_classes: int | None = setting(
        None,
        """Only half of CIFAR-10's classes. 0: airplane, automobile, bird, ship, truck; 1: cat, deer, dog, frog,
        horse.""",
        metavar="0|1",
    )
    use_data_size: int | None = setting(None, "Train on the first N images only.")
    corrupt_train: float = setting(0.0, "Fraction of training images with a random label.")
    resize: int | None = setting(None, "Shrink the images to N pixels, by averaging.")


@dataclass(frozen=True)
class NetworkSettings:
    """The network."""

    model: str = setting(
        "ConvNetSI",
        """ConvNetSI, ConvNetSIAf, ConvNet, ResNet18SI, ResNet18SIAf, ResNet18, MLPSI or ViTSI; SI: all but the head
        scale-invariant; Af: with affine batch normalisation. Or the import path of your own, such as
        my_package.nets:Net; see docs/guides/own_network.md.""",
    )
    model_args: tuple[str, ...] = setting(
        (), "Arguments of your own network, such as width=8 norm=false.", metavar="NAME=X ..."
    )
    width: int = setting(4, "Channels of the first layer; of MLPSI and ViTSI: width of all layers.")
    depth: int = setting(3, "Convolutions after the first; of MLPSI: hidden layers; of ViTSI: blocks.")
    init_scale: float = setting(10.0, "Initial norm of the head; 0: as PyTorch.")


@dataclass(frozen=True)
class TrainingSettings:
    """How the configurations are trained."""

    steps: int | None = setting(None, "Updates to make; this or --epochs.")
    epochs: int | None = setting(None, "Passes over the training set; this or --steps.")
    batch_size: int = setting(128, "Images in a mini-batch.")
    optimizer: str = setting(
        "sgd",
        """sgd, nesterov or adam (weight decay coupled: added to the gradient); sgdw, adamw or lion (decoupled: lr x
        decay x weights taken off in each step).""",
    )
    schedule: str = setting(
        "constant",
        """Schedule of the learning rate: constant, cosine, c (flat for a quarter, then linear to lr/p), d
        (divided by p at each quarter) or default (flat for a half, then linear to 1 % at 90 %).""",
    )
    loss: str = setting("cross_entropy", "Loss: cross_entropy or squared.")
    eval_every: int | None = setting(
        None,
        "Steps between evaluations. If not given: a hundredth of the run, or more where evaluations are expensive.",
    )
    eval_at: tuple[int, ...] = setting(
        (),
        "Steps after which to evaluate, in place of --eval-every; the start and the end are added. Also as "
        "logspace:1:10000:40.",
        metavar="STEP ...",
    )
    sampling: str = setting(
        "epochs", "How mini-batches are drawn: epochs (each image once an epoch) or iid (from all, with replacement)."
    )
    full_batch: bool = setting(False, "Full-batch gradient descent: a step is an epoch.")
    precision: str = setting(
        "float32",
        """Precision of matrix products: float32, tf32, bf16 or float64. On NVIDIA bf16 is tf32, unless --storage is
        bf16 too; on a CPU all but float64 are float32.""",
    )
    storage: str = setting(
        "float32",
        "Format of stored activations: float32 or bf16, for accelerators.",
    )
    layout: str = setting(
        "auto", "How configurations are arranged on a device: auto, vmap, unroll, map, or map:K for blocks of K."
    )
    deterministic: bool = setting(
        False,
        """Compute the same bits in each run on a GPU too, as long as the compiled programs on disk are the same. A CPU
        does so without this option.""",
    )
    schedule_per: str = setting(
        "step", "When the schedule changes the rate: step (after each step) or epoch (after each epoch)."
    )
    norm_per: str = setting(
        "total", "Which norm --fixed-norm fixes: total, or filter for the norm of each output filter."
    )


@dataclass(frozen=True)
class RecordingSettings:
    """What is recorded beside the dynamics of every step."""

    per_layer: bool = setting(False, "Record the dynamics of every layer too.")
    track_sharpness: int | None = setting(
        None,
        """Record the sharpness of the mini-batch on the unit sphere every so many steps. Every 50 steps, this costs
        about 8 %.""",
        metavar="EVERY",
    )
    track_eigenvalue: int | None = setting(
        None,
        """Record the largest eigenvalue of the Hessian on the unit sphere every so many steps, for the loss on the same
        1024 training images. The sharpness is of each step's own mini-batch, along its gradient.
        One measurement takes about as long as 300 steps of 128 images.""",
        metavar="EVERY",
    )
    keep_period_minima: int | None = setting(
        None,
        """Save the lowest point of each period of each configuration, for periodic-jax minima. Candidates are N
        steps apart (10 to 10000; 100, if not given). Choose a small part of a period, such as an epoch.""",
        metavar="[N]",
    )


@dataclass(frozen=True)
class CheckpointSettings:
    """Checkpoints."""

    keep: int = setting(2, "Number of last checkpoints to keep.")
    keep_every: int | None = setting(None, "Keep the checkpoints at all multiples of N steps too, to branch from them.")
    checkpoint_seconds: float = setting(10.0, "Least seconds between checkpoints. The run also writes one at the end.")


@dataclass(frozen=True)
class ShardSettings:
    """Many machines: the grid in shards, each a run of its own."""

    shards: int | None = setting(
        None,
        """Cut the grid into N shards of about equal size. Each is trained by a process of its own, on any machine
        that sees the folder --out, into DIR/shards/0, DIR/shards/1 ... All commands that read a run take DIR.""",
    )
    shard: int | None = setting(
        None,
        """The shard to train, from 0. If not given, the first of these variables that is set: SLURM_ARRAY_TASK_ID,
        JOB_COMPLETION_INDEX, SLURM_PROCID and OMPI_COMM_WORLD_RANK (of several tasks), and TPU_WORKER_ID.""",
        metavar="K",
    )


@dataclass(frozen=True)
class OutputSettings:
    """The run directory."""

    out: str | Path | None = setting(
        None,
        """Run directory: a new one, or that of this very run, which the command then continues; runs/sweep,
        runs/sweep-2 ... if not given.""",
        metavar="DIR",
    )


def as_axis(name: str, given: Any) -> tuple[Any, ...]:
    """The numbers of an axis, whose values `core.grid` checks."""
    try:
        values = np.atleast_1d(np.asarray(given))
    except (TypeError, ValueError, OverflowError):  # ragged
        values = np.empty(0, object)
    if values.ndim > 1 or values.dtype.kind not in "iuf":
        raise ConfigError(flag_of(name), reprlib.repr(given), f"{axis_rule(name)[0]}, one or more")
    return tuple(values.tolist())


def as_setting(name: str, value: Any, hint: Any) -> Any:
    """A setting as its field has it: NumPy's numbers as Python's, whole ones as integers, lists as tuples, paths as
    they are.
    """
    if typing.get_origin(hint) is tuple:
        several = tuple(value.tolist() if isinstance(value, np.ndarray) else value) if _is_listed(value) else value
        if not is_of(several, hint):
            accepted = "several whole numbers" if hint == tuple[int, ...] else "several texts, as in ('width=8',)"
            raise ConfigError(flag_of(name), reprlib.repr(value), accepted)
        return several
    kinds = typing.get_args(hint) or (hint,)
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, os.PathLike) and str in kinds:
        plain = Path(plain) if Path in kinds else os.fspath(plain)
    if isinstance(plain, float) and plain.is_integer() and int in kinds and float not in kinds:
        plain = int(plain)
    if not is_of(plain, hint):
        accepted = " or ".join(IN_WORDS[kind] for kind in kinds)
        raise ConfigError(flag_of(name), reprlib.repr(value), accepted)
    return plain


def _is_listed(value: Any) -> bool:
    return isinstance(value, list | range) or (isinstance(value, np.ndarray) and value.ndim == 1)


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of a field's type."""
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(is_of(item, typing.get_args(hint)[0]) for item in value)
    kinds = typing.get_args(hint) or (hint,)
    kinds = (*kinds, int) if float in kinds else kinds
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
