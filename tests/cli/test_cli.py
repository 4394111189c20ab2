import os
import subprocess
import sys

import pytest

from periodic_jax import open_run
from periodic_jax.cli.main import main


def refuse(capsys, *arguments):
    """Run a command that must be refused: status 2 and one line on stderr, nothing on stdout."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("periodic-jax: ")
    return said.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("bogus", "bogus: periodic-jax has no such command; periodic-jax --help lists the commands"),
        ("swep", "swep: periodic-jax has no such command; did you mean sweep?"),
        ("--bogus", "--bogus: periodic-jax has no such command"),
        ("sweep --wd 0.1", "--wd: periodic-jax sweep has no such option; did you mean --weight-decay?"),
        ("sweep --steps 5 --bogus 1", "--bogus: periodic-jax sweep has no such option; periodic-jax sweep --help"),
        ("sweep --weightdecay=1", "--weightdecay: periodic-jax sweep has no such option; did you mean --weight-decay?"),
        ("sweep more", "more: periodic-jax sweep does not know what to do with it; see periodic-jax sweep --help"),
        ("analyze run more", "more: periodic-jax analyze does not know"),
        ("launch slurm --partitoin x", "--partitoin: periodic-jax launch slurm has no such option; did you mean --"),
        ("sweep", "--steps: not given, and no --epochs either; give one of the two"),
        ("sweep --steps five", "--steps: five is not accepted; expected a whole number"),
        ("sweep --steps 0", "--steps: 0 "),
        ("sweep --steps 1.5", "--steps: 1.5 "),
        ("sweep --steps 5 --epochs 2", "--steps: given together with --epochs; give one of the two"),
        ("sweep --steps 5 --lr", "--lr: an empty axis"),
        ("sweep --steps 5 --lr abc", "--lr: abc"),
        ("sweep --steps 5 --lr -0.1", "--lr: -0.1"),
        ("sweep --steps 5 --lr 0", "--lr: 0 "),
        ("sweep --steps 5 --lr inf", "--lr: inf"),
        ("sweep --steps 5 --lr 1e400", "--lr: 1e400 is"),
        ("sweep --steps 5 --lr linspace:-1:1:3", "--lr: linspace:-1:1:3 is"),
        ("sweep --steps 5 --momentum 1.0", "--momentum: 1.0 is"),
        ("sweep --steps 5 --corrupt-train 20e-1", "--corrupt-train: 2 is not accepted; expected a fraction"),
        ("sweep --steps 5 --checkpoint-seconds -1.0", "--checkpoint-seconds: -1 is"),
        ("branch run --select foo=0.5", "--select: foo=0.5 is not accepted; expected AXIS=NUMBER with an axis among"),
        ("branch run --select lr=abc", "--select: lr=abc is not accepted; expected lr= with finite numbers above 0"),
        ("branch run --select lr", "--select: lr is not accepted; expected lr=NUMBER"),
        ("branch run --select lr=1 lr=2", "--select: lr=2 is not accepted; expected each axis once"),
        ("landscape run --images few", "--images: few is not accepted; expected a whole number from 2, or all"),
        ("sweep --steps 5 --lr nan", "--lr: nan"),
        ("sweep --steps 5 --lr 0.1 0.10", "--lr: 0.1 given twice"),
        ("sweep --steps 5 --lr logspace:1:2", "--lr: logspace:1:2"),
        ("sweep --steps 5 --corrupt-train half", "--corrupt-train: half is not accepted; expected a number"),
        ("sweep --steps 5 --weight-decay -1", "--weight-decay: -1"),
        ("sweep --steps 5 --weight-decay nan", "--weight-decay: nan"),
        ("sweep --steps 5 --lr 100 --weight-decay 0.01", "lr x weight decay is 1; give numbers whose product is"),
        ("sweep --steps 5 --seed 0.5", "--seed: 0.5"),
        ("sweep --steps 5 --momentum 1", "--momentum: 1 "),
        ("sweep --steps 5 --storage float16", "--storage: float16 is not accepted; expected one of float32, bf16"),
        ("sweep --steps 5 --width 0", "--width: 0"),
        ("sweep --steps 5 --width wide", "--width: wide"),
        ("sweep --steps 5 --depth 0", "--depth: 0"),
        ("sweep --steps 5 --init-scale nan", "--init-scale: nan"),
        ("sweep --steps 5 --batch-size 1501", "--batch-size: 1501"),
        ("sweep --steps 5 --model VGG", "--model: VGG is not accepted; expected one of ConvNetSI"),
        ("sweep --steps 5 --dataset mnist", "--dataset: mnist is not accepted; expected one of digits"),
        ("sweep --steps 5 --dataset none.npz", "--dataset: none.npz is not accepted; expected an existing npz file"),
        ("sweep --steps 5 --data-dir nowhere", "--data-dir: nowhere is not accepted; expected an existing folder"),
        ("sweep --steps 5 --data-dir=", "--data-dir: an empty value"),
        ("sweep --steps 5 --validation 0", "--validation: 0 "),
        ("sweep --steps 5 --validation few", "--validation: few is not accepted; expected a whole number"),
        ("sweep --steps 5 --use-data-size 1501", "--use-data-size: 1501"),
        ("sweep --steps 5 --split-classes a", "--split-classes: a is not accepted; expected a whole number"),
        ("sweep --steps 5 --split-classes 1", "--split-classes: digits has no such halves; give it with"),
        ("sweep --steps 5 --corrupt-train 2", "--corrupt-train: 2 is"),
        ("sweep --steps 5 --resize 3", "--resize: 3 "),
        ("sweep --steps 5 --augment --full-batch", "--augment: given together with --full-batch; give one"),
        ("sweep --steps 5 --layout scan", "--layout: scan"),
        ("sweep --steps 5 --precision int8", "--precision: int8"),
        ("sweep --steps 5 --out=", "--out: an empty value"),
        *((f"{command} --data-dir=", "--data-dir: an empty value") for command in (
            "resume run", "branch run", "landscape run", "minima run")),
        ("branch run --out=", "--out: an empty value"),
        ("export run --to csv --out=", "--out: an empty value"),
        ("replay x --images y --out=", "--out: an empty value is not accepted; expected a file"),
        ("demo --steps many", "--steps: many"),
        ("replay x --images y --out .", "--out: . is not accepted; expected a file in an existing folder"),
        ("plot nowhere", "nowhere: there is no such folder; give the folder of a run"),
        ("plot nowhere --format svg", "--format: svg is not accepted; expected png, pdf or both"),
        ("export nowhere --to csv", "nowhere: there is no such folder"),
        ("report nowhere", "nowhere: there is no such folder"),
        ("report nowhere --live --port 70000", "--port: 70000 is not accepted; expected a whole number from 0 to"),
        ("report nowhere --live --port web", "--port: web is not accepted; expected a whole number from 0 to"),
        ("report nowhere --live --every 0", "--every: 0"),
        ("report nowhere --live --every often", "--every: often is not accepted; expected a whole number from 1"),
        ("replay x --images y --out z --copies 0", "--copies: 0 is not accepted; expected a whole number from 1"),
    ],
)  # fmt: skip
def test_unusable_input_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in refuse(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["info", "resume", "branch", "analyze", "plot", "report", "landscape", "minima"])
def test_an_empty_run_directory_is_not_the_current_folder(capsys, command):
    assert "run directory: an empty value" in refuse(capsys, command, "")


def test_a_folder_that_holds_a_run_or_is_none_is_refused(capsys, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "--out" in refuse(capsys, "sweep", "--steps", "5", "--out", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "--out" in refuse(capsys, "demo", "--out", str(tmp_path / "file"))
    assert "--out" in refuse(capsys, "demo", "--out", str(tmp_path / "file" / "below"))


def test_a_warning_while_options_are_read_is_shown(capsys, monkeypatch, tmp_path):
    import tyro

    def warn(*words, real=tyro.cli, **options):
        print("a warning", file=sys.stderr)
        return real(*words, **options)

    monkeypatch.setattr(tyro, "cli", warn)
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", "--lr", "0.1", "--unknown", "--out", str(tmp_path / "run")])
    assert capsys.readouterr().err.startswith("a warning\nperiodic-jax: --unknown: ")


def test_the_package_is_the_command(capsys):
    """For a Python whose folder of scripts is not on the path."""
    program = [sys.executable, "-m", "periodic_jax", "swep"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == refuse(capsys, "swep")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("analyze", "analyze: not given: DIR|FILE.csv Run directory, or a csv file; see periodic-jax analyze --help"),
        ("replay x --out y", "replay: not given: --images"),
        ("sweep --steps", "--steps: a value is missing; see periodic-jax sweep --help"),
        ("export nowhere", "export: not given: --to NAME tensorboard, wandb"),
        ("export", "export: not given: DIR Run directory. --to NAME"),
    ],
)
def test_what_is_missing_is_named_in_one_line(capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert refuse(capsys, *arguments.split()).startswith(f"periodic-jax: {named}")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo as a user runs it, but short, in a process and folder of its own."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    program = [sys.executable, "-m", "periodic_jax.cli.main", "demo", "--steps", "400"]
    return folder, subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_demo_runs_and_leaves_a_run_a_table_and_figures(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    dataset = open_run(folder / "runs" / "demo")
    assert dict(dataset.sizes) == {"lr": 5, "weight_decay": 2, "step": 400, "eval_step": 28}  # every 15
    for figure in ("train_loss", "test_error", "weight_norm", "phase_diagram"):
        assert (folder / "runs" / "demo" / "figures" / f"{figure}.png").stat().st_size > 10_000
    table = done.stdout.splitlines()
    assert len([line for line in table if line.split()[2:3] in (["converging"], ["periodic"], ["equilibrium"])]) == 10
    assert "peak memory" in done.stdout
    assert "ms each" in done.stdout


def test_a_sweep_trains_on_as_many_devices_as_there_are_cores(tmp_path):
    """Nothing that the command does beforehand starts JAX with one device."""
    from periodic_jax.storage.run_directory import read_config

    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # no number of devices
    words = ["--lr", "0.01", "0.1", "1", "--steps", "2", "--width", "2", "--depth", "1", "--layout", "map"]
    program = [sys.executable, "-m", "periodic_jax.cli.main", "sweep", *words, "--out", str(tmp_path / "run")]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_config(tmp_path / "run")["hardware"]["devices"] == min(len(os.sched_getaffinity(0)), 3)


def test_the_demo_uses_every_core_safely(demo):
    """The command line shards over the cores, and the guard against wrong float32 sums is in force."""
    from periodic_jax.storage.run_directory import read_config

    hardware = read_config(demo[0] / "runs" / "demo")["hardware"]
    assert hardware["devices"] == min(len(os.sched_getaffinity(0)), 10)


def test_commands_on_a_run(capsys, tmp_path, monkeypatch):
    """Figures, the report and an export of a short run, each named on standard output."""
    import numpy as np
    from helpers.synthetic import trajectory, write_run

    from periodic_jax import plots
    from periodic_jax.core.grid import SweepGrid
    from periodic_jax.storage.run_directory import read_config, write_config

    monkeypatch.setattr(plots, "CURVES", ("train_loss",))
    path = write_run(tmp_path / "run", SweepGrid.product(lr=1.0), {k: v[None] for k, v in trajectory(5).items()})
    assert "--in-epochs" in refuse(capsys, "plot", str(path), "--in-epochs")
    write_config(path, read_config(path) | {"data": {"train_images": 10}, "config": {"batch_size": 4}})
    main(["plot", str(path), "--in-epochs", "--log-steps", "--format", "pdf"])
    files = [path / "figures" / f"{name}.pdf" for name in ("train_loss", "phase_diagram", "regimes")]
    assert {str(file) for file in files} == set(capsys.readouterr().out.split())
    assert all(file.read_bytes().startswith(b"%PDF") for file in files)
    main(["report", str(path)])
    assert capsys.readouterr().out.strip() == str(path / "report.html")
    main(["export", str(path), "--to", "npz"])
    assert capsys.readouterr().out.strip() == str(path / "export" / "npz.npz")
    assert np.load(path / "export" / "npz.npz")["loss"].shape == (1, 5)
    assert "--out" in refuse(capsys, "export", str(path), "--to", "npz")
    assert "curves" not in capsys.readouterr().out
    pytest.importorskip("tensorboardX")
    main(["export", str(path), "--to", "tensorboard"])
    assert capsys.readouterr().out.strip() == str(path / "export" / "tensorboard")


def test_results_that_cannot_be_written_are_printed(capsys, tmp_path, monkeypatch):
    from helpers.synthetic import trajectory, write_run

    from periodic_jax.core.grid import SweepGrid

    path = write_run(tmp_path / "run", SweepGrid.product(lr=1.0), {k: v[None] for k, v in trajectory(5).items()})

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SystemExit) as stop:
        main(["analyze", str(path)])
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert "undecided" in said.out
    assert said.err.startswith(f"periodic-jax: {path}/analysis.nc: not written (")
    assert said.err.endswith("); what was there is unchanged\n")
    assert not (path / "summary.csv").exists()


@pytest.mark.parametrize("arguments", [("resume", "nope"), ("branch", "nope", "--lr", "0.1"), ("resume", "x" * 300)])
def test_wrong_input_is_refused_before_compiling_is_shown(capsys, arguments):
    refuse(capsys, *arguments)


def test_an_error_in_training_is_on_a_line_of_its_own(capsys):
    """Standard error as a log file has it."""
    import numpy as np

    from periodic_jax.core.errors import RunInterrupted
    from periodic_jax.runs.callbacks import RunCallbacks
    from periodic_jax.sweeps.chunks import Chunk

    def train():
        with RunCallbacks().showing_progress() as shown:
            shown.on_start(2, 0, 10)
            shown.on_chunk(Chunk(0, {"loss": np.zeros((2, 4))}, None, np.zeros(2)))
            raise RunInterrupted("the disk is full", 1)

    with pytest.raises(RunInterrupted):
        train()
    said = capsys.readouterr().err
    assert "compiling" in said
    assert "8.00/20.0" in said
    assert said.endswith("\n")


@pytest.mark.parametrize("words", [["--help"], ["analyze", "--help"], ["analyze", "RUN"], ["info", "RUN"]])
def test_who_reads_the_output_may_go(demo, words):
    """As with ``| head -1``: no word of it, and all files are written."""
    run = demo[0] / "runs" / "demo"
    (run / "summary.csv").unlink(missing_ok=True)
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-m", "periodic_jax.cli.main", *(str(run) if word == "RUN" else word for word in words)]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, timeout=100)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
    assert (run / "summary.csv").exists() == (words == ["analyze", "RUN"])


def test_closed_streams_are_opened_on_nothing(tmp_path):
    """A service may close all three: the next files would get their numbers, and libraries would log into them."""
    program = """
import sys
from periodic_jax.cli.main import main
try:
    main(["--version"])
finally:
    with open(sys.argv[1], "w") as seen:
        print(*(stream.fileno() for stream in (sys.stdin, sys.stdout, sys.stderr)), file=seen)
"""
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", program, str(tmp_path / "seen")]
    assert subprocess.run(command, timeout=100).returncode == 0
    assert (tmp_path / "seen").read_text() == "0 1 2\n"
