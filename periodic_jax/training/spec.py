"""What describes the training of one configuration besides its hyperparameters."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TrainingSpec:
    """How every configuration of a sweep is trained and recorded. Hashable, so that a compiled program is keyed by it.

    Attributes:
        batch_size: images in a mini-batch.
        loss: a key of `training.losses.LOSSES`.
        schedule: a key of `training.schedules.SCHEDULES`.
        per_filter: a fixed norm is that of each output filter.
        full_batch: each step is full-batch gradient descent, accumulated over mini-batches in the data's own order; the
            images after the last whole one are left out.
        sampling: how mini-batches are chosen, of `training.input_pipeline.SAMPLINGS`.
        augment: crop and flip the images of each step at random, all configurations of a seed alike.
        track_sharpness: steps between measurements of `landscape.sharpness`; None: no measurements.
        track_eigenvalue: steps between measurements of `landscape.sharpness.largest_eigenvalue`; None: no measurements.
        per_layer: record the layers' dynamics too.
        optimizer: a key of `core.optimizers.OPTIMIZERS`, or a function of the hyperparameters; see
            `training.optimizers.build_optimizer`. What only other optimisers than ``sgd`` need is recorded for them.
    """

    batch_size: int = 128
    loss: str = "cross_entropy"
    schedule: str = "constant"
    per_filter: bool = False
    full_batch: bool = False
    sampling: str = "epochs"
    augment: bool = False
    track_sharpness: int | None = None
    track_eigenvalue: int | None = None
    per_layer: bool = False
    optimizer: str | Callable[..., Any] = "sgd"
