"""What is around JAX while the package computes."""

import flax
import jax
import numpy as np
import pytest

from periodic_jax import ConfigError, RunConfig, open_run, run_sweep
from periodic_jax.training import xla


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    xla._say_once.cache_clear()


def said(caplog):
    """The lines of the log, but for the one on cores without a device, which depends on the machine."""
    return [line for line in caplog.messages if "use_cores_as_devices" not in line]


def test_searches_for_nan_are_off_in_a_run_and_on_again_after_it(tmp_path, caplog):
    config = {"lr": (0.1, 1e30), "weight_decay": 0.0, "steps": 5, "width": 2, "depth": 1}
    with jax.debug_nans(True), jax.debug_infs(True):
        for name in ("one", "two"):
            run = run_sweep(RunConfig(out=tmp_path / name, **config))
        with pytest.raises(FloatingPointError):
            jax.numpy.log(-1.0)
    assert np.isfinite(open_run(run).diverged_at.sel(lr=1e30))
    assert said(caplog) == [
        "jax_debug_nans and jax_debug_infs: off while periodic_jax computes, where NaN stands for what is not reached"
    ]


def test_random_numbers_are_the_same_whatever_is_set_outside(tmp_path, caplog):
    config = {"lr": (0.1, 1.0), "steps": 5, "width": 2, "depth": 1, "augment": True}
    expected = open_run(run_sweep(RunConfig(out=tmp_path / "one", **config)))
    separated = flax.config.temp_flip_flag("fix_rng_separator", True)
    with jax.default_prng_impl("rbg"), jax.threefry_partitionable(False), separated:
        run = open_run(run_sweep(RunConfig(out=tmp_path / "two", **config)))
        assert jax.config.jax_default_prng_impl == "rbg"
        assert flax.config.flax_fix_rng_separator
    np.testing.assert_array_equal(run.loss, expected.loss)
    assert [line.split(" while")[0] for line in said(caplog)] == [
        "jax_default_prng_impl=rbg: threefry2x32", "jax_threefry_partitionable=False: True",
        "flax_fix_rng_separator=True: False",
    ]  # fmt: skip


def test_shifted_seeds_are_refused(tmp_path):
    jax.config.update("jax_random_seed_offset", 3)
    try:
        with pytest.raises(ConfigError, match="JAX_RANDOM_SEED_OFFSET: 3 is not accepted"):
            run_sweep(RunConfig(out=tmp_path / "run", steps=1))
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    assert not (tmp_path / "run").exists()


def test_a_run_compiles_transfers_and_places_by_itself(tmp_path):
    mesh = jax.make_mesh((len(jax.devices()),), ("mine",))
    guards = jax.transfer_guard("disallow"), jax.numpy_rank_promotion("raise")
    with guards[0], guards[1], jax.set_mesh(mesh), jax.disable_jit():
        run = run_sweep(RunConfig(out=tmp_path / "run", lr=(0.1, 1.0), steps=3, width=2, depth=1))
        assert jax.sharding.get_abstract_mesh().axis_names == ("mine",)
    assert np.isfinite(open_run(run).loss).all()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RuntimeError("Unable to initialize backend 'cuda': x\ny"), "Unable to initialize backend 'cuda': x"),
     (AssertionError(), "no device")],
)  # fmt: skip
def test_no_device_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, error, reason):
    def fail():
        raise error

    monkeypatch.setattr(jax, "default_backend", fail)
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ConfigError) as refused:
        run_sweep(RunConfig(out=tmp_path / "run", steps=1, width=2, depth=1))
    assert refused.value.argument == "JAX_PLATFORMS"
    assert str(refused.value).endswith(f"platforms that start here (JAX: {reason})")
    assert not (tmp_path / "run").exists()


def test_another_error_stays_as_it_is():
    with pytest.raises(RuntimeError, match="mine"), xla.precision("float32"):
        raise RuntimeError("mine")


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


@pytest.fixture
def fresh_options():
    """The options are found anew, in the test and after it."""
    xla.cpu_options.cache_clear()
    yield
    xla.cpu_options.cache_clear()


def test_sums_on_a_cpu_are_not_left_to_the_library(fresh_options, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    options = xla.cpu_options()
    if not options:
        pytest.skip("this version of jaxlib knows no such option")
    squares = jax.jit(lambda x: (x * x).sum(1), compiler_options=options)
    x = jax.numpy.arange(64.0 * 4096).reshape(64, 4096)
    assert "ynn" not in squares.lower(x).compile().as_text()
    np.testing.assert_allclose(squares(x), (np.asarray(x, np.float64) ** 2).sum(1), rtol=1e-6)


def test_your_own_choice_of_the_library_stays(fresh_options, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"--{xla.LIBRARY}=reduce")
    assert xla.cpu_options() == {}


def test_a_version_that_knows_no_such_option_goes_without(fresh_options, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla, "LIBRARY", "xla_cpu_no_such_option")
    assert xla.cpu_options() == {}
