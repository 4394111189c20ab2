"""The commands that look at a run's telemetry: ``info``, ``analyze``, ``plot``, ``report`` and ``export``."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

import periodic_jax as pj
from periodic_jax.cli.axis import read_columns, read_count, read_run
from periodic_jax.cli.options import IF_GIVEN, Folder, Run, arg
from periodic_jax.core.errors import ConfigError, UsageError
from periodic_jax.runs.settings import setting
from periodic_jax.storage.run_directory import branch_folders, steps_per_epoch


def print_and_write(text: str, write: Callable[[], list[Path]]) -> None:
    """Write files, print what they hold and name them; what cannot be written can be read at least."""
    try:
        files = write()
    finally:
        print(text, end="")
    print(f"written: {', '.join(map(str, files))}")


def _open_flat(path: Path) -> Any:
    """A run's telemetry, flat. Tables and figures tell configurations apart by their axes, which branches share."""
    if branches := branch_folders(path):
        one = next(iter(branches.values()))
        raise ConfigError("run directory", path, f"one of its branches, such as {one}")
    return pj.open_run(path, flat=True)


@dataclass(frozen=True)
class Info:
    """Describe a run directory: what it holds, how far the run came, and whether a file is corrupted."""

    run: Run
    verify: Annotated[bool, IF_GIVEN] = setting(
        False, "Read every telemetry chunk, checkpoint and saved minimum, and compare the checksums."
    )
    model: Annotated[str | None, arg("MODULE:NAME"), IF_GIVEN] = setting(
        None, "With --verify, the import path of the run's network, where it is one of your own."
    )

    def execute(self) -> None:
        """Print the description; exits with 1 where something is corrupted."""
        from periodic_jax.inspection.info import describe_run

        report = describe_run(self.run, verify=self.verify, model=self.model)
        for line in report.lines:
            print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line))
        if report.errors:
            sys.exit(1)


@dataclass(frozen=True)
class Analyze:
    """Say what each configuration of a run did, how long its periods are, and whether the theory held.

    Prints tables and writes summary.csv and analysis.nc into the run directory. The run may still be going on. For a
    csv file of a run that was recorded elsewhere, with a row for each step, the command only prints the tables.
    """

    run: Positional[Annotated[Path, read_run(), arg("DIR|FILE.csv", "Run directory, or a csv file.")]]
    predict: Annotated[bool, IF_GIVEN] = setting(
        False,
        """Also predict a window and the expected step of the next destabilisation, and test such predictions on the
        destabilisations of the run.""",
    )

    columns: Annotated[dict[str, str] | None, read_columns(), IF_GIVEN, arg("NAME=COLUMN ...")] = setting(
        None,
        """For a csv file: which of its columns is loss, weight_norm, effective_lr, effective_grad_norm, grad_norm,
        angular_step or lr, such as loss=train_loss weight_norm=norm; and numbers, such as weight_decay=1e-3 or
        optimizer=adamw. If not given, the columns with these names.""",
    )

    def execute(self) -> None:
        """Print and write the analysis."""
        is_log = self.run.suffix.lower() == ".csv"
        if self.columns is not None and not is_log:
            raise UsageError("--columns", f"{self.run} is no csv file", "leave it out")
        log = pj.analysis.read_log(self.run, self.columns) if is_log else None
        dataset = log.dataset if log else _open_flat(self.run)
        tables, analysis = pj.tables, pj.analysis.analyze(dataset, predict=self.predict)
        columns = [tables.SHOWN, ("because",), ("mean_fall_steps", "mean_predicted_fall_steps", *tables.THEORY)]
        columns += [tables.FORECASTS] if self.predict else []
        text = "\n".join([*(tables.as_text(analysis, names) for names in columns), tables.findings(analysis)])
        if log:
            print(text, *log.left_out, sep="\n")
        else:
            print_and_write(text, lambda: tables.save(analysis, self.run))


@dataclass(frozen=True)
class Plot:
    """Draw all figures that apply to a run into DIR/figures. The run may still be going on."""

    run: Run
    format: Annotated[tuple[str, ...], arg("png|pdf ...")] = setting(
        ("png", "pdf"), "Files to write: png, pdf (vector graphics) or both."
    )
    in_epochs: Annotated[bool, IF_GIVEN] = setting(False, "Count epochs instead of steps.")
    log_steps: Annotated[bool, IF_GIVEN] = setting(False, "Draw the steps on a logarithmic axis.")

    def execute(self) -> None:
        """Draw the figures and print their names."""
        formats = tuple(dict.fromkeys(self.format))
        if not formats or set(formats) - {"png", "pdf"}:
            raise ConfigError("--format", " ".join(formats) or "an empty list", "png, pdf or both")
        dataset = _open_flat(self.run)
        epoch = steps_per_epoch(self.run) if self.in_epochs else None
        if self.in_epochs and epoch is None:
            raise UsageError("--in-epochs", "config.json has no images and batch size to count with", "leave it out")
        files = pj.plots.save_all(
            dataset, pj.analysis.analyze(dataset), self.run / "figures", formats=formats, steps_per_epoch=epoch,
            log_steps=self.log_steps,
        )  # fmt: skip
        print(*files, sep="\n")


@dataclass(frozen=True)
class Report:
    """Write DIR/report.html, to explore a run in a browser without a network, or serve it while the run goes on."""

    run: Run
    live: Annotated[bool, IF_GIVEN] = setting(
        False, "Serve the report on this machine (127.0.0.1) and refresh it until interrupted."
    )
    port: Annotated[int, read_count("port", 0, 2**16 - 1)] = setting(8000, "Port of --live.")
    every: Annotated[int, read_count("every", 1, metavar="SECONDS")] = setting(
        10, "Seconds between refreshments of --live."
    )

    def execute(self) -> None:
        """Write or serve the report."""
        from periodic_jax.reporting import html

        def look() -> dict[str, Any]:
            dataset = _open_flat(self.run)
            return html.report_contents(dataset, pj.analysis.analyze(dataset))

        if not self.live:
            print(html.write(look(), self.run))
            return
        with html.serve(look, port=self.port, every=self.every) as server:
            print(f"http://127.0.0.1:{server.server_port}/ until interrupted (Ctrl-C)", flush=True)
            server.serve_forever()


@dataclass(frozen=True)
class Export:
    """Write a run in the format of another tool. The command sends nothing anywhere."""

    run: Run
    to: Annotated[str, arg("NAME", "tensorboard, wandb (offline runs), csv, netcdf or npz.")]
    out: Folder = setting(None, "File or folder to create; DIR/export/NAME if not given.")

    def execute(self) -> None:
        """Write the export and print its name."""
        from periodic_jax.reporting import export

        out = Path(self.out or self.run / "export" / (self.to + export.ENDINGS.get(self.to, "")))
        dataset = _open_flat(self.run)
        print(export.export(dataset, self.to, out))
        if self.to in ("tensorboard", "wandb") and dataset.sizes["step"] > 2 * export.BUCKETS:
            print(f"curves: of {dataset.sizes['step']} steps, the lowest and highest of each of {export.BUCKETS} parts")
