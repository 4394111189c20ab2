import os
import signal
import subprocess
import sys
import time

import pytest

from periodic_jax.runs.callbacks import RunCallbacks, Stop

SIGNALS = [
    (signal.SIGTERM, 143),
    (signal.SIGINT, 130),
    (signal.SIGHUP, 129),
    (signal.SIGUSR1, 138),
    (signal.SIGUSR2, 140),
]


def test_a_process_without_stderr_shows_no_progress(monkeypatch):
    """As under pythonw, or where a service closed it."""
    monkeypatch.setattr(sys, "stderr", None)
    with RunCallbacks().showing_progress() as shown:
        shown.on_start(2, 0, 10)


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_sets_a_mark_and_handlers_are_put_back(number, status):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert stop() == 0
        os.kill(os.getpid(), number)
        for _ in range(1000):
            if stop():
                break
            time.sleep(0.01)
        assert stop() == status
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


def begun(program):
    """A process that runs a program, which has printed that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_second_signal_ends_the_process_though_its_main_thread_is_busy():
    """In one call of compiled code, which never comes back to Python's handlers."""
    program = (
        "import hashlib\nfrom periodic_jax.runs.callbacks import Stop\nwith Stop():\n print('ready', flush=True)\n"
        " hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    process = begun(program)
    process.send_signal(signal.SIGTERM)
    while "again to stop at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)  # of the many minutes that its call takes
    assert process.returncode == 143


@pytest.mark.parametrize(("number", "status"), SIGNALS)
def test_a_signal_ends_the_process_at_once_while_there_is_nothing_to_save(number, status):
    program = (
        "import hashlib\nfrom periodic_jax.runs.callbacks import Stop\nwith Stop(is_idle=True) as stop:\n stop()\n"
        " print('ready', flush=True)\n hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    process = begun(program)
    process.send_signal(number)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == status
    assert said.strip() == "stopped before the first step: there is nothing to save; the same command begins again"


@pytest.mark.parametrize("begins", ["second look", "first chunk"])
def test_once_there_is_something_to_save_a_signal_only_sets_a_mark(monkeypatch, begins):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("ended at once"))
    with Stop(is_idle=True) as stop:
        assert stop() == 0
        stop() if begins == "second look" else stop.begin()
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(stop)
        assert stop() == 143


def wait_until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("nothing was heard")


def test_warnings_before_the_end_do_not_count_as_a_second_signal(monkeypatch, capfd):
    """Slurm sends USR1 a minute before SIGTERM, and a terminal that is closed HUP, at times twice."""
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with Stop(is_idle=True) as stop:
        assert (stop(), stop()) == (0, 0)
        for number in (signal.SIGUSR1, signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), number)
            wait_until(stop)
        assert stop() == 138
        assert ended == []
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: ended)
    assert ended == [143]
    assert capfd.readouterr().err.count("finishing the current chunk") == 1


def test_a_signal_that_was_ignored_stays_so():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(stop)
            assert stop() == 138
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
