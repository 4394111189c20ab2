"""A run whose files fail at the n-th operation, killed or with an error, goes on to the undisturbed bits.

python -m pytest -n 0 -m slow tests/runs/test_faults.py
python -m pytest -n 0 -m stress tests/runs/test_faults.py      every operation; hours
FAULTS=3/40 python -m pytest -n 0 -m stress tests/runs/test_faults.py      every 40th, from the third on
"""

import errno
import os
from collections import Counter

import pytest
from helpers.faults import FaultyFiles, Killed, one_sweep, tree, wait_for_zarr
from helpers.survival import configured

from periodic_jax import RunCallbacks, open_run, run_sweep
from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.core.errors import PeriodicJaxError
from periodic_jax.inspection.info import describe_run
from periodic_jax.runs.build import recorded_states
from periodic_jax.runs.run import resume_run
from periodic_jax.storage.run_directory import checkpoint_steps, read_config

# What a kill leaves of the libraries' own tasks.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
QUIET = RunCallbacks(log=lambda line: None)
STEPS = 40
KINDS = {"kill": None, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT}


def settings(out):
    """Checkpoints after every chunk, evaluations, and saved minima."""
    return configured(out, lr=(0.1,), seed=(0,), eval_every=20, keep_period_minima=20)


def results(path):
    """All telemetry, the last checkpoint's states, and the saved minima."""
    dataset = open_run(path, flat=True).load().drop_attrs()
    assert checkpoint_steps(path)[-1] == STEPS
    states = load_checkpoint(path, STEPS, recorded_states(path, read_config(path)))
    arrays = {name: array.tobytes() for name, array in states.items()}
    return dataset, arrays, {name: content for name, content in tree(path).items() if name.startswith("minima")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The results of the undisturbed run, and how many operations it takes."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with one_sweep():
        run_sweep(settings(out.with_name("warm")), callbacks=QUIET)
        with FaultyFiles(out) as faulty:
            run_sweep(settings(out), callbacks=QUIET)
        found = results(out)
        assert found[2]
        yield *found, faulty.count


def fails_and_goes_on(out, undisturbed, at, kind):
    """What became of one faulty run, which is then gone on with."""
    outcome = "no notice"
    with FaultyFiles(out, at, KINDS[kind], once=kind == "EIO"):
        try:
            run_sweep(settings(out), callbacks=QUIET)
        except Killed:
            outcome = "killed"
        except PeriodicJaxError as error:
            outcome = "one line" if str(error).isprintable() else str(error)
        wait_for_zarr()
    if (out / "config.json").exists() and at % 2 and "summary" not in read_config(out):
        resume_run(out, callbacks=QUIET)
    else:
        run_sweep(settings(out), callbacks=QUIET)
    dataset, states, minima = results(out)
    assert dataset.identical(undisturbed[0]), (at, kind)
    assert (states, minima) == undisturbed[1:3], (at, kind)
    assert not describe_run(out, verify=True).errors, (at, kind)
    return outcome


def tried(undisturbed, folder, numbers):
    """The outcomes of faults at some operations."""
    outcomes = Counter()
    for at in numbers:
        for kind in KINDS:
            outcomes[kind, fails_and_goes_on(folder / f"{kind}-{at}" / "run", undisturbed, at, kind)] += 1
            for file in sorted((folder / f"{kind}-{at}").rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
    return outcomes


@pytest.mark.slow
def test_some_operations_that_fail(undisturbed, tmp_path):
    count = undisturbed[3]
    outcomes = tried(undisturbed, tmp_path, range(7, count, count // 3))
    assert outcomes["kill", "killed"] >= 3
    assert sum(times for (_, outcome), times in outcomes.items() if outcome == "one line") >= 3


@pytest.mark.stress
def test_every_operation_that_fails(undisturbed, tmp_path):
    first, every = map(int, os.environ.get("FAULTS", "0/1").split("/"))
    for at in range(first, undisturbed[3], every):
        print(at, dict(tried(undisturbed, tmp_path, [at])), flush=True)


def test_a_kill_while_the_store_is_made(undisturbed, tmp_path):
    """The window between config.json and the first step, by either command."""
    from periodic_jax.storage import writer

    for start in (resume_run, lambda out, callbacks: run_sweep(settings(out), callbacks=callbacks)):
        out = tmp_path / f"run-{start.__name__}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writer, "write_json", lambda *_: (_ for _ in ()).throw(Killed))
            with pytest.raises(Killed):
                run_sweep(settings(out), callbacks=QUIET)
        (out / "telemetry.zarr").mkdir()  # as earlier versions left it
        (out / "telemetry.zarr/zarr.json").write_text("{}")
        start(out, callbacks=QUIET)
        assert results(out)[0].identical(undisturbed[0])
