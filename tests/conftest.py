"""Two host devices for every test, so that sharding is exercised, and strict dtypes.

The flags must be set before JAX starts, hence at import.
"""

import gc
import os
import signal

from periodic_jax.training import xla

# Tracing makes many objects that stay: looking through them again and again takes an eighth of the time.
gc.set_threshold(100_000, 20, 100)

# A script that starts the tests in the background, or nohup, has them ignore what the tests of signals send.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

xla.add_xla_flag("--xla_force_host_platform_device_count=2")
xla.add_xla_flag("--xla_cpu_multi_thread_eigen=false")
# Nearly all time goes into compiling programs that run for milliseconds; the tests marked slow run for seconds, and are
# run with a flag of their own.
xla.add_xla_flag("--xla_backend_optimization_level=0")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from helpers import synthetic  # noqa: E402

from periodic_jax import analysis, models  # noqa: E402
from periodic_jax.data import Dataset  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _compile_once(tmp_path_factory):
    """Programs that several tests share are compiled once in a session, also by several workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    compiled = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # single operations too


@pytest.fixture
def float64():
    """64-bit numbers for one test."""
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    """Random images of three classes, 8x8 with two channels: 40 for training and 11 for testing."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 3, 51).astype(np.int32)
    images = (rng.integers(0, 200, (51, 8, 8, 2)) + 25 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset("tiny", images[:40], labels[:40], images[40:], labels[40:], 3, (0.5, 0.5), (0.25, 0.2))


@pytest.fixture(scope="session")
def model():
    """A small ConvNet for `tiny`: two convolutions, quick to compile."""
    return models.build("ConvNetSI", width=2, depth=1, num_classes=3)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder without any data set in it."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    return folder


@pytest.fixture(scope="session")
def four_run(tmp_path_factory):
    """A written run of four configurations with known answers: three periods, one, none, diverged."""
    return synthetic.open_flat(
        tmp_path_factory.mktemp("four") / "run", synthetic.FOUR, synthetic.four(), eval_every=200
    )


@pytest.fixture(scope="session")
def analysed(four_run):
    """Its analysis, with forecasts. Read only."""
    return analysis.analyze(four_run, predict=True)
