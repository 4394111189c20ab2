"""Runs that are stopped, killed or damaged, and go on to the bits that they would have had."""

import fcntl
import shutil
import signal

import jax
import numpy as np
import pytest
from survival import STEPS, assert_same_run, configured, flip, started, wait_for

from periodic_jax import ConfigError, SweepGrid, open_run, run_sweep
from periodic_jax.config import difference, from_record, to_record
from periodic_jax.errors import RunStopped
from periodic_jax.results import checkpoint_steps, read_config, write_config
from periodic_jax.run import resume_run
from periodic_jax.sweep import Sweep


def stop_after(chunks):
    """Asks for an end before the chunk of that number."""
    asked = iter(range(chunks))
    return lambda: 0 if next(asked, None) is not None else 143


def interrupted(out, chunks=3, **changes):
    """A run stopped after some chunks: 3 are 30 steps."""
    with pytest.raises(RunStopped) as stopped:
        run_sweep(configured(out, **changes), stop=stop_after(chunks))
    assert stopped.value.status == 143
    assert f"periodic-jax resume {out}" in str(stopped.value)
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The undisturbed run."""
    return run_sweep(configured(tmp_path_factory.mktemp("whole") / "run"))


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A run stopped after 30 of 40 steps; copied before use."""
    return interrupted(tmp_path_factory.mktemp("halfway") / "run")


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
    assert (cut / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()


def test_the_same_sweep_again_goes_on_and_another_one_is_refused(whole, cut):
    with pytest.raises(ConfigError, match=r"--width 2 there, 3 here; --lr 0\.1 1\.0 1e\+30 there, 0\.2 here"):
        run_sweep(configured(cut, lr=(0.2,), width=3))
    run_sweep(configured(cut, keep=1))
    assert_same_run(cut, whole)
    assert checkpoint_steps(cut) == [STEPS]
    with pytest.raises(ConfigError, match="this run is finished"):
        run_sweep(configured(cut))
    with pytest.raises(ConfigError, match=r"--steps above 40 to extend it"):
        resume_run(cut)


def test_a_finished_run_is_extended(whole, tmp_path):
    """As if it had been that long from the start, but for the evaluation at the first end."""
    path = run_sweep(configured(tmp_path / "run", steps=15))
    with pytest.raises(ConfigError, match="at least the 15 steps"):
        resume_run(path, steps=14)
    resume_run(path, steps=STEPS)
    extended, expected = open_run(path), open_run(whole)
    assert extended.eval_step.values.tolist() == [0, 10, 15, 20, 30, 40]
    assert extended.step.values.tolist() == list(range(STEPS))
    for name in ("loss", "weight_norm", "angular_step"):
        np.testing.assert_array_equal(extended[name], expected[name])
    np.testing.assert_array_equal(extended.test_loss.sel(eval_step=expected.eval_step), expected.test_loss)
    assert np.isfinite(extended.test_loss.sel(eval_step=15, lr=0.1)).all()


def damage_checkpoint(path, step):
    for file in (path / "checkpoints" / str(step)).rglob("d/*"):
        flip(file)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(whole, cut):
    damage_checkpoint(cut, 30)
    told = []
    resume_run(cut, say=told.append)
    assert told[0].startswith("checkpoint 30 is damaged")
    assert_same_run(cut, whole)


def test_damaged_telemetry_is_named_and_computed_again_on_request(whole, cut):
    file = cut / "telemetry.zarr/weight_norm/c/0/0"
    flip(file)
    with pytest.raises(ConfigError, match=rf"telemetry: {file} .*checksum.*--truncate .* from step 0 on"):
        resume_run(cut)
    resume_run(cut, truncate=True)
    assert_same_run(cut, whole)


@pytest.mark.parametrize("name", ["loss/c/0/0", "step/zarr.json", "seed/c/0", "zarr.json"])
def test_missing_telemetry_is_an_error(cut, name):
    (cut / "telemetry.zarr" / name).unlink()
    with pytest.raises(ConfigError, match=name):
        resume_run(cut)


def test_a_changed_config_is_an_error(cut):
    file = cut / "config.json"
    file.write_text(file.read_text().replace('"momentum": [\n      0.9', '"momentum": [\n      0.8'))
    with pytest.raises(ConfigError, match="checksum"):
        resume_run(cut)


def test_states_do_not_depend_on_the_number_of_devices(tiny, model):
    """Three members on two devices are padded; in a checkpoint they are not."""
    grid = SweepGrid.product(lr=[0.1, 0.2, 0.3], momentum=0.9, seed=[5, 2])
    one, two = (
        Sweep(model, tiny, grid, batch_size=12, layout="map", devices=jax.devices()[:n], capacity=8) for n in (1, 2)
    )
    assert len(two.devices) == 2
    list(two.chunks(4, eval_every=None))
    states = two.export(two.states)
    assert {array.shape[0] for array in states.values()} == {6}
    one.restore(states, 4)
    for name, array in one.export(one.states).items():
        np.testing.assert_array_equal(array, states[name], strict=True, err_msg=name)
    (a,), (b,) = list(one.chunks(3, eval_every=None)), list(two.chunks(3, eval_every=None))
    assert (a.first_step, a.steps) == (4, 3)
    for name in a.telemetry:  # in a loop over members, each is computed alike on any device
        np.testing.assert_array_equal(a.telemetry[name], b.telemetry[name], err_msg=name)


def test_a_record_gives_back_the_configuration(tmp_path):
    config = configured(tmp_path, keep_every=20, layout="map", init_scale=3, epochs=2, steps=None)
    record = {"config": to_record(config, "map")}
    again = from_record(record, tmp_path)
    assert to_record(again, "map") == record["config"]
    assert difference(again, record) == ""
    assert difference(configured(tmp_path, keep_every=20, layout="auto", steps=22, init_scale=3), record) == ""


@pytest.mark.parametrize("change", [{"lr": "0.1"}, {"lr": ["a"]}, {"steps": 1.5}, {"width": None}, {"augment": 1}])
def test_a_strange_configuration_is_refused(cut, change):
    record = read_config(cut)
    write_config(cut, {**record, "config": {**record["config"], **change}})
    with pytest.raises(ConfigError, match=next(iter(change))):
        resume_run(cut)


def test_no_path_in_a_record_is_followed(cut, monkeypatch):
    record = read_config(cut)
    strange = {"dataset": "/etc/secret.npz", "data_dir": "/etc", "download": True, "out": "/etc"}
    write_config(cut, {**record, "config": {**record["config"], **strange}})
    with pytest.raises(ConfigError, match=r"--dataset: none given for /etc/secret\.npz"):
        resume_run(cut)
    config = from_record(read_config(cut), cut, dataset="digits")
    assert (config.out, config.data_dir, config.download, config.dataset) == (cut, None, False, "digits")


def test_other_images_than_before_are_refused(cut):
    record = read_config(cut)
    write_config(cut, {**record, "data": {**record["data"], "crc32": 1}})
    with pytest.raises(ConfigError, match=r"crc32 .* is not accepted; expected 1, as before"):
        resume_run(cut)


def test_two_processes_are_kept_off_one_directory(cut):
    with (cut / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for start in (lambda: resume_run(cut), lambda: run_sweep(configured(cut))):
            with pytest.raises(ConfigError, match="no other process"):
                start()


def test_a_disk_that_fails_is_one_line_and_loses_nothing(whole, tmp_path, monkeypatch):
    """The third evaluation cannot be written; afterwards the run goes on from its last checkpoint."""
    from periodic_jax.telemetry import TelemetryWriter

    write = TelemetryWriter.write_evaluation

    def fails(self, step, evaluation):
        if step == 20:
            raise OSError(28, "No space left on device")
        write(self, step, evaluation)

    with monkeypatch.context() as patch:
        patch.setattr(TelemetryWriter, "write_evaluation", fails)
        with pytest.raises(RunStopped, match=r"No space left on device; all up to step 10 is kept") as stopped:
            run_sweep(configured(tmp_path / "run"))
    assert stopped.value.status == 1
    resume_run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_no_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(ConfigError, match=r"--out: .* MB free, which the run may take \(there are 1 kB\)"):
        run_sweep(configured(tmp_path / "run", steps=10**5))
    assert not (tmp_path / "run" / "config.json").exists()


def test_killed_and_terminated_processes_lose_nothing(tmp_path):
    """SIGKILL right after a checkpoint, SIGTERM in the next process, and a third one to the end."""
    out, long = tmp_path / "run", 120
    process = started(out, steps=long)
    wait_for(process, lambda: checkpoint_steps(out))
    process.kill()
    assert "Traceback" not in process.communicate()[1]
    assert process.returncode == -signal.SIGKILL
    first = max(checkpoint_steps(out))
    assert first < long

    process = started(out, steps=long)
    wait_for(process, lambda: max(checkpoint_steps(out)) > first)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 143, said
    assert said.splitlines()[-1].startswith("periodic-jax: stopped after ")
    assert f"of {long} steps; to go on: periodic-jax resume {out}" in said
    resume_run(out)
    assert_same_run(out, run_sweep(configured(tmp_path / "whole", steps=long)), long)
