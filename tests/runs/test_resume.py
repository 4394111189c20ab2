"""Runs that are stopped, killed or corrupted, and go on to the bits that they would have had."""

import dataclasses
import fcntl
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from helpers.survival import STEPS, assert_same_run, configured, flip, started, stop_after, wait_for

from periodic_jax import ConfigError, RunCallbacks, open_run, run_sweep
from periodic_jax.checkpoints.writer import Checkpoints
from periodic_jax.cli.main import main
from periodic_jax.core.errors import CorruptedRunError, RunInterrupted
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs import callbacks
from periodic_jax.runs.branch import branch_run
from periodic_jax.runs.build import build_sweep
from periodic_jax.runs.manifest import difference, from_manifest, to_manifest
from periodic_jax.runs.planning import check_room, estimate_resources
from periodic_jax.runs.run import FINISHED, resume_run
from periodic_jax.runs.session import SessionPlan, find_resume_point
from periodic_jax.storage.run_directory import checkpoint_steps, read_config, write_config
from periodic_jax.sweeps.sweep import Sweep


def interrupted(out, chunks=3, **changes):
    """A run stopped after some chunks: 3 are 30 steps."""
    with pytest.raises(RunInterrupted) as stopped:
        run_sweep(configured(out, **changes), callbacks=stop_after(chunks))
    assert stopped.value.status == 143
    assert f"periodic-jax resume {out}" in str(stopped.value)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run."""
    return run_sweep(configured(tmp_path_factory.mktemp("whole") / "run")).path


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run stopped after 30 of 40 steps; copied before use."""
    return interrupted(tmp_path_factory.mktemp("halfway") / "run")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """All that a session needs but for the directory."""
    return build_sweep(configured("unused", layout="map"))


@pytest.fixture
def cut(halfway, tmp_path):
    return shutil.copytree(halfway, tmp_path / "run")


def test_a_stopped_run_goes_on_to_the_same_bits(whole, cut):
    before = open_run(cut, flat=True).load()
    assert np.isfinite(before.loss[0, :30]).all()
    assert before.loss[:, 30:].isnull().all()
    assert checkpoint_steps(cut) == [20, 30]
    assert "summary" not in read_config(cut)
    resume_run(cut)
    assert_same_run(cut, whole)
    record = read_config(cut)
    assert len(record["sessions"]) == 1
    assert record["summary"]["config_steps"] == 6 * STEPS
    assert record["summary"]["session_config_steps"] == 6 * (STEPS - 30)
    assert (cut / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()


@pytest.mark.slow
def test_a_tracked_eigenvalue_goes_on_to_the_same_bits_and_in_a_branch_too(tmp_path):
    """Nothing but the weights is needed for it."""
    changes = {"lr": (0.1,), "seed": (0,), "track_eigenvalue": 7, "keep_every": 14}
    whole = run_sweep(configured(tmp_path / "whole", **changes)).path
    cut = interrupted(tmp_path / "cut", **changes)
    assert checkpoint_steps(cut)[-1] == 14  # where a measurement is due
    resume_run(cut)
    assert_same_run(cut, whole)
    branch = open_run(branch_run(whole, tmp_path / "branch", step=28), flat=True).sphere_hessian_largest
    np.testing.assert_array_equal(branch, open_run(whole, flat=True).sphere_hessian_largest.sel(step=slice(28, None)))
    assert np.isfinite(branch).values.nonzero()[1].tolist() == [0, 7]


def test_the_same_sweep_again_goes_on_and_another_one_is_refused(whole, cut):
    with pytest.raises(ConfigError, match=r"--width 2 there, 3 here; --lr 0\.1 1\.0 1e\+30 there, 0\.2 here"):
        run_sweep(configured(cut, lr=(0.2,), width=3))
    logged = []
    run_sweep(configured(cut, keep=1), callbacks=RunCallbacks(log=logged.append))
    assert logged == [f"{cut} holds this run, unfinished: going on with it"]
    assert_same_run(cut, whole)
    assert checkpoint_steps(cut) == [STEPS]
    told, before = [], (cut / "config.json").read_bytes()
    again = run_sweep(configured(cut), callbacks=RunCallbacks(log=told.append))
    assert told == [FINISHED.format(cut)]
    assert again.analysis.identical(run_sweep(configured(whole)).analysis)
    assert (cut / "config.json").read_bytes() == before
    assert resume_run(cut, callbacks=RunCallbacks(log=told.append)).analysis.identical(again.analysis)
    assert told == [told[0]] * 2
    assert (cut / "config.json").read_bytes() == before
    with pytest.raises(ConfigError, match="--steps: 39 is not accepted; expected at least the 40 steps"):
        resume_run(cut, steps=39)
    with pytest.raises(ConfigError, match=r"^--epochs 1: \d+ steps is not accepted; expected at least the 40 steps"):
        resume_run(cut, epochs=1)


def test_what_follows_from_the_steps_is_not_listed_as_another_difference(cut):
    config = configured(cut, steps=STEPS + 20, eval_every=None)
    assert difference(config, read_config(cut)) == f"--steps {STEPS} there, {STEPS + 20} here"
    config = dataclasses.replace(config, schedule_end=(5,))
    assert difference(config, read_config(cut)).endswith(f"; --schedule-end {STEPS}.0 there, 5.0 here")


def test_a_corrupted_newest_checkpoint_falls_back_to_the_one_before(sweep, cut):
    for file in (cut / "checkpoints/30").rglob("d/*"):
        flip(file)
    told = []
    start = find_resume_point(sweep, SessionPlan(cut, STEPS, 10), False, told.append)
    assert start.step == 20
    assert told[0].startswith("checkpoint 30 cannot be gone on from (")
    assert start.states.keys() == sweep.placement.fetch(sweep.states).keys()


def test_corrupted_telemetry_is_named_and_computed_again_on_request(whole, sweep, cut):
    file = cut / "telemetry.zarr/weight_norm/c/0/0"
    flip(file)
    with pytest.raises(CorruptedRunError, match=rf"^{file}: .*checksum.*--truncate .* from step 0 on"):
        find_resume_point(sweep, SessionPlan(cut, STEPS, 10), False, print)
    resume_run(cut, truncate=True)
    assert_same_run(cut, whole)


def test_missing_telemetry_is_an_error(sweep, cut):
    (cut / "telemetry.zarr/loss/c/0/0").unlink()
    with pytest.raises(CorruptedRunError, match="loss/c/0/0"):
        find_resume_point(sweep, SessionPlan(cut, STEPS, 10), False, print)


def test_what_config_json_determines_is_made_again_to_the_same_bytes(sweep, cut):
    plan, spared = SessionPlan(cut, STEPS, 10), {}
    for name in ("step/zarr.json", "seed/c/0", "zarr.json", "eval_step/c/0", "train_loss/zarr.json"):
        file = cut / "telemetry.zarr" / name
        spared[name] = json.loads(file.read_bytes()) if name.endswith(".json") else file.read_bytes()
        file.unlink()
        start = find_resume_point(sweep, plan, False, print)
        assert start.step == 30
        read = {n: json.loads(c) if n.endswith(".json") else c for n, c in start.rebuilt.files.items()}
        assert {n: read[n] for n in spared} == spared  # all that are gone by now
    assert not (cut / "telemetry.zarr/zarr.json").exists()
    start.rebuilt.write(cut)
    assert not describe_run(cut, verify=True).errors
    assert find_resume_point(sweep, plan, False, print).rebuilt.files == {}


def test_a_changed_config_is_an_error(cut):
    file = cut / "config.json"
    file.write_text(file.read_text().replace('"momentum": [\n      0.9', '"momentum": [\n      0.8'))
    with pytest.raises(CorruptedRunError, match="checksum"):
        resume_run(cut)


def test_a_run_goes_on_with_another_number_of_devices(whole, cut, monkeypatch):
    """Three members on two devices are padded; in a checkpoint they are not. The rest agrees to rounding."""
    (device, *others), run = jax.devices(), read_config(cut)
    if not others:
        pytest.skip("one device")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    resume_run(cut)
    hardware = [session["hardware"]["devices"] for session in (run, *read_config(cut)["sessions"])]
    assert hardware == [2, 1]
    found, expected = open_run(cut, flat=True), open_run(whole, flat=True)
    np.testing.assert_array_equal(found.weight_norm[:, :31], expected.weight_norm[:, :31])
    for name in ("loss", "weight_norm", "angular_step", "test_loss", "diverged_at"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


def test_a_record_gives_back_the_configuration(tmp_path):
    config = configured(tmp_path, keep_every=20, layout="map", init_scale=3, epochs=2, steps=None)
    record = {"config": to_manifest(config, "map")}
    again = from_manifest(record, tmp_path)
    assert to_manifest(again, "map") == record["config"]
    assert difference(again, record) == ""
    assert difference(configured(tmp_path, keep_every=20, layout="auto", steps=22, init_scale=3), record) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"lr": "0.1"},
        {"lr": ["a"]},
        {"steps": 1.5},
        {"width": None},
        {"augment": 1},
        {"storage": None},
        {"deterministic": 1},
    ],
)
def test_a_strange_configuration_is_refused(cut, change):
    record = read_config(cut)
    write_config(cut, {**record, "config": {**record["config"], **change}})
    with pytest.raises(CorruptedRunError, match=next(iter(change))):
        resume_run(cut)


def test_no_path_in_a_record_is_followed(cut, monkeypatch):
    record = read_config(cut)
    strange = {"dataset": "/etc/secret.npz", "data_dir": "/etc", "download": True, "out": "/etc"}
    write_config(cut, {**record, "config": {**record["config"], **strange}})
    with pytest.raises(
        ConfigError, match=r"--dataset: not given, and this run's data set is /etc/secret\.npz; give the npz file"
    ):
        resume_run(cut)
    config = from_manifest(read_config(cut), cut, dataset="digits")
    assert (config.out, config.data_dir, config.download, config.dataset) == (cut, None, False, "digits")


def test_other_images_than_before_are_refused(cut):
    record = read_config(cut)
    write_config(cut, {**record, "data": {**record["data"], "crc32": 1}})
    with pytest.raises(ConfigError, match=r"crc32 .* is not accepted; expected 1, as before"):
        resume_run(cut)


def test_storage_and_deterministic_operations_are_settings_of_the_run(tmp_path):
    changes = {"lr": (0.1,), "seed": (0,), "storage": "bf16", "deterministic": True}
    whole = run_sweep(configured(tmp_path / "whole", **changes)).path
    cut = interrupted(tmp_path / "cut", **changes)
    with pytest.raises(ConfigError, match="--storage bf16 there, float32 here; --deterministic True there, False here"):
        run_sweep(configured(cut, **{**changes, "storage": "float32", "deterministic": False}))
    resume_run(cut)
    assert_same_run(cut, whole)
    recorded = read_config(cut)["config"]
    assert (recorded["storage"], recorded["deterministic"]) == ("bf16", True)


def test_an_unknown_storage_in_a_record_is_one_line(cut):
    record = read_config(cut)
    write_config(cut, {**record, "config": {**record["config"], "storage": "float16"}})
    with pytest.raises(ConfigError, match=r"^--storage: float16 is not accepted; expected one of float32, bf16$"):
        resume_run(cut)


def test_two_processes_are_kept_off_one_directory(cut):
    with (cut / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for start in (lambda: resume_run(cut), lambda: run_sweep(configured(cut))):
            with pytest.raises(ConfigError, match="is writing to it"):
                start()


def test_a_disk_that_fails_is_one_line_and_loses_nothing(whole, tmp_path, monkeypatch):
    """The third evaluation cannot be written; afterwards the run goes on from its last checkpoint."""
    from periodic_jax.storage.writer import TelemetryWriter

    write = TelemetryWriter.write_evaluation

    def fails(self, step, evaluation):
        if step == 20:
            raise OSError(28, "No space left on device")
        write(self, step, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(TelemetryWriter, "write_evaluation", fails)
        with pytest.raises(RunInterrupted, match=r"No space left on device; all up to step 10 is kept") as stopped:
            run_sweep(configured(tmp_path / "run"))
    assert stopped.value.status == 1
    resume_run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_no_room_is_said(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match=r"--out: .* MB free, which the run may take \(there are 1 kB\)"):
        check_room(estimate_resources(sweep, sweep.grid, SessionPlan(tmp_path, 10**5, 10)), tmp_path)
    monkeypatch.setattr(Sweep, "compile", lambda self: pytest.fail("compiled"))
    with pytest.raises(ConfigError, match="free, which the run may take"):
        run_sweep(configured(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="free, which the run may take"):
        run_sweep(configured(tmp_path / "mine"))
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_network_beyond_the_memory_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"memory: the states of 6 networks take [0-9.]+ TB, and this machine has"):
        run_sweep(configured(tmp_path / "run", width=60000, depth=3))
    assert not (tmp_path / "run" / "config.json").exists()


def test_killed_and_terminated_runs_lose_nothing(whole, tmp_path, capfd, monkeypatch):
    """SIGKILL right after a checkpoint, SIGTERM in the next session, and a third one to the end."""
    out = tmp_path / "run"
    process = started(out, keep=4)  # all, wherever the kill comes
    wait_for(process, lambda: checkpoint_steps(out))
    process.kill()
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == -signal.SIGKILL
    first, *later = checkpoint_steps(out)
    assert first == 10
    for step in later:
        shutil.rmtree(out / f"checkpoints/{step}")

    save = Checkpoints.save

    def saves(self, step, states, record=None):
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 60
        while not entered[-1]():  # a thread hears it
            assert time.monotonic() < until
            time.sleep(0.01)
        save(self, step, states, record)

    entered, enter = [], callbacks.Stop.__enter__
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", saves)
        patch.setattr(callbacks.Stop, "__enter__", lambda self: entered.append(self) or enter(self))
        patch.setattr(callbacks.os, "_exit", lambda status: None)  # it comes again with the last checkpoint
        with pytest.raises(SystemExit) as stop:
            main(["resume", str(out)])
    assert stop.value.code == 143
    said = capfd.readouterr().err
    assert "finishing the current chunk; again to stop at once" in said
    last = said.splitlines()[-1]
    assert last == f"periodic-jax: stopped after 30 of {STEPS} steps; to go on: periodic-jax resume {out}"
    resume_run(out)
    assert_same_run(out, whole)
