import dataclasses
import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.small_sweeps import forget_programs

import periodic_jax
from periodic_jax import (
    ConfigError,
    CorruptedRunError,
    RunCallbacks,
    RunConfig,
    analysis,
    dynamics,
    open_run,
    run_sweep,
)
from periodic_jax.runs.build import build_sweep
from periodic_jax.runs.config import check, evaluated_every, planned_steps
from periodic_jax.runs.manifest import LATER, from_manifest
from periodic_jax.storage.run_directory import read_config
from periodic_jax.training import input_pipeline

SMALL = {"lr": (0.1, 1.0), "weight_decay": (1e-3, 1e-2), "width": 2, "depth": 1, "steps": 25, "eval_every": 10}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of four configurations in float64, and the chunks it reported."""
    out = tmp_path_factory.mktemp("runs") / "small"
    seen = []
    callbacks = RunCallbacks(on_start=lambda *counts: seen.append(counts), on_chunk=seen.append, log=pytest.fail)
    done = run_sweep(RunConfig(out=out, precision="float64", per_layer=True, **SMALL), callbacks=callbacks)
    assert done.path == out
    return done, seen


def test_every_step_and_evaluation_is_recorded(run):
    dataset = open_run(run[0])
    assert dict(dataset.sizes) == {"lr": 2, "weight_decay": 2, "step": 25, "eval_step": 4, "layer": 2}
    assert dataset.eval_step.values.tolist() == [0, 10, 20, 25]
    for name in ("loss", "accuracy", "weight_norm", "grad_norm", "effective_grad_norm", "effective_lr", "angular_step",
                 "radial_leak", "noninvariant_weight_norm", "noninvariant_grad_norm", "layer_weight_norm",
                 "layer_effective_lr", "layer_effective_grad_norm", "layer_angular_step", "train_loss", "train_error",
                 "test_loss", "test_error"):  # fmt: skip
        assert np.isfinite(dataset[name]).all(), name
        assert dataset[name].dtype == np.float64
        assert dataset[name].attrs["long_name"]
    assert dataset.diverged_at.isnull().all()
    assert dataset.layer.values.tolist() == ["conv0/kernel", "conv1/kernel"]
    curve = dataset.loss.sel(lr=0.1, weight_decay=1e-3)
    assert curve.dims == ("step",)
    assert curve[-1] < curve[0]


def test_coordinates_belong_to_their_curves(run):
    """The effective learning rate is lr / norm², and the norm shrinks by the configuration's own decay."""
    dataset = open_run(run[0])
    np.testing.assert_allclose(dataset.effective_lr, dataset.lr / dataset.weight_norm**2, rtol=1e-12)
    predicted = dynamics.next_weight_norm(
        dataset.weight_norm, dataset.effective_grad_norm, dataset.lr, dataset.weight_decay
    )
    # Batch norm's ε makes the gradient slightly radial: 1e-4, not rounding.
    np.testing.assert_allclose(predicted[..., :-1], dataset.weight_norm[..., 1:], rtol=1e-4)


def test_config_json_tells_how_to_repeat_the_run(run):
    record = read_config(run[0])
    assert record["config"]["steps"] == 25
    assert record["config"]["layout"] == "map"
    assert record["config"]["lr"] == [0.1, 1.0]
    assert {"jax", "jaxlib", "flax", "optax", "python"} <= set(record["versions"])
    assert record["hardware"]["backend"] == "cpu"
    summary = record["summary"]
    assert summary["config_steps"] == 100
    assert summary["compilations"] == 1
    assert 50 < summary["peak_rss_mb"] < 20_000
    assert summary["ms_per_config_step"] is None or summary["ms_per_config_step"] > 0
    json.dumps(record, allow_nan=False)


def test_config_json_names_the_commit_of_the_checkout(run):
    checkout = Path(periodic_jax.__file__).parents[1]
    if not (checkout / ".git").exists():
        pytest.skip("the package is not in a checkout")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert read_config(run[0])["git_commit"] == commit.stdout.strip()


def test_a_result_stands_for_its_path_and_has_the_analysis(run):
    done = run[0]
    assert Path(done) == done.path == done / "."
    assert f"{done}" == os.fspath(done) == str(done.path)
    with open(done / "config.json") as file:
        assert file.read(1) == "{"
    assert done.analysis.identical(analysis.analyze(open_run(done, flat=True)))
    assert "Dataset" not in repr(done)


def test_the_table_is_written(run):
    lines = (run[0] / "summary.csv").read_text().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("config,lr,weight_decay,")


def test_progress_is_told_of_every_step_once(run):
    assert run[1][0] == (4, 0, 25)  # configurations, first step, last step: all is accepted
    steps = [(chunk.first_step, chunk.steps) for chunk in run[1][1:]]
    assert steps[0] == (0, 0)  # the evaluation before the first step
    assert sum(count for _, count in steps) == 25
    assert all(a[0] + a[1] == b[0] for a, b in itertools.pairwise(steps))


def test_the_same_configuration_gives_the_same_bits(run, tmp_path):
    again = run_sweep(RunConfig(out=tmp_path / "again", precision="float64", per_layer=True, **SMALL))
    assert open_run(again).drop_attrs().equals(open_run(run[0]).drop_attrs())


def test_a_change_of_the_working_directory_leaves_the_run_where_it_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = RunConfig(out="run", width=2, depth=1, steps=3)
    there = run_sweep(settings, callbacks=RunCallbacks(on_chunk=lambda chunk: os.chdir(tmp_path / "elsewhere")))
    assert not list((tmp_path / "elsewhere").iterdir())
    assert np.isfinite(open_run(there).loss).all()
    # A run directory is passed on: it does not tell what is above the directory that the run was started in.
    assert read_config(there.path)["config"]["out"] == "run"


def test_a_run_directory_is_never_written_over(run):
    with pytest.raises(ConfigError, match=r"--out: .* holds another run: .*; give another folder"):
        run_sweep(RunConfig(out=run[0].path, **SMALL))


def test_a_diverging_configuration_is_recorded_as_such(tmp_path):
    config = RunConfig(out=tmp_path / "run", lr=(0.1, 1e30), weight_decay=(0.0,), steps=5, width=2, depth=1)
    dataset = open_run(run_sweep(config))
    assert np.isfinite(dataset.loss.sel(lr=0.1)).all()
    assert dataset.diverged_at.sel(lr=1e30) < 5
    assert np.isfinite(dataset.test_loss.sel(lr=0.1)).all()
    assert dataset.test_loss.sel(lr=1e30)[1:].isnull().all()
    assert "diverged" in (tmp_path / "run" / "summary.csv").read_text()


def test_a_run_of_one_step_is_whole(tmp_path):
    """Of its steps only number 0 is written, which must not be taken for nothing."""
    config = RunConfig(out=tmp_path / "run", lr=(0.1,), steps=1, width=2, depth=1)
    np.testing.assert_array_equal(open_run(run_sweep(config)).step, [0])


def test_evaluations_take_a_quarter_of_the_time_at_most(tmp_path):
    """An evaluation of the 1,500 and 297 images costs a third of a step for each of their mini-batches."""

    def every(**changes):
        return evaluated_every(RunConfig(out=tmp_path, **changes))

    assert [every(steps=steps) for steps in (10, 1500, 10000)] == [15, 15, 100]
    assert every(steps=10, batch_size=1500) == every(steps=10, full_batch=True) == 2
    assert every(steps=10, eval_every=1) == 1


def test_epochs_are_whole_mini_batches(tmp_path):
    assert planned_steps(RunConfig(out=tmp_path, epochs=3, batch_size=128)) == 3 * 11
    assert planned_steps(RunConfig(out=tmp_path, epochs=3, batch_size=1500)) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": (0.0,)}, "--lr: 0 "),
        ({"lr": ()}, "--lr: an empty axis"),
        ({"lr": (10.0,), "weight_decay": (0.1,)}, "--lr 10 with --weight-decay 0.1"),
        ({"momentum": (1.0,)}, "--momentum: 1 "),
        ({"seed": (0, 0)}, "--seed: 0 given twice"),
        ({"steps": 0}, "--steps: 0 "),
        ({"steps": None}, "--steps: not given, and no --epochs either"),
        ({"epochs": 3}, "--steps: given together with --epochs"),
        ({"steps": None, "epochs": 0}, "--epochs: 0 "),
        ({"eval_every": -1}, "--eval-every: -1 "),
        ({"precision": "int8"}, "--precision: int8"),
        ({"storage": "float16"}, "--storage: float16 "),
        ({"layout": "scan"}, "--layout: scan"),
        ({"dataset": "mnist"}, "--dataset: mnist"),
        ({"batch_size": 1501}, "--batch-size: 1501"),
        ({"data_dir": "nowhere"}, "--data-dir: nowhere"),
        ({"corrupt_train": 2.0}, "--corrupt-train: 2 "),
        ({"use_data_size": 100, "batch_size": 128}, "--batch-size: 128"),
        ({"augment": True, "full_batch": True}, "--augment"),
        ({"model": "VGG"}, "--model: VGG"),
        ({"width": 0}, "--width: 0"),
        ({"width": 10**9}, "--width: 1000000000"),
        ({"steps": 10**12}, "--steps: 1000000000000"),
        ({"depth": -2}, "--depth: -2"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(tmp_path, change, named):
    with pytest.raises(ConfigError) as caught:
        check(RunConfig(**{"out": tmp_path / "run", **SMALL, **change}))
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_schedules_full_batches_and_fixed_norms_reach_the_training(tmp_path):
    """A cosine ends at a rate of zero; the norm of each step is the one asked for; one step of a full batch is an
    epoch."""
    config = RunConfig(
        out=tmp_path / "run", lr=(0.2,), weight_decay=(0.0,), fixed_norm=(2.0, 3.0), schedule="cosine",
        schedule_end=(4.0, 0.0), full_batch=True, loss="squared", epochs=8, batch_size=750, width=2,
        depth=1, precision="float64",
    )  # fmt: skip
    dataset = open_run(run_sweep(config))
    assert dict(dataset.sizes) == {"fixed_norm": 2, "schedule_end": 2, "step": 8, "eval_step": 5}
    np.testing.assert_allclose(
        dataset.weight_norm[:, :, 1:], dataset.fixed_norm.broadcast_like(dataset.weight_norm)[:, :, 1:]
    )
    rate = dataset.effective_lr * dataset.weight_norm**2
    ends = dataset.schedule_end
    assert ends.values.tolist() == [4.0, 8.0]
    expected = 0.1 * (1 + np.cos(np.pi * np.minimum(dataset.step / ends, 1)))
    np.testing.assert_allclose(rate.transpose(..., "step"), expected.broadcast_like(rate), rtol=1e-12, atol=1e-15)
    assert (dataset.angular_step.sel(schedule_end=4.0)[:, 4:] < 1e-12).all()


def test_variations_of_the_data_reach_the_training_and_the_record(tmp_path, monkeypatch):
    """Corrupted digits, shrunk and augmented: the parts' losses average to that of the whole."""
    forget_programs()
    augmented, augment = [], input_pipeline.augment
    monkeypatch.setattr(
        input_pipeline, "augment", lambda images, key: augmented.append(images.shape) or augment(images, key)
    )
    config = RunConfig(
        out=tmp_path / "run", steps=2, width=2, depth=1, validation=300, use_data_size=256, corrupt_train=0.3, resize=4,
        augment=True, batch_size=64,
    )  # fmt: skip
    dataset = open_run(run_sweep(config))
    record = read_config(tmp_path / "run")
    seen = record["data"]
    assert (seen["train_images"], seen["test_images"], seen["image_shape"]) == (256, 300, [4, 4, 1])
    assert record["config"]["augment"] is True
    share = seen["corrupted"] / 256
    for name in ("loss", "error"):
        parts = share * dataset[f"corrupted_train_{name}"] + (1 - share) * dataset[f"clean_train_{name}"]
        np.testing.assert_allclose(parts, dataset[f"train_{name}"], rtol=1e-5)
        assert dataset[f"clean_train_{name}"].attrs["long_name"]
    assert augmented[0] == (64, 4, 4, 1)


def test_a_run_directory_of_before_an_option_is_read_as_without_it():
    config = RunConfig(out="x", steps=5)
    held = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name in LATER:
        del held[name]
    assert from_manifest({"config": held}, Path("x")) == dataclasses.replace(config, out=Path("x"))
    del held["width"]
    with pytest.raises(CorruptedRunError, match="no value for width"):
        from_manifest({"config": held}, Path("x"))


def test_numbers_are_no_part_of_the_programs(tmp_path):
    """Neither values of an axis nor the number of steps: what is compiled for one sweep serves the next."""
    texts = []
    for changes in ({}, {"steps": 2000}, {"weight_decay": (0.0, 0.5), "lr": (0.3, 0.7)}, {"seed": (5,)}):
        sweep = build_sweep(RunConfig(**{**SMALL, **changes}))
        sweep._lay_out("map")
        states = sweep._initialise.eval_shape(sweep.initial_seeds)
        programs = sweep._programs
        lowered = (
            sweep._initialise.lower(sweep.initial_seeds), programs.evaluation.lower(states, sweep.data),
            programs.chunk.lower(states, sweep.hparams, sweep.seeds, sweep.data, np.int32(0), np.int32(1)),
        )  # fmt: skip
        texts.append([program.as_text() for program in lowered])
    for other in texts[1:]:
        assert other == texts[0]
