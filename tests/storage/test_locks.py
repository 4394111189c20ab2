import os
import signal
import subprocess
import sys

import pytest

from periodic_jax import ConfigError
from periodic_jax.storage.locks import FREE, LOCK_FILE, is_locked, locked

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
        with pytest.raises(ConfigError, match=FREE), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
    with locked(tmp_path):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert is_locked(tmp_path)
        with pytest.raises(ConfigError, match=FREE), locked(tmp_path):
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
