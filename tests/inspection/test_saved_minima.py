"""Minima saved while a run trains: killed, resumed, branched, extended, corrupted and found again."""

import shutil

import numpy as np
import pytest
from helpers.minima_runs import ENDS, EVERY, STEPS, configured
from helpers.survival import flip, stop_after

import periodic_jax as pj
from periodic_jax import ConfigError
from periodic_jax.cli.main import main
from periodic_jax.core.errors import CorruptedRunError, RunInterrupted
from periodic_jax.inspection import minima
from periodic_jax.inspection.info import describe_run
from periodic_jax.inspection.load import load_run, load_states
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.minima_files import saved_minima
from periodic_jax.storage.reader import open_run

pytestmark = pytest.mark.usefixtures("rises")


def contents(path):
    saved = {}
    for one in saved_minima(path):
        with np.load(one.file, allow_pickle=False) as arrays:
            saved[one[:3]] = {name: arrays[name] for name in arrays.files}
    return saved


def assert_same_minima(path, expected):
    a, b = contents(path), contents(expected)
    assert a.keys() == b.keys()
    for key in a:
        for name, array in a[key].items():
            np.testing.assert_array_equal(array, b[key][name], strict=True)


def test_saved_minima_are_the_weights_of_their_steps(whole):
    saved, run = contents(whole), load_run(whole)
    assert {one[0] for one in saved} == {0, 1}  # the others diverge at once
    for config in (0, 1):
        assert [one[2] for one in sorted(saved, key=lambda one: one[1]) if one[0] == config] == [*ENDS, None]
    loss = open_run(whole, flat=True).loss.values
    for (config, step, ended), arrays in saved.items():
        states = load_states(run, step, [config])
        np.testing.assert_array_equal(arrays["params.conv0.kernel"], states.params["conv0"]["kernel"][0], strict=True)
        np.testing.assert_array_equal(arrays["batch_stats.conv1.mean"], states.batch_stats["conv1"]["mean"][0])
        window = loss[config, step - EVERY : step]
        np.testing.assert_allclose(arrays["score"], max(np.median(window), window[-10:].mean()), rtol=1e-6)
        assert ended is None or ended > step


def test_a_stopped_run_goes_on_to_the_same_minima_and_training_does_not_notice(whole, tmp_path):
    with pytest.raises(RunInterrupted):
        pj.run_sweep(configured(tmp_path / "run"), callbacks=stop_after(3))
    assert not any(one.ended is None for one in saved_minima(tmp_path / "run"))
    # Killed later than its checkpoint: minima of steps that are computed again, and half a file.
    (tmp_path / "run/minima/0").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run/minima/0/33-55.npz").write_bytes(b"")
    (tmp_path / "run/minima/0/33-55.npz.partial").write_bytes(b"")
    resume_run(tmp_path / "run", callbacks=pj.RunCallbacks(log=pytest.fail))
    assert_same_minima(tmp_path / "run", whole)
    assert not list((tmp_path / "run/minima").rglob("*.partial"))
    assert describe_run(tmp_path / "run", verify=True).errors == []
    plain = pj.run_sweep(configured(tmp_path / "plain", keep_period_minima=None)).path
    a, b = (open_run(path, flat=True).load().drop_attrs() for path in (whole, plain))
    assert a.identical(b)
    assert not (plain / "minima").exists()


def test_a_branch_begins_a_period_of_its_own_and_an_extended_run_forgets_unfinished_ones(whole, tmp_path):
    out = pj.branch_run(whole, tmp_path / "branch", step=20).path
    assert all(one.step > 20 for one in saved_minima(out))
    for config in (0, 1):
        assert [one.ended for one in saved_minima(out) if one.config == config] == [40, 60, None]
    shutil.copytree(whole, tmp_path / "run")
    before = {one[:3] for one in saved_minima(whole)}
    resume_run(tmp_path / "run", steps=STEPS + EVERY)
    after = {one[:3] for one in saved_minima(tmp_path / "run")}
    assert {one for one in before if one[2] is not None} <= after
    assert sum(one[2] is None for one in after) == 2


def ended_of(path):
    return [one for one in saved_minima(path) if one.ended is not None]


def corrupt(path):
    flip(ended_of(path)[0].file)


def lose(path):
    ended_of(path)[0].file.unlink()


def copy_another(path):
    one = ended_of(path)[-1]
    shutil.copy(one.file, ended_of(path)[0].file)


def add_another(path):
    one = ended_of(path)[0]
    shutil.copy(one.file, one.file.with_name(f"{one.step + 1}-{one.ended}.npz"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [(corrupt, ".npz: "), (lose, "minima are there"), (copy_another, "it is that of configuration"),
     (add_another, "minima are there")],
)  # fmt: skip
def test_minima_that_are_not_those_saved_are_named_refused_and_found_again(whole, tmp_path, change, reason):
    cut = shutil.copytree(whole, tmp_path / "run")
    change(cut)
    report = describe_run(cut, verify=True)
    assert any(reason in error for error in report.errors)
    assert f"to mend it: periodic-jax resume {cut} --truncate" in report.lines
    with pytest.raises(CorruptedRunError, match=reason):
        minima.compare(cut)
    logged: list[str] = []
    resume_run(cut, truncate=True, callbacks=pj.RunCallbacks(log=logged.append))
    assert any(line.startswith("going on from step") for line in logged)
    assert_same_minima(cut, whole)
    assert describe_run(cut, verify=True).errors == []
    a, b = (open_run(path, flat=True).load().drop_attrs() for path in (whole, cut))
    assert a.identical(b)


def test_a_run_that_is_whole_is_left_so_by_truncation(whole, tmp_path):
    assert any("minima of periods" in line for line in describe_run(whole).lines)
    cut = shutil.copytree(whole, tmp_path / "run")
    files = {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()}
    with pytest.raises(
        ConfigError, match=f"^--truncate: {cut} is finished, and nothing in it is corrupted; leave it out"
    ):
        resume_run(cut, truncate=True)
    assert {file: file.read_bytes() for file in cut.rglob("*") if file.is_file()} == files


def test_a_run_that_saved_none_yet_is_refused_with_what_it_saves(tmp_path):
    path = pj.run_sweep(configured(tmp_path / "run", steps=EVERY - 1, seed=(0,), noninvariant_lr=(0.0,))).path
    with pytest.raises(ConfigError, match=f"each is the lowest of every {EVERY} steps"):
        minima.compare(path)


@pytest.mark.parametrize("words", [["9"], ["10001"], ["x"], ["10", "20"]])
def test_unusable_windows_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "--steps", "5", "--out", "unused", "--keep-period-minima", *words])
    assert stop.value.code == 2
    assert "--keep-period-minima" in capsys.readouterr().err
