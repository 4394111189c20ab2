import os
import signal
import subprocess
import sys
import time

import pytest

from periodic_jax.runs.callbacks import Stop


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
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


def test_a_second_signal_ends_the_process_though_its_main_thread_is_busy():
    """In one call of compiled code, which never comes back to Python's handlers."""
    program = (
        "import hashlib\nfrom periodic_jax.runs.callbacks import Stop\nwith Stop():\n print('ready', flush=True)\n"
        " hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    while "again to stop at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)  # of the many minutes that its call takes
    assert process.returncode == 143
