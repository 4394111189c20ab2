"""What is around JAX while the package computes."""

import jax
import numpy as np
import pytest

from periodic_jax import ConfigError, RunConfig, open_run, run_sweep
from periodic_jax.training import xla


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    xla._say_once.cache_clear()


def test_searches_for_nan_are_off_in_a_run_and_on_again_after_it(tmp_path, caplog):
    config = {"lr": (0.1, 1e30), "weight_decay": 0.0, "steps": 5, "width": 2, "depth": 1}
    with jax.debug_nans(True), jax.debug_infs(True):
        for name in ("one", "two"):
            run = run_sweep(RunConfig(out=tmp_path / name, **config))
        with pytest.raises(FloatingPointError):
            jax.numpy.log(-1.0)
    assert np.isfinite(open_run(run).diverged_at.sel(lr=1e30))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "jax_debug_nans and jax_debug_infs: off while periodic_jax computes, where NaN stands for what is not reached"
    ]


def test_one_device_for_several_cores_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr("jax.local_device_count", lambda: 1)
    monkeypatch.setattr(xla, "_cores", lambda: 4)
    for _ in range(2):
        xla.say_if_cores_share_a_device()
    assert [record.getMessage().startswith("1 device for 4 cores: ") for record in caplog.records] == [True]
    for devices, cores in ((4, 4), (1, 1)):
        caplog.clear()
        xla._say_once.cache_clear()
        monkeypatch.setattr("jax.local_device_count", lambda devices=devices: devices)
        monkeypatch.setattr(xla, "_cores", lambda cores=cores: cores)
        xla.say_if_cores_share_a_device()
        assert not caplog.records


def test_a_flag_that_comes_too_late_is_said_at_the_import(monkeypatch, caplog):
    monkeypatch.setattr(xla, "_jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(xla, "_started_unguarded", False)
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.devices()  # JAX has started
    xla.guard_xla_flags()
    assert "JAX started before periodic_jax was imported, so its flag comes too late" in caplog.text
    with pytest.raises(ConfigError, match="imported before JAX starts"):
        xla.check_reductions()
