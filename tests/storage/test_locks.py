import errno
import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from periodic_jax import ConfigError, RunInterrupted
from periodic_jax.storage import locks
from periodic_jax.storage.locks import LEASE_FILE, LOCK_FILE, is_locked, locked

IN_USE = r": process \d+ on .* is writing to it; wait until it ends"
HOLD = """
import pathlib, sys, time
from periodic_jax.storage.locks import locked
with locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_refused_at_once_and_freed_at_the_end(tmp_path):
    assert not is_locked(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match=IN_USE), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match=IN_USE), locked(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)


def test_no_lock_goes_through_a_link(tmp_path):
    target = tmp_path / "precious"
    target.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK_FILE).symlink_to(target)
    with pytest.raises(ConfigError, match="a folder that can be written"), locked(run):
        pass
    assert not is_locked(run)
    (run / LOCK_FILE).unlink()
    (run / LOCK_FILE).symlink_to(tmp_path / "new")
    with pytest.raises(ConfigError, match="a folder that can be written"), locked(run):
        pass
    assert target.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["precious", "run"]


def without_locks(monkeypatch, number):
    """A file system whose flock fails."""

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", fail)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINTR], ids=errno.errorcode.get)
def test_without_locks_the_lease_keeps_others_off_and_the_reason_is_said(tmp_path, monkeypatch, caplog, number):
    without_locks(monkeypatch, number)
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    for _ in range(2):  # a lock file is left from the first time
        with locked(tmp_path):
            assert is_locked(tmp_path)
            named = f"process {os.getpid()} on .*remove .*{LEASE_FILE}"
            with pytest.raises(ConfigError, match=named), locked(tmp_path):
                pass
        assert not is_locked(tmp_path)
        assert f"no locks on this file system ({os.strerror(number)})" in caplog.text


def test_another_error_of_the_lock_is_told_as_it_is(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(ConfigError, match=os.strerror(errno.EIO)), locked(tmp_path):
        pass
    assert not is_locked(tmp_path)


def held_elsewhere(path, monkeypatch):
    """The lease of a process of another machine."""
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "another-machine")
        lease = filelock.SoftFileLease(path / LEASE_FILE, lease_duration=locks.LEASE, heartbeat_interval=0.05)
        lease.acquire()
    return lease


def test_a_lease_that_another_machine_renews_is_refused_and_can_be_overruled(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "RENEWED", 0.05)
    lease = held_elsewhere(tmp_path, monkeypatch)
    assert is_locked(tmp_path)  # though the lock is free
    with (
        pytest.raises(ConfigError, match=r"process \d+ on another-machine.* is writing to it; .*if it is gone, remove"),
        locked(tmp_path),
    ):
        pass
    assert "held by process" in caplog.text
    (tmp_path / LEASE_FILE).unlink()
    with locked(tmp_path):
        assert is_locked(tmp_path)
    lease.release()


def test_a_lease_that_is_no_longer_renewed_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    lease = held_elsewhere(tmp_path, monkeypatch)
    lease._stop_heartbeat()
    with locked(tmp_path) as check:
        check()
    assert not is_locked(tmp_path)
    lease.release(force=True)


def test_a_stale_lease_is_no_running_process(tmp_path, monkeypatch):
    lease = held_elsewhere(tmp_path, monkeypatch)
    lease._stop_heartbeat()
    os.utime(tmp_path / LEASE_FILE, (1, 1))
    assert not is_locked(tmp_path)
    lease.release()


def checks_until_it_raises(check):
    for _ in range(10_000):
        check()
        time.sleep(0.01)


def test_a_lease_that_is_lost_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with locked(tmp_path) as check:
        (tmp_path / LEASE_FILE).unlink()
        with pytest.raises(RunInterrupted, match="lease was lost"):
            checks_until_it_raises(check)
