"""The command line, ``periodic-jax COMMAND``: what each command calls and prints."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from periodic_jax._version import __version__
from periodic_jax.cli.axis import RefusedValue
from periodic_jax.cli.commands import (
    COMMANDS,
    Analyze,
    Branch,
    Demo,
    Export,
    Info,
    Landscape,
    Launch,
    Minima,
    Plot,
    Replay,
    Report,
    Resume,
    Sweep,
)
from periodic_jax.cli.launch import (
    claim_folder,
    log_line,
    print_figures,
    print_plan,
    show_results,
    train_with_progress,
)
from periodic_jax.cli.sweep_options import GROUPS, free_folder, to_config
from periodic_jax.core.errors import ConfigError, PeriodicJaxError
from periodic_jax.core.formatting import counted
from periodic_jax.training import xla

ABOUT = (
    "Periodic training of networks with batch normalisation and weight decay, a whole hyperparameter grid at once. "
    "periodic-jax --version prints the version."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``periodic-jax``: exits with 0, 2 for unusable input, 143 or 130 when stopped by SIGTERM or
    SIGINT, 1 when something could not be written; with one line on stderr. And as other programs do, with 141 and
    nothing said, when who reads its output has gone: all files are written by then.
    """
    try:
        try:
            _do(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python, which flushes at its end
        sys.exit(128 + signal.SIGPIPE)


def _do(arguments: Sequence[str] | None) -> None:
    """Parse the command and carry it out."""
    try:
        command = parse_command(sys.argv[1:] if arguments is None else arguments)
        _ACTIONS[type(command)](command)
    except PeriodicJaxError as error:
        log_line(" ".join(str(error).split()) if isinstance(error, ConfigError) else str(error))
        sys.exit(error.status)
    except KeyboardInterrupt:
        log_line("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        log_line(f"{error.filename or 'error'}: {error.strerror or error}")
        sys.exit(1)


def parse_command(arguments: Sequence[str]) -> Any:
    """The command with its options, typed.

    Raises:
        ConfigError: a value that an option does not accept.
        SystemExit: after the help or the version was printed; 2 after tyro has said why it rejects something.
    """
    if list(arguments) == ["--version"]:
        print(f"periodic-jax {__version__}")
        sys.exit(0)
    if not arguments or (not arguments[0].startswith("-") and arguments[0] not in COMMANDS):
        raise ConfigError("command", "".join(arguments[:1]) or "none", "one of " + ", ".join(COMMANDS))
    if arguments[0] == "launch":  # whose options are those of two parsers
        return Launch(tuple(arguments[1:]))
    kinds = (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    commands: Any = Union[tuple(kinds)]  # noqa: UP007 (built at run time)
    try:
        return tyro.cli(commands, prog="periodic-jax", description=ABOUT, args=list(arguments))
    except RefusedValue as refused:
        raise refused.error from None


def _sweep(options: Any) -> None:
    from periodic_jax.runs.run import run_sweep

    config = to_config(options)
    if options.dry_run:
        print_plan(config)
        return
    claim_folder(config)
    print_figures(show_results(train_with_progress(run_sweep, config)))


def _launch(options: Launch) -> None:
    from periodic_jax.cli.launch_engines import launch

    launch(options.arguments)


def _demo(options: Demo) -> None:
    from periodic_jax.runs.run import run_sweep

    demo = Sweep(
        grid=GROUPS["grid"](lr=(0.01, 0.03, 0.1, 0.3, 1.0), weight_decay=(1e-3, 1e-2)),
        training=GROUPS["training"](steps=options.steps),
        output=GROUPS["output"](out=options.out or free_folder("demo")),
    )
    config = to_config(demo)
    claim_folder(config)
    print(
        f"ConvNetSI of width {config.width} on scikit-learn's digits: {len(config.lr)} learning rates x "
        f"{len(config.weight_decay)} weight decays, {counted(config.steps or 0, 'step')} each."
    )
    files = show_results(train_with_progress(run_sweep, config))
    print("Look at:")
    for file in files:
        print(f"  {file}")


def _resume(options: Resume) -> None:
    from periodic_jax.runs.run import resume_run

    run = train_with_progress(
        resume_run, options.run, steps=options.steps, epochs=options.epochs, dataset=options.dataset,
        data_dir=options.data_dir, truncate=options.truncate,
    )  # fmt: skip
    print_figures(show_results(run))


def _replay(options: Replay) -> None:
    from periodic_jax.inspection import replay

    if options.copies < 1:
        raise ConfigError("--copies", options.copies, "a whole number from 1")
    if options.precision not in ("float32", "float64"):
        raise ConfigError("--precision", options.precision, "float32 or float64")
    if not Path(options.out).resolve().parent.is_dir() or Path(options.out).is_dir():
        raise ConfigError("--out", options.out, "a file in an existing folder")
    recording, images = replay.load_recording(options.recording), replay.load_recording(options.images)
    with xla.precision(options.precision):
        xla.check_reductions()
        result = replay.replay(recording, images, copies=options.copies, layout=options.layout)
    replay.save(result, options.out)
    first = 10 if options.precision == "float64" else 5
    print(f"{'largest relative difference':28s}{f'first {first} steps':>16s}{'all steps':>12s}")
    for name, (early, late) in replay.compare(result, recording, first).items():
        print(f"{name:28s}{early:16.1e}{late:12.1e}")


def _analyze(options: Analyze) -> None:
    from periodic_jax import analysis
    from periodic_jax.reporting import tables
    from periodic_jax.storage.reader import open_run

    path = options.run
    dataset = open_run(path, flat=True)
    found = analysis.analyze(dataset, predict=options.predict)
    shown = [tables.SHOWN, ("because",), ("mean_fall_steps", "mean_predicted_fall_steps", *tables.THEORY)]
    shown += [tables.FORECASTS] if options.predict else []
    said = "\n".join([*(tables.as_text(found, names) for names in shown), tables.findings(found)])
    _write(lambda: tables.save(found, path), said)


def _write(write: Callable[[], list[Path]], said: str) -> None:
    """Write files, print what they hold and name them; what cannot be written can be read at least."""
    try:
        files = write()
    finally:
        print(said, end="")
    print(f"written: {', '.join(map(str, files))}")


def _plot(options: Plot) -> None:
    from periodic_jax import analysis, plots
    from periodic_jax.storage.reader import open_run
    from periodic_jax.storage.run_directory import steps_per_epoch

    path, formats = options.run, tuple(dict.fromkeys(options.format))
    if not formats or set(formats) - {"png", "pdf"}:
        raise ConfigError("--format", " ".join(formats) or "an empty list", "png, pdf or both")
    dataset = open_run(path, flat=True)
    epoch = steps_per_epoch(path) if options.in_epochs else None
    if options.in_epochs and epoch is None:
        raise ConfigError("--in-epochs", "given", "a run whose config.json tells images and batch size")
    found = analysis.analyze(dataset)
    for file in plots.save_all(
        dataset, found, path / "figures", formats=formats, steps_per_epoch=epoch, log_steps=options.log_steps
    ):
        print(file)


def _report(options: Report) -> None:
    from periodic_jax import analysis
    from periodic_jax.reporting import html
    from periodic_jax.storage.reader import open_run

    path = options.run

    def look() -> dict[str, Any]:
        dataset = open_run(path, flat=True)
        return html.report_contents(dataset, analysis.analyze(dataset))

    if not 0 <= options.port < 2**16:
        raise ConfigError("--port", options.port, "a whole number from 0 to 65535")
    if options.every < 1:
        raise ConfigError("--every", options.every, "a whole number from 1")
    if not options.live:
        print(html.write(look(), path))
        return
    with html.serve(look, port=options.port, every=options.every) as server:
        print(f"http://127.0.0.1:{server.server_port}/ until interrupted (Ctrl-C)", flush=True)
        server.serve_forever()


def _export(options: Export) -> None:
    from periodic_jax.reporting import export
    from periodic_jax.storage.reader import open_run

    path = options.run
    out = Path(options.out) if options.out else path / "export" / (options.to + export.ENDINGS.get(options.to, ""))
    dataset = open_run(path, flat=True)
    print(export.export(dataset, options.to, out))
    if options.to in ("tensorboard", "wandb") and dataset.sizes["step"] > 2 * export.BUCKETS:
        print(f"curves: of {dataset.sizes['step']} steps, the lowest and highest of each of {export.BUCKETS} parts")


def _branch(options: Branch) -> None:
    from periodic_jax.runs.branch import branch_run
    from periodic_jax.runs.run import RUN_AXES

    change = {name: values for name in RUN_AXES if (values := getattr(options.grid, name))}
    run = train_with_progress(
        branch_run, options.run, options.out or free_folder("branch"), step=options.step,
        select=options.select, change=change, steps=options.steps, dataset=options.dataset, data_dir=options.data_dir,
    )  # fmt: skip
    print_figures(show_results(run))


def _landscape(options: Landscape) -> None:
    from periodic_jax.inspection.landscape import Budget, measure_landscape
    from periodic_jax.plots import save_landscape
    from periodic_jax.reporting import tables
    from periodic_jax.storage import datasets
    from periodic_jax.storage.run_directory import LANDSCAPE, read_config

    path = options.run
    read_config(path)
    if (path / LANDSCAPE).exists() and not options.overwrite:
        raise ConfigError("run directory", path / LANDSCAPE, "none yet, or --overwrite to replace what was measured")
    budget = Budget(
        options.images, probes=options.probes, eigenvalues=options.eigenvalues, iterations=options.iterations,
        tolerance=options.tolerance,
    )  # fmt: skip
    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    found = measure_landscape(
        options.run, checkpoints=options.checkpoints, select=options.select, weights=options.weights,
        budget=budget, dataset=options.dataset, data_dir=options.data_dir, progress=log_line,
    )  # fmt: skip
    _write(
        lambda: [datasets.write_store(found, path / LANDSCAPE), *save_landscape(found, path / "figures")],
        tables.landscape_as_text(found),
    )


def _minima(options: Minima) -> None:
    from periodic_jax.inspection.minima import compare
    from periodic_jax.plots import save_minima
    from periodic_jax.reporting import tables
    from periodic_jax.storage import datasets
    from periodic_jax.storage.run_directory import COMPARISON, read_config

    path = options.run
    read_config(path)
    if (path / COMPARISON).exists() and not options.overwrite:
        raise ConfigError("run directory", path / COMPARISON, "none yet, or --overwrite to replace the comparison")
    xla.keep_compiled_programs()
    found = compare(
        options.run, select=options.select, last=options.last, images=options.images, points=options.points,
        dataset=options.dataset, data_dir=options.data_dir, progress=log_line,
    )  # fmt: skip
    _write(
        lambda: [datasets.write_store(found, path / COMPARISON), *save_minima(found, path / "figures")],
        tables.minima_as_text(found),
    )


def _info(options: Info) -> None:
    from periodic_jax.inspection.info import describe_run

    report = describe_run(options.run, verify=options.verify)
    for line in report.lines:
        print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
    if report.faults:
        sys.exit(1)


_ACTIONS: dict[type, Callable[[Any], None]] = {
    Sweep: _sweep, Launch: _launch, Demo: _demo, Resume: _resume, Branch: _branch, Info: _info, Replay: _replay,
    Analyze: _analyze, Landscape: _landscape, Minima: _minima, Plot: _plot, Report: _report, Export: _export,
}  # fmt: skip

if __name__ == "__main__":
    main()
