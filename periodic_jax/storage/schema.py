"""The recorded quantities: their names, dimensions, units and long names."""

SCALARS = (
    "loss", "accuracy", "weight_norm", "grad_norm", "effective_grad_norm", "effective_lr", "angular_step",
    "radial_leak", "noninvariant_weight_norm", "noninvariant_grad_norm",
)  # fmt: skip
PER_LAYER = ("layer_weight_norm", "layer_effective_lr", "layer_effective_grad_norm", "layer_angular_step")
EVALUATIONS = ("train_loss", "train_error", "test_loss", "test_error")
CORRUPTION = ("corrupted_train_loss", "corrupted_train_error", "clean_train_loss", "clean_train_error")
FORMAT = 1

# name -> (long name, units)
ATTRIBUTES: dict[str, tuple[str, str]] = {
    "loss": ("mini-batch loss", "nats"),
    "accuracy": ("mini-batch accuracy", "1"),
    "weight_norm": ("weight norm", "1"),
    "grad_norm": ("gradient norm", "1"),
    "effective_grad_norm": ("effective gradient norm", "1"),
    "effective_lr": ("effective learning rate", "1"),
    "angular_step": ("angular step", "rad"),
    "radial_leak": ("radial leak", "1"),
    "noninvariant_weight_norm": ("norm of the other weights", "1"),
    "noninvariant_grad_norm": ("gradient norm over the other weights", "1"),
    "layer_weight_norm": ("norm of each scale-invariant layer", "1"),
    "layer_effective_lr": ("effective learning rate of each layer", "1"),
    "layer_effective_grad_norm": ("effective gradient norm of each layer", "1"),
    "layer_angular_step": ("angular step of each layer", "rad"),
    "sphere_sharpness": ("sharpness on the unit sphere", "1"),
    "elr_times_sharpness": ("effective learning rate x sharpness", "1"),
    "train_loss": ("training loss", "nats"),
    "train_error": ("training error", "1"),
    "test_loss": ("test loss", "nats"),
    "test_error": ("test error", "1"),
    "corrupted_train_loss": ("training loss on images of corrupted labels", "nats"),
    "corrupted_train_error": ("training error on images of corrupted labels", "1"),
    "clean_train_loss": ("training loss on images of clean labels", "nats"),
    "clean_train_error": ("training error on images of clean labels", "1"),
    "gradient_norm": ("norm of the mean gradient of the mini-batches", "1"),
    "gradient_std_norm": ("norm of the standard deviation of their gradients", "1"),
    "mean_gradient_norm": ("mean norm of their gradients", "1"),
    "noise_scale": ("gradient noise scale", "images"),
    "hessian_trace": ("trace of the Hessian", "1"),
    "hessian_eigenvalue": ("eigenvalue of the Hessian", "1"),
    "gauss_newton_trace": ("trace of the Gauss-Newton matrix", "1"),
    "gauss_newton_eigenvalue": ("eigenvalue of the Gauss-Newton matrix", "1"),
    "sphere_hessian_eigenvalue": ("Hessian's eigenvalue on the sphere", "1"),
    "sphere_gauss_newton_eigenvalue": ("Gauss-Newton eigenvalue on the sphere", "1"),
    "stability_threshold": ("effective learning rate x sharpness from which a minimum is left", "1"),
    "diverged_at": ("step whose loss or update was not finite", "step"),
    "lr": ("learning rate", "1"),
    "weight_decay": ("weight decay", "1"),
    "momentum": ("momentum", "1"),
    "noninvariant_lr": ("learning rate of the other weights (negative: the same)", "1"),
    "elr": ("fixed effective learning rate (0: off)", "1"),
    "fixed_norm": ("fixed weight norm (0: free, negative: initial)", "1"),
    "schedule_end": ("end of the learning-rate schedule", "step"),
    "schedule_factor": ("divisor of the learning-rate schedule", "1"),
    "schedule_every": ("updates between changes of the schedule", "step"),
    "seed": ("seed", "1"),
    "step": ("step", "step"),
    "eval_step": ("updates made before the evaluation", "step"),
    "layer": ("layer", ""),
}
