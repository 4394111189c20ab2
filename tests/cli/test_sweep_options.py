"""The options of a sweep against the settings of a run, from which they are made."""

import dataclasses
import re
import shlex

import pytest

from periodic_jax.cli.main import main, parse_command
from periodic_jax.cli.sweep import to_config
from periodic_jax.runs.config import RunConfig


def sweep_config(arguments):
    return to_config(parse_command(["sweep", *arguments.split()]))


def test_options_become_a_configuration():
    config = sweep_config(
        "--lr 0.5 logspace:1e-3:1e-1:3 --weight-decay none --seed 3 1 --steps 7 --elr 0 --width 3 --out x"
    )
    assert config.lr == (0.5, 0.001, 0.01, 0.1)
    assert config.weight_decay == sweep_config("--weight-decay 0 --out x").weight_decay == (0.0,)
    assert config.seed == (3, 1)
    assert (config.steps, config.epochs, config.width, config.out) == (7, None, 3, "x")
    assert all(type(axis) is tuple for axis in (config.lr, config.seed))
    assert all(type(seed) is int for seed in config.seed)


def test_the_defaults_are_those_of_a_configuration():
    assert sweep_config("--out x") == RunConfig(out="x")


def test_a_fixed_effective_rate_is_without_decay_unless_it_is_given():
    assert sweep_config("--elr 0.1 --out x").weight_decay == (0.0,)
    assert sweep_config("--elr 0.1 --weight-decay 1e-3 --out x").weight_decay == (1e-3,)
    assert sweep_config("--elr 0 0.1 --out x").weight_decay == (1e-3,)


def test_minima_are_saved_with_or_without_a_number_of_steps():
    assert sweep_config("--keep-period-minima --out x").keep_period_minima == 100
    assert sweep_config("--keep-period-minima 20 --out x").keep_period_minima == 20


def test_points_are_columns_of_a_table(tmp_path):
    file = tmp_path / "points.csv"
    file.write_text("elr,seed\n0.1,0\n0.2,0\n0.1,3\n")
    config = sweep_config(f"--points {file} --momentum 0.5 --out x")
    assert (config.points, config.elr, config.seed) == (("elr", "seed"), (0.1, 0.2, 0.1), (0, 0, 3))
    assert config == RunConfig(points=file, momentum=0.5, weight_decay=0.0, out="x")
    assert (len(config.grid()), config.size()) == (3, 3)
    assert config.weight_decay == (0.0,)  # as the rule for --elr has it
    assert dataclasses.replace(config, steps=7).points == config.points


def test_axes_that_are_drawn_are_points():
    drawn = "--lr sobol:1e-3:1:8:log --weight-decay sobol:1e-5:1e-2:8:log --out x"
    config = sweep_config(f"{drawn} --momentum 0.9")
    assert (config.points, config.momentum, config.size()) == (("lr", "weight_decay"), (0.9,), 8)
    assert config == sweep_config(f"{drawn} --momentum 0.9 --points-seed 0")
    assert config.lr != sweep_config(f"{drawn} --points-seed 1").lr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--points {file} --lr 0.1", "--lr: given together with a column of --points"),
        ("--points {file} --lr sobol:1:2:4", "--points: given together with --lr sobol"),
        ("--points none.csv", "data file none.csv: No such file"),
        ("--points ''", "--points: an empty value"),
        ("--points-seed 3", "--points-seed: no axis is drawn"),
        ("--lr 0.1 sobol:1:2:4", "--lr: 0.1 sobol:1:2:4 "),
        ("--lr sobol:1:2", "--lr: sobol:1:2 "),
        ("--lr sobol:1:2:4:logarithmic", "sobol:FIRST:LAST:COUNT:log"),
        ("--seed sobol:0:9:4", "--seed: sobol:0:9:4 "),
    ],
)
def test_points_that_cannot_be_are_refused_in_a_line(tmp_path, capsys, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.csv").write_text("lr\n0.1\n")
    with pytest.raises(SystemExit) as caught:
        main(["sweep", "--steps", "5", *shlex.split(options.format(file="points.csv"))])
    error = capsys.readouterr().err
    assert (caught.value.code, said in error, error.count("\n")) == (2, True, 1), error
    assert not (tmp_path / "runs").exists()


def test_every_option_of_the_command_reaches_the_run(tmp_path):
    """One option after the other, changed from its default, changes the configuration."""
    (tmp_path / "points.csv").write_text("lr,seed\n0.1,0\n0.2,0\n")
    base = sweep_config("--steps 5 --out x")
    changes = {
        "lr": "0.2", "weight_decay": "0.01", "momentum": "0.9", "noninvariant_lr": "-1", "elr": "0.001",
        "fixed_norm": "1", "schedule_end": "3", "schedule_factor": "5", "seed": "1", "init_seed": "1", "data_seed": "1",
        "head_seed": "1", "dataset": "d", "data_dir": "d",
        "download": "", "augment": "", "validation": "5", "split_classes": "1", "use_data_size": "9",
        "corrupt_train": "0.5", "resize": "4", "model": "m", "model_args": "a=1",
        "width": "5", "depth": "2", "init_scale": "3",
        "loss": "squared", "schedule": "cosine", "schedule_per": "epoch", "norm_per": "filter", "full_batch": "",
        "sampling": "iid",
        "batch_size": "64", "steps": "6", "epochs": "2", "eval_every": "3", "eval_at": "2",
        "layout": "vmap", "keep": "3",
        "keep_every": "4", "checkpoint_seconds": "60", "precision": "float64", "storage": "bf16",
        "deterministic": "", "per_layer": "", "track_sharpness": "50", "track_eigenvalue": "3",
        "keep_period_minima": "20", "out": "y",
        "points": str(tmp_path / "points.csv"),
        "shards": "3", "shard": "1", "optimizer": "adamw", "beta1": "0.5", "beta2": "0.9", "eps": "1e-6",
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(RunConfig)}
    for name, value in changes.items():
        given = {"steps": "5", "out": "x", name: value}
        options = (f"--{key.replace('_', '-')} {text}" for key, text in given.items())
        changed = sweep_config(" ".join(options))
        assert getattr(changed, name) != getattr(base, name), name


def test_help_has_every_setting_once_with_its_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    text = " ".join(" ".join(lines).split())
    for theme in ("grid", "data", "network", "training", "output", "recording", "checkpoints", "many-machines"):
        assert sum(f"{theme} options" in line for line in lines) == 1
    for field in dataclasses.fields(RunConfig):
        flag = f"--{field.name.replace('_', '-')}"
        assert sum(re.match(rf"{flag}[ ,]", line) is not None for line in lines) == 1, flag
        assert field.metadata["help"] in text, flag
