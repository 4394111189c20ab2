"""Every recorded quantity, and every number that tables and figures show: declared once, in the order of recording.

A new quantity is one entry here and the line that computes it. Telemetry, tables, figures, report and landscape read
the rest from the entry.
"""

from dataclasses import dataclass

FORMAT = 1
CONFIG, STEP, LAYER, EVALUATION = ("config",), ("config", "step"), ("config", "step", "layer"), ("config", "eval_step")


@dataclass(frozen=True)
class Quantity:
    """What is known of a quantity before it is measured.

    Args:
        name: in Datasets, tables and files.
        description: the long name; the name with spaces if empty.
        units: "1" for a plain number.
        dims: of the telemetry's array; none: not recorded, but derived.
        only: the feature without which it is not recorded.
        log: drawn on a logarithmic axis.
        uses: what reads or shows it: ``analysis``, ``figures``, ``report``.
        heading: of its column in a table; the name if empty.
        short: the words of a legend or the report, instead of long name and units.
        number: how a table prints it: ``whole``, ``percent``, or a format.
        help: a sentence for someone who sees it for the first time.

    Example:
        >>> Quantity("hessian_lowest").long_name
        'hessian lowest'
    """

    name: str
    description: str = ""
    units: str = "1"
    dims: tuple[str, ...] = ()
    only: str = ""
    log: bool = False
    uses: tuple[str, ...] = ()
    heading: str = ""
    short: str = ""
    number: str = ".3g"
    help: str = ""

    @property
    def long_name(self) -> str:
        """Of its variable in a Dataset."""
        return self.description or self.name.replace("_", " ")

    @property
    def attributes(self) -> dict[str, str]:
        """Long name and units, as a Dataset holds them."""
        return {"long_name": self.long_name, "units": self.units}

    @property
    def label(self) -> str:
        """Of an axis of a figure."""
        return self.long_name + ("" if self.units in ("1", "") else f" [{self.units}]")


_ALL = ("analysis", "figures", "report")
_SHOWN = ("figures", "report")
_Q = Quantity
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        # Of every step.
        _Q("loss", "mini-batch loss", "nats", STEP, log=True, uses=("analysis", "report"),
           help="Loss of the mini-batch, before the step."),
        _Q("accuracy", "mini-batch accuracy", dims=STEP),
        _Q("weight_norm", dims=STEP, log=True, uses=_ALL,
           help="Euclidean norm of all scale-invariant weights together."),
        _Q("grad_norm", "gradient norm", dims=STEP, log=True),
        _Q("effective_lr", "effective learning rate", dims=STEP, log=True, uses=_ALL,
           help="Learning rate over squared weight norm: the learning rate on the unit sphere."),
        _Q("effective_grad_norm", "effective gradient norm", dims=STEP, log=True, uses=_ALL,
           help="Gradient norm times weight norm: the gradient on the unit sphere."),
        _Q("angular_step", units="rad", dims=STEP, log=True, uses=_ALL,
           help="Angle by which the step turns the scale-invariant weights."),
        _Q("radial_leak", dims=STEP, uses=("analysis",), heading="leak",
           help="Cosine between gradient and weights; near 0 where the weights are scale-invariant."),
        _Q("noninvariant_weight_norm", "norm of the other weights", dims=STEP),
        _Q("noninvariant_grad_norm", "gradient norm over the other weights", dims=STEP),
        _Q("radial_update", "radial part of the update", dims=STEP, only="updates", uses=("analysis",)),
        _Q("tangential_update", "norm of the tangential part of the update", dims=STEP, only="updates", log=True,
           uses=("analysis",)),
        _Q("step_lr", "learning rate of the step", dims=STEP, only="updates", log=True, uses=("analysis",)),
        _Q("sphere_sharpness", "sharpness on the unit sphere", dims=STEP, only="sharpness", log=True,
           heading="sharpness"),
        _Q("elr_times_sharpness", "effective learning rate x sharpness", dims=STEP, only="sharpness", log=True,
           heading="x ELR"),
        _Q("sphere_hessian_largest", "largest eigenvalue of the Hessian on the unit sphere", dims=STEP,
           only="eigenvalue", log=True),
        # Of every scale-invariant layer in every step.
        _Q("layer_weight_norm", "norm of each scale-invariant layer", dims=LAYER, log=True),
        _Q("layer_effective_lr", "effective learning rate of each layer", dims=LAYER),
        _Q("layer_effective_grad_norm", "effective gradient norm of each layer", dims=LAYER),
        _Q("layer_angular_step", "angular step of each layer", "rad", LAYER),
        # Of every evaluation.
        _Q("train_loss", "training loss", "nats", EVALUATION, log=True, uses=_SHOWN, heading="train loss",
           help="On all training images, with the statistics of each mini-batch."),
        _Q("train_error", "training error", dims=EVALUATION, heading="train error", number="percent"),
        _Q("test_loss", units="nats", dims=EVALUATION, log=True, heading="test loss"),
        _Q("test_error", dims=EVALUATION, uses=_SHOWN, heading="test error", number="percent",
           help="Share of the test images that are classified wrongly."),
        _Q("corrupted_train_loss", "training loss on images of corrupted labels", "nats", EVALUATION, "corruption"),
        _Q("corrupted_train_error", "training error on images of corrupted labels", "1", EVALUATION, "corruption",
           number="percent"),
        _Q("clean_train_loss", "training loss on images of clean labels", "nats", EVALUATION, "corruption"),
        _Q("clean_train_error", "training error on images of clean labels", "1", EVALUATION, "corruption",
           number="percent"),
        # Of every configuration.
        _Q("diverged_at", "step whose loss or update was not finite", "step", CONFIG, heading="diverged at",
           short="diverged at step", number="whole", help="Step after which loss or weights were no longer finite."),
        _Q("lr", "learning rate", dims=CONFIG, short="learning rate"),
        _Q("weight_decay", dims=CONFIG, heading="decay"),
        _Q("momentum", dims=CONFIG),
        _Q("noninvariant_lr", "learning rate of the other weights (negative: the same)", dims=CONFIG,
           heading="other lr", short="learning rate of the others"),
        _Q("elr", "fixed effective learning rate (0: off)", dims=CONFIG, short="effective learning rate"),
        _Q("fixed_norm", "fixed weight norm (0: free, negative: initial)", dims=CONFIG, heading="fixed norm",
           short="fixed norm"),
        _Q("schedule_end", "end of the learning-rate schedule", "step", CONFIG, short="end of the schedule"),
        _Q("schedule_factor", "divisor of the learning-rate schedule", dims=CONFIG, short="divisor of the schedule"),
        _Q("schedule_every", "updates between changes of the schedule", "step", CONFIG),
        _Q("beta1", dims=CONFIG),
        _Q("beta2", dims=CONFIG),
        _Q("eps", "epsilon", dims=CONFIG),
        _Q("seed", dims=CONFIG),
        _Q("init_seed", "seed of the initial weights (-1: seed)", dims=CONFIG, short="seed of the weights"),
        _Q("data_seed", "seed of the order of the data (-1: seed)", dims=CONFIG, short="seed of the data"),
        _Q("head_seed", "seed of the head (-1: as the other weights)", dims=CONFIG, short="seed of the head"),
        # Along the other dimensions.
        _Q("step", units="step", dims=("step",), number="whole"),
        _Q("eval_step", "updates made before the evaluation", "step", ("eval_step",)),
        _Q("layer", units="", dims=("layer",)),
        _Q("branch_step", "updates made before the branch", "step", number="whole"),
        # Of an analysis.
        _Q("confidence", heading="sure", number=".2f", help="How sure the regime is, from 0 to 1."),
        _Q("destabilisations", heading="jumps", number="whole",
           help="How often the weight norm jumped up after a fall: one destabilisation ends each period."),
        _Q("mean_period", units="steps", heading="mean period", number="whole",
           help="Mean number of steps from one destabilisation to the next."),
        _Q("final_train_loss", "final training loss", "nats", heading="train loss", help="At the last evaluation."),
        _Q("lowest_train_loss", "lowest training loss", "nats", heading="lowest", help="Of all evaluations."),
        _Q("final_test_error", heading="test error", number="percent", help="At the last evaluation."),
        _Q("lowest_test_error", heading="lowest", number="percent", help="Of all evaluations."),
        _Q("final_weight_norm", heading="norm", help="Norm of the scale-invariant weights after the last step."),
        _Q("steps", "steps recorded", number="whole", help="Steps recorded so far."),
        _Q("mean_fall_steps", "mean fall", "steps", heading="fall", number="whole",
           help="Mean number of steps in which the weight norm falls, before a destabilisation."),
        _Q("mean_predicted_fall_steps", "mean fall by decay alone", "steps", heading="predicted", number="whole",
           help="How long these falls would take by weight decay alone."),
        _Q("equilibrium_weight_norm", "equilibrium norm, predicted", heading="norm*",
           help="Weight norm at which decay and gradients balance, from the gradients after the burn-in."),
        _Q("measured_weight_norm", "equilibrium norm, measured", heading="measured",
           help="Mean weight norm after the burn-in."),
        _Q("equilibrium_effective_lr", "equilibrium ELR, predicted", heading="ELR*",
           help="Effective learning rate at that balance."),
        _Q("measured_effective_lr", "equilibrium ELR, measured", heading="measured",
           help="Learning rate over the square of that norm."),
        _Q("equilibrium_angular_step", "equilibrium rotation per step, predicted", "rad", heading="angle*",
           help="Angle of a step at that balance: the root of 2 x learning rate x decay, for plain SGD."),
        _Q("measured_angular_step", "equilibrium rotation per step, measured", "rad", heading="measured",
           help="Mean angle of a step after the burn-in."),
        _Q("budget_residual", "rotation budget off by", heading="budget off by",
           help="How far the sum of squared angles is from what decay and change of norm allow, relative to it."),
        _Q("violations", "violations of the theory", number="whole",
           help="Bounds and exact relations that the recorded steps do not keep."),
        _Q("forecast_origin", heading="after step", number="whole"),
        _Q("forecast_soonest", heading="soonest", number="whole"),
        _Q("forecast_latest", heading="latest", number="whole"),
        _Q("forecast_expected", heading="expected", number="whole"),
        # Of a landscape.
        _Q("checkpoint", heading="step"),
        _Q("gradient_norm", "norm of the mean gradient of the mini-batches", heading="gradient"),
        _Q("gradient_std_norm", "norm of the standard deviation of their gradients", heading="its std"),
        _Q("mean_gradient_norm", "mean norm of their gradients"),
        _Q("noise_scale", "gradient noise scale", "images", heading="noise scale"),
        _Q("hessian_trace", "trace of the Hessian", heading="tr H"),
        _Q("hessian_eigenvalue", "eigenvalue of the Hessian"),
        _Q("hessian_largest", heading="largest of H"),
        _Q("gauss_newton_trace", "trace of the Gauss-Newton matrix", heading="tr G"),
        _Q("gauss_newton_eigenvalue", "eigenvalue of the Gauss-Newton matrix"),
        _Q("gauss_newton_largest", heading="largest of G"),
        _Q("sphere_hessian_eigenvalue", "Hessian's eigenvalue on the sphere"),
        _Q("sphere_gauss_newton_eigenvalue", "Gauss-Newton eigenvalue on the sphere"),
        _Q("stability_threshold", "effective learning rate x sharpness from which a minimum is left"),
        # Of the comparison of minima.
        _Q("ended", "updates after which its period was seen to have ended", "step", heading="ended by",
           number="whole"),
        _Q("cosine_to_start", "cosine to the weights at the start", heading="cos to start"),
        _Q("cosine", "cosine between two minima"),
        _Q("cosine_before", heading="cos to last"),
        _Q("disagreement", "share of the test images that two minima tell differently", number="percent"),
        _Q("disagreement_before", heading="disagree", number="percent"),
        _Q("barrier", "rise of the training loss on the path above the line between its ends", "nats"),
        _Q("barrier_straight", heading="barrier"),
        _Q("barrier_layers", heading="by layers"),
        _Q("path_train_loss", "training loss on the path", "nats"),
        _Q("path_test_error", "test error on the path", number="percent"),
        _Q("ensemble_loss", "test loss", "nats", heading="ensemble loss"),
        _Q("ensemble_error", "test error of the last minima's ensemble", heading="error", number="percent"),
        _Q("average_train_loss", "training loss", "nats", heading="average train loss"),
        _Q("average_test_loss", "test loss", "nats", heading="test loss"),
        _Q("average_test_error", "test error of the last minima's average", heading="error", number="percent"),
        _Q("seed_cosine", heading="cosine"),
        _Q("seed_disagreement", heading="disagree", number="percent"),
        _Q("seed_barrier", "training loss", "nats"),
        _Q("seed_barrier_straight", heading="barrier"),
        _Q("seed_barrier_layers", heading="by layers"),
        _Q("seed_ensemble_loss", "test loss", "nats"),
        _Q("seed_ensemble_error", heading="seeds error", number="percent"),
        _Q("equal_cost_ensemble_loss", "test loss", "nats"),
        _Q("equal_cost_ensemble_error", "test error of an ensemble of seeds, of as many steps together",
           heading="at same cost", number="percent"),
    )
}  # fmt: skip


def describe(name: str) -> Quantity:
    """The declaration of a quantity; of one that is not declared, its name in words."""
    return QUANTITIES.get(name, Quantity(name))


def used_by(user: str, *dims: tuple[str, ...]) -> tuple[str, ...]:
    """Names of what one of `Quantity.uses` reads or shows, of some dimensions after the other, or of all."""
    each = dims or (None,)
    return tuple(n for of in each for n, q in QUANTITIES.items() if user in q.uses and of in (None, q.dims))


def recorded(dims: tuple[str, ...], only: str = "") -> tuple[str, ...]:
    """Names of what is recorded over some dimensions, always or only with a feature."""
    return tuple(name for name, quantity in QUANTITIES.items() if (quantity.dims, quantity.only) == (dims, only))


SCALARS, PER_LAYER = recorded(STEP), recorded(LAYER)
UPDATES = recorded(STEP, "updates")  # of other optimisers than sgd
SHARPNESS, EIGENVALUE = recorded(STEP, "sharpness"), recorded(STEP, "eigenvalue")  # if asked for
EVALUATIONS, CORRUPTION = recorded(EVALUATION), recorded(EVALUATION, "corruption")
