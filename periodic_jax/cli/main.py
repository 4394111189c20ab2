"""The command line, ``periodic-jax COMMAND``: what each command calls and prints."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from periodic_jax.cli.launch import claim_folder, print_figures, print_plan, show_results, train_with_progress
from periodic_jax.cli.options import (
    Analyze,
    Branch,
    Demo,
    Export,
    Info,
    Landscape,
    Minima,
    Plot,
    Replay,
    Report,
    Resume,
    Sweep,
)
from periodic_jax.cli.parser import as_typed, log_line, parse, refuse
from periodic_jax.cli.values import (
    WHOLE,
    finite_number,
    free_folder,
    parse_axis,
    to_config,
    to_selection,
    whole_number,
    without_decay,
)
from periodic_jax.core.errors import ConfigError, RunStopped
from periodic_jax.core.formatting import counted
from periodic_jax.training import xla


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
    """What the words ask for."""
    command: Any = None
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
        _ACTIONS[type(command)](command)
    except ConfigError as error:
        sys.exit(refuse(str(as_typed(error, command))))
    except RunStopped as stopped:
        log_line(str(stopped))
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        log_line("interrupted")
        sys.exit(130)
    except BrokenPipeError:
        raise
    except OSError as error:
        log_line(f"{error.filename or 'error'}: {error.strerror or error}")
        sys.exit(1)


def _sweep(options: Sweep) -> None:
    from periodic_jax.runs.run import run_sweep

    config = to_config(options)
    if options.dry_run:
        print_plan(config)
        return
    claim_folder(config)
    print_figures(show_results(*train_with_progress(config.out, run_sweep, config)))


def _demo(options: Demo) -> None:
    from periodic_jax.runs.run import run_sweep

    sweep = Sweep(
        lr=("0.01", "0.03", "0.1", "0.3", "1"), weight_decay=("1e-3", "1e-2"), steps=options.steps,
        out=options.out or free_folder("demo"),
    )  # fmt: skip
    config = to_config(sweep)
    claim_folder(config)
    print(
        f"ConvNetSI of width {config.width} on scikit-learn's digits: {len(config.lr)} learning rates x "
        f"{len(config.weight_decay)} weight decays, {counted(config.steps or 0, 'step')} each."
    )
    files = show_results(*train_with_progress(config.out, run_sweep, config))
    print("Look at:")
    for file in files:
        print(f"  {file}")


def _resume(options: Resume) -> None:
    from periodic_jax.runs.run import resume_run

    counts = {name: whole_number(name, getattr(options, name)) for name in ("steps", "epochs")}
    end = train_with_progress(
        options.run, resume_run, options.run, dataset=options.dataset or None, data_dir=options.data_dir or None,
        truncate=options.truncate, **counts,
    )  # fmt: skip
    print_figures(show_results(*end))


def _replay(options: Replay) -> None:
    from periodic_jax.inspection import replay

    copies = whole_number("copies", options.copies) or 0
    if copies < 1:
        raise ConfigError("--copies", options.copies, "a whole number from 1")
    if options.precision not in ("float32", "float64"):
        raise ConfigError("--precision", options.precision, "float32 or float64")
    if not Path(options.out).resolve().parent.is_dir():
        raise ConfigError("--out", options.out, "a file in an existing folder")
    recording, images = replay.load_recording(options.recording), replay.load_recording(options.images)
    with xla.precision(options.precision):
        xla.check_reductions()
        result = replay.replay(recording, images, copies=copies, layout=options.layout)
    replay.save(result, options.out)
    first = 10 if options.precision == "float64" else 5
    print(f"{'largest relative difference':28s}{f'first {first} steps':>16s}{'all steps':>12s}")
    for name, (early, late) in replay.compare(result, recording, first).items():
        print(f"{name:28s}{early:16.1e}{late:12.1e}")


def _analyze(options: Analyze) -> None:
    from periodic_jax import analysis
    from periodic_jax.reporting import tables
    from periodic_jax.storage.reader import open_run

    path = Path(options.run)
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

    path, formats = Path(options.run), tuple(dict.fromkeys(options.format))
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

    path = Path(options.run)

    def look() -> dict[str, Any]:
        dataset = open_run(path, flat=True)
        return html.contents(dataset, analysis.analyze(dataset))

    port, every = (whole_number(name, getattr(options, name)) or 0 for name in ("port", "every"))
    if not 0 <= port < 2**16:
        raise ConfigError("--port", port, WHOLE["port"])
    if every < 1:
        raise ConfigError("--every", every, "a whole number from 1")
    if not options.live:
        print(html.write(look(), path))
        return
    with html.serve(look, port=port, every=every) as server:
        print(f"http://127.0.0.1:{server.server_port}/ until interrupted (Ctrl-C)", flush=True)
        server.serve_forever()


def _export(options: Export) -> None:
    from periodic_jax.reporting import export
    from periodic_jax.storage.reader import open_run

    path = Path(options.run)
    out = Path(options.out) if options.out else path / "export" / (options.to + export.ENDINGS.get(options.to, ""))
    dataset = open_run(path, flat=True)
    print(export.export(dataset, options.to, out))
    if options.to in ("tensorboard", "wandb") and dataset.sizes["step"] > 2 * export.BUCKETS:
        print(f"curves: of {dataset.sizes['step']} steps, the lowest and highest of each of {export.BUCKETS} parts")


def _branch(options: Branch) -> None:
    from periodic_jax.runs.branch import branch_run
    from periodic_jax.runs.run import RUN_AXES

    given = {name: getattr(options, name) for name in RUN_AXES if getattr(options, name)}
    change: dict[str, Any] = {name: parse_axis(name, without_decay(name, words)) for name, words in given.items()}
    out = options.out or free_folder("branch")
    end = train_with_progress(
        out, branch_run, options.run, out, step=whole_number("step", options.step), select=to_selection(options.select),
        change=change, steps=whole_number("steps", options.steps), dataset=options.dataset or None,
        data_dir=options.data_dir or None,
    )  # fmt: skip
    print_figures(show_results(*end))


def _landscape(options: Landscape) -> None:
    from periodic_jax.inspection.landscape import Budget, measure_landscape
    from periodic_jax.plots import save_landscape
    from periodic_jax.reporting import tables
    from periodic_jax.storage import datasets
    from periodic_jax.storage.run_directory import LANDSCAPE, read_config

    counts = {name: whole_number(name, getattr(options, name)) or 0 for name in ("probes", "eigenvalues", "iterations")}
    images = None if options.images == "all" else whole_number("images", options.images)
    path = Path(options.run)
    read_config(path)
    if (path / LANDSCAPE).exists() and not options.overwrite:
        raise ConfigError("run directory", path / LANDSCAPE, "none yet, or --overwrite to replace what was measured")
    budget = Budget(images, **counts, tolerance=finite_number("tolerance", options.tolerance))
    xla.use_cores_as_devices()
    xla.keep_compiled_programs()
    found = measure_landscape(
        options.run, checkpoints=options.checkpoints, select=to_selection(options.select), weights=options.weights,
        budget=budget, dataset=options.dataset or None, data_dir=options.data_dir or None, progress=log_line,
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

    path = Path(options.run)
    read_config(path)
    if (path / COMPARISON).exists() and not options.overwrite:
        raise ConfigError("run directory", path / COMPARISON, "none yet, or --overwrite to replace the comparison")
    counts = {
        n: None if getattr(options, n) == "all" else whole_number(n, getattr(options, n)) for n in ("last", "images")
    }
    xla.keep_compiled_programs()
    found = compare(
        options.run, select=to_selection(options.select), **counts, points=whole_number("points", options.points) or 0,
        dataset=options.dataset or None, data_dir=options.data_dir or None, progress=log_line,
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
    Sweep: _sweep, Demo: _demo, Resume: _resume, Branch: _branch, Info: _info, Replay: _replay, Analyze: _analyze,
    Landscape: _landscape, Minima: _minima, Plot: _plot, Report: _report, Export: _export,
}  # fmt: skip

if __name__ == "__main__":
    main()
