"""The command line: ``periodic-jax demo`` and ``periodic-jax sweep``. It parses, calls and prints; nothing else."""

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import tyro

from periodic_jax import runtime
from periodic_jax.errors import ConfigError
from periodic_jax.grid import flag_of, parse_axis

if TYPE_CHECKING:
    from periodic_jax.run import RunConfig
    from periodic_jax.sweep import Chunk

# All options are words to tyro, so that one place, `to_config`, turns them into numbers and says what is accepted.
Numbers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...")]
OptionalNumbers = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NUMBER ...", help_behavior_hint="(optional)")]
Whole = Annotated[str, tyro.conf.arg(metavar="COUNT")]
OptionalWhole = Annotated[str, tyro.conf.arg(metavar="COUNT", help_behavior_hint="(optional)")]
Number = Annotated[str, tyro.conf.arg(metavar="NUMBER")]
Word = Annotated[str, tyro.conf.arg(metavar="NAME")]
Folder = Annotated[str, tyro.conf.arg(metavar="DIR", help_behavior_hint="(optional)")]


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
    given,
    none where every --elr is above 0."""
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
    """digits: 1,797 real 8x8 scans, embedded."""
    model: Word = "ConvNetSI"
    """ConvNetSI, ConvNetSIAf, ConvNet, ResNet18SI, ResNet18SIAf or ResNet18; SI: all but the head scale-invariant; Af:
    with
    affine batch normalisation."""
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
    """Passes over the training set to make: this or --steps."""
    eval_every: OptionalWhole = ""
    """Updates between evaluations; a hundredth of the run if not given."""
    layout: Word = "auto"
    """How configurations are laid out: auto, vmap, unroll, map, or map:K for blocks of K."""
    precision: Word = "float32"
    """float32, tf32, bf16 or float64."""
    loss: Word = "cross_entropy"
    """cross_entropy or squared."""
    schedule: Word = "constant"
    """Of the learning rate: constant, cosine, c (flat for a quarter, then linear to lr/p), d (divided by p at each
    quarter)
    or default (flat for a half, then linear to 1 % at 90 %)."""
    schedule_per: Word = "step"
    """step or epoch: how often the schedule changes the rate."""
    norm_per: Word = "total"
    """total or filter: whether --fixed-norm holds all scale-invariant weights together or each output filter."""
    full_batch: bool = False
    """Full-batch gradient descent, accumulated over mini-batches: a step is an epoch."""
    per_layer: bool = False
    """Record the dynamics of every layer too."""
    out: Folder = ""
    """Run directory, which must hold no run yet; runs/sweep, runs/sweep-2 ... if not given."""


@dataclass(frozen=True)
class Replay:
    """Run a recorded trajectory of the PyTorch reference through the same train step, and compare it step by step."""

    recording: tyro.conf.Positional[Folder]
    """npz file with config, order, init/... and what was recorded."""
    images: Folder
    """npz file with the images and labels."""
    out: Folder
    """npz file to write: step/..., final/... in PyTorch's names, eval_logits."""
    precision: Word = "float64"
    """float64 or float32."""
    copies: Whole = "1"
    """Stacked copies that are trained side by side; the last is written."""
    layout: Word = "map"
    """How the copies are laid out: vmap, unroll, map, or map:K for blocks of K."""


@dataclass(frozen=True)
class Demo:
    """Show periodic training in a minute: ten configurations of a small network on 1,797 real digits, with a table and
    figures.
    """

    out: Folder = ""
    """Run directory, which must hold no run yet; runs/demo, runs/demo-2 ... if not given."""
    steps: Whole = "6000"
    """Updates to make."""


COMMANDS: dict[str, Any] = {"demo": Demo, "sweep": Sweep, "replay": Replay}
ABOUT = "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once."


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``periodic-jax``: exits with 0, 2 for unusable input (one line on stderr), or 130 when
    interrupted.
    """
    command = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        {Sweep: _sweep, Demo: _demo, Replay: _replay}[type(command)](command)
    except ConfigError as error:
        sys.exit(_refuse(str(error)))
    except KeyboardInterrupt:
        print("periodic-jax: interrupted", file=sys.stderr)
        sys.exit(130)


def _sweep(options: Sweep) -> None:
    config = to_config(options)
    _claim(config)
    path = _run(config)
    print(f"figures: {', '.join(f.name for f in _figures(path))} in {path / 'figures'}")


def _demo(options: Demo) -> None:
    sweep = Sweep(
        lr=("0.01", "0.03", "0.1", "0.3", "1"), weight_decay=("1e-3", "1e-2"), steps=options.steps,
        out=options.out or _free("demo"),
    )  # fmt: skip
    config = to_config(sweep)
    _claim(config)
    print(
        f"ConvNetSI of width {config.width} on scikit-learn's digits: {len(config.lr)} learning rates x "
        f"{len(config.weight_decay)} weight decays, {config.steps} steps each."
    )
    path = _run(config)
    print("Look at:")
    for figure in _figures(path):
        print(f"  {figure}")


def _replay(options: Replay) -> None:
    from periodic_jax import replay

    copies = _whole("copies", options.copies) or 0
    if copies < 1:
        raise ConfigError("--copies", options.copies, "a whole number from 1")
    if options.precision not in ("float32", "float64"):
        raise ConfigError("--precision", options.precision, "float32 or float64")
    if not Path(options.out).resolve().parent.is_dir():
        raise ConfigError("--out", options.out, "a file in an existing folder")
    recording, images = replay.load_recording(options.recording), replay.load_recording(options.images)
    with runtime.precision(options.precision):
        runtime.check_reductions()
        result = replay.replay(recording, images, copies=copies, layout=options.layout)
    replay.save(result, options.out)
    first = 10 if options.precision == "float64" else 5
    print(f"{'largest relative difference':28s}{f'first {first} steps':>16s}{'all steps':>12s}")
    for name, (early, late) in replay.compare(result, recording, first).items():
        print(f"{name:28s}{early:16.1e}{late:12.1e}")


def to_config(options: Sweep) -> "RunConfig":
    """Turn the words of the command line into numbers.

    Raises:
        ConfigError: a word that is not what its option takes.
    """
    from periodic_jax.run import RUN_AXES, RunConfig

    axes: dict[str, Any] = {
        name: parse_axis(name, getattr(options, name)) for name in RUN_AXES if name != "weight_decay"
    }
    # Training at a fixed effective learning rate is studied without decay unless one is asked for.
    usual = ("none",) if min(axes["elr"]) > 0 else ("1e-3",)
    given = options.weight_decay
    axes["weight_decay"] = parse_axis("weight_decay", usual if given == Sweep.weight_decay else given)
    axes["seed"] = tuple(int(seed) for seed in axes["seed"])
    counts = ("width", "depth", "batch_size", "steps", "epochs", "eval_every")
    whole: dict[str, Any] = {name: _whole(name, getattr(options, name)) for name in counts}
    return RunConfig(
        out=options.out or _free("sweep"),
        **axes,
        **whole,
        init_scale=_finite("init_scale", options.init_scale),
        dataset=options.dataset,
        model=options.model,
        layout=options.layout,
        precision=options.precision,
        per_layer=options.per_layer,
        loss=options.loss,
        schedule=options.schedule,
        schedule_per=options.schedule_per,
        norm_per=options.norm_per,
        full_batch=options.full_batch,
    )


def _claim(config: "RunConfig") -> None:
    """Refuse what cannot run before anything is printed, compiled or written."""
    from periodic_jax.results import claim_directory
    from periodic_jax.run import check

    check(config)
    claim_directory(Path(config.out))


def _run(config: "RunConfig") -> Path:
    """Run with a progress bar, then print the table and the summary."""
    from periodic_jax import analysis
    from periodic_jax.results import open_run, read_config
    from periodic_jax.run import run_sweep

    runtime.use_cores_as_devices()
    with _progress(config) as report:
        path = run_sweep(config, progress=report)
    print(analysis.as_text(analysis.summarise(open_run(path, flat=True))), end="")
    summary = read_config(path)["summary"]
    print(
        f"{summary['config_steps']} config-steps in {summary['seconds']:.1f} s with compilation, "
        f"{summary['ms_per_config_step'] or float('nan'):.3g} ms each after it; "
        f"peak memory {summary['peak_rss_mb']:.0f} MB; in {path}"
    )
    return path


def _figures(path: Path) -> list[Path]:
    from periodic_jax import plots
    from periodic_jax.results import open_run

    return plots.save_all(open_run(path, flat=True), path / "figures")


@contextlib.contextmanager
def _progress(config: "RunConfig"):
    """A bar in config-steps, moved once a chunk; in a log file, where each state is a line, twice a minute."""
    from tqdm import tqdm

    from periodic_jax.run import planned_steps

    total = planned_steps(config) * len(config.grid())
    pause = 0 if sys.stderr.isatty() else 30
    with tqdm(
        total=total, unit="config-step", unit_scale=True, desc="compiling", mininterval=pause, dynamic_ncols=True
    ) as bar:

        def report(chunk: "Chunk", configs: int) -> None:
            if chunk.steps:
                bar.set_description("training", refresh=False)
                bar.update(chunk.steps * configs)

        yield report


def _parse(arguments: Sequence[str]) -> Any:
    """Parse with tyro; what it rejects becomes one line instead of its box."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        sys.exit(_refuse(str(ConfigError("command", arguments[0], "one of " + ", ".join(COMMANDS)))))
    said = io.StringIO()
    commands: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())]  # noqa: UP007 (built at run time)
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(commands, prog="periodic-jax", description=ABOUT, args=list(arguments))
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        message = _one_line(said.getvalue())
        if arguments and arguments[0] in COMMANDS and "nrecognized" in message:
            known = " ".join(flag_of(field.name) for field in dataclasses.fields(COMMANDS[arguments[0]]))
            message = f"{message} not accepted; expected among {known}"
        sys.exit(_refuse(message))


def _one_line(box: str) -> str:
    """The first paragraph of tyro's error box, without its frame."""
    lines = [re.sub(r"[\u2500-\u257f]+", " ", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip() for line in box.splitlines()]
    kept: list[str] = []
    for line in lines[1:]:
        if not line and kept:
            break
        kept.append(line)
    return " ".join(" ".join(kept).split()) or "unusable arguments; see periodic-jax --help"


def _refuse(message: str) -> int:
    print(f"periodic-jax: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _whole(name: str, word: str) -> int | None:
    """A whole number, or None for an option that was not given."""
    if word == "" and name in ("steps", "epochs", "eval_every"):
        return None
    try:
        return int(word)
    except ValueError:
        raise ConfigError(flag_of(name), word or "an empty word", "a whole number from 1") from None


def _finite(name: str, word: str) -> float:
    with contextlib.suppress(ValueError):
        value = float(word)
        if abs(value) < float("inf"):
            return value
    raise ConfigError(flag_of(name), word or "an empty word", "a finite number")


def _free(name: str) -> str:
    """runs/NAME, or the first of runs/NAME-2, runs/NAME-3 ... that does not exist."""
    path, k = Path("runs") / name, 1
    while path.exists():
        k += 1
        path = Path("runs") / f"{name}-{k}"
    return os.fspath(path)


if __name__ == "__main__":
    main()
