import importlib.metadata
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

import periodic_jax
from periodic_jax import ConfigError
from periodic_jax.training import xla

HEAVY = {"jax", "jaxlib", "flax", "optax", "numpy", "scipy", "xarray", "zarr", "matplotlib", "tensorflow_datasets"}
COMPUTE = {"jax", "jaxlib", "flax", "optax", "orbax"}


def in_fresh_python(code: str, said: str = "", **environment: str):
    """What the code prints as JSON; ``said`` is on stderr, and nothing else."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)
    return json.loads(done.stdout)


def test_import_is_light():
    """Told by what it loads, which does not hang on how busy the machine is."""
    loaded = in_fresh_python("import sys, json, periodic_jax; print(json.dumps(list(sys.modules)))")
    assert not HEAVY & set(loaded)
    assert "periodic_jax" in loaded
    assert len(loaded) < 180  # numpy alone has more


def test_looking_at_results_needs_no_jax():
    """Imported one after the other, and what is loaded after each."""
    names = [
        "core.errors", "training.xla", "dynamics", "core.grid", "core.segments", "analysis.periods", "analysis.regimes",
        "analysis.theory_checks", "analysis.stability", "analysis.forecast", "storage.run_directory", "storage.reader",
        "analysis", "reporting.tables", "plots", "reporting.html", "reporting.export",
    ]  # fmt: skip
    after_each = f"[importlib.import_module('periodic_jax.' + name) and list(sys.modules) for name in {names}]"
    code = f"import sys, json, importlib; print(json.dumps({after_each}))"
    for name, loaded in zip(names, in_fresh_python(code), strict=True):
        assert f"periodic_jax.{name}" in loaded
        assert not COMPUTE & set(loaded)
        assert "xarray" not in loaded or name not in ("core.errors", "dynamics", "core.grid", "core.segments")
        assert ("matplotlib" in loaded) == (name in ("plots", "reporting.html", "reporting.export"))
        assert "plotly" not in loaded
        assert "matplotlib.pyplot" not in loaded


def test_settings_are_checked_without_starting_jax(tmp_path):
    """Which reads its flags once, when it starts, and the cores become devices by one of them."""
    code = f"""
import json
from periodic_jax import RunConfig
from periodic_jax.runs.config import check
from periodic_jax.training import xla
check(RunConfig(out={str(tmp_path / "run")!r}, steps=5, track_sharpness=2, storage="bf16", deterministic=True))
print(json.dumps([xla._has_started(), __import__("jax").device_count() > 0, xla._has_started()]))
"""
    assert in_fresh_python(code) == [False, True, True]


@pytest.mark.parametrize("name", periodic_jax.__all__)
def test_public_names(name):
    value = getattr(periodic_jax, name)
    assert name in dir(periodic_jax)
    assert name == "__version__" or value.__name__.rpartition(".")[2] == name


def test_results_are_read_through_tables():
    assert callable(periodic_jax.tables.open_analysis)
    assert callable(periodic_jax.tables.read_store)


def test_public_names_are_once_there_and_star_gives_them():
    assert len(set(periodic_jax.__all__)) == len(periodic_jax.__all__)
    loaded = {}
    exec("from periodic_jax import *", loaded)
    assert set(periodic_jax.__all__) <= set(loaded)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = periodic_jax.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "--new=1"),
        ("", "--new=1"),
        ("  --a=1   --b ", "--a=1 --b --new=1"),
        ("--new=2", "--new=2"),
        ("--a=1 --new=2 --b", "--a=1 --new=2 --b"),
        ("--new", "--new"),
        ("--newer=2", "--newer=2 --new=1"),
        ("--a=1 --old=--new=2", "--a=1 --old=--new=2 --new=1"),
        ("junk", "--new=1 junk"),
        ("--a=1 junk -b", "--a=1 --new=1 junk -b"),
        ("junk --a=1", "--a=1 --new=1 junk"),
        ("junk --new=2", "junk --new=2"),
    ],
)
def test_add_xla_flag(monkeypatch, before, after):
    """A user's value stays, and the new flag is before what XLA would stop reading at."""
    if before is None:
        monkeypatch.delenv("XLA_FLAGS", raising=False)
    else:
        monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):  # a second call changes nothing
        xla.add_xla_flag("--new=1")
        assert os.environ["XLA_FLAGS"] == after


def test_flags_in_a_file_are_taken_over(monkeypatch, tmp_path):
    """XLA reads a file where XLA_FLAGS does not begin with a dash, and would not once a flag is put before its name."""
    (tmp_path / "flags").write_text("--a=1\n--new=2\n")
    monkeypatch.setenv("XLA_FLAGS", str(tmp_path / "flags"))
    xla.add_xla_flag("--new=1")
    assert os.environ["XLA_FLAGS"] == str(tmp_path / "flags")
    for _ in range(2):
        xla.add_xla_flag("--b=3")
        assert os.environ["XLA_FLAGS"] == "--a=1 --new=2 --b=3"


NAME = xla.SAFE_REDUCTIONS.split("=")[0]
PRETEND = "import importlib.metadata as m; m.version = lambda name: {version!r}; import os, json; "


@pytest.mark.parametrize("version", sorted(xla.UNSAFE_JAXLIB))
@pytest.mark.parametrize("given", ["", "--xla_dump_to=x", f"{NAME}=mine", "junk"])
def test_import_guards_the_flags_under_versions_that_need_it(given, version):
    code = PRETEND.format(version=version) + "import periodic_jax; print(json.dumps(os.environ['XLA_FLAGS']))"
    flags = in_fresh_python(code, XLA_FLAGS=given).split()
    assert set(given.split()) <= set(flags)
    guards = [flag for flag in flags if flag.startswith(NAME)]
    assert guards == ([given] if "mine" in given else [xla.SAFE_REDUCTIONS])


@pytest.mark.parametrize("version", ["0.10.0", "0.10.1", "0.11.1", "0.12.0.1", "0.13.0"])
@pytest.mark.parametrize("given", [None, "--xla_dump_to=x"])
def test_import_leaves_the_flags_alone_under_others(given, version):
    code = PRETEND.format(version=version) + "import periodic_jax; print(json.dumps(os.environ.get('XLA_FLAGS')))"
    assert in_fresh_python(code, **({} if given is None else {"XLA_FLAGS": given})) == given


def test_import_without_jaxlib_leaves_them_alone(monkeypatch):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", fail)
    monkeypatch.setenv("XLA_FLAGS", "--a=1")
    xla.guard_xla_flags()
    assert os.environ["XLA_FLAGS"] == "--a=1"


@pytest.mark.parametrize(
    ("flags", "guarded"),
    [
        ("", False),
        (xla.SAFE_REDUCTIONS, True),
        (f"--a=1 {NAME}=+dot,-reduce", True),
        (f"{NAME}=", True),
        (f"{NAME}=dot", True),
        (f"{NAME}=dot,reduce", False),
        (f"{NAME}=-dot", False),
        (f"{NAME}=+dot", False),
        (f"{xla.SAFE_REDUCTIONS} {NAME}=reduce", False),
    ],
)
def test_flags_of_your_own_that_undo_the_guard_are_refused(monkeypatch, flags, guarded):
    """Under the versions that need it, before any sum that could end the process."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(xla, "_jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(xla, "_started_unguarded", False)
    monkeypatch.setattr("jax.default_backend", lambda: "cpu")
    asked = []
    monkeypatch.setattr(xla, "reductions_are_right", lambda: asked.append(1) or True)
    if guarded:
        xla.check_reductions()
        assert asked == [1]
    else:
        with pytest.raises(ConfigError, match=r"^XLA_FLAGS: .*type=-reduce in it: jaxlib 0\.10\.2 fails"):
            xla.check_reductions()
        monkeypatch.setattr("jax.default_backend", lambda: "gpu")
        xla.check_reductions()
        assert asked == [1]


@pytest.mark.parametrize("given", [{}, {"JAX_NUM_CPU_DEVICES": "1"}, {"JAX_NUM_CPU_DEVICES": "3"}])
def test_whether_jax_has_started_is_found_out_without_starting_it(given):
    code = (
        "import json, sys\nfrom periodic_jax.training import xla\nseen = [xla._has_started(), 'jax' in sys.modules]\n"
        "import jax\nasked = lambda: [xla._has_started(), jax.config.values['jax_num_cpu_devices']]\n"
        "number = jax.config.values['jax_num_cpu_devices']\nseen += [asked(), asked(), len(jax.devices()), asked()]\n"
        "print(json.dumps([number, seen]))"
    )
    number, seen = in_fresh_python(code, JAX_PLATFORMS="cpu", **given)
    devices = int(given.get("JAX_NUM_CPU_DEVICES", 1))
    assert seen == [False, False, [False, number], [False, number], devices, [True, number]]


@pytest.mark.parametrize(
    ("version", "given", "refused"),
    [("0.11.0", {}, True), ("0.11.0", {"XLA_FLAGS": xla.SAFE_REDUCTIONS}, False), ("0.12.0", {}, False)],
)
def test_a_flag_that_comes_too_late_is_told(version, given, refused):
    code = (
        "import json, jax, importlib.metadata as m; jax.numpy.zeros(1); m.version = lambda name: "
        + repr(version)
        + "\n"
        "from periodic_jax import ConfigError\nfrom periodic_jax.training import xla\n"
        "xla.reductions_are_right = lambda: True\nsaid = None\n"
        "try: xla.check_reductions()\nexcept ConfigError as error: said = str(error)\nprint(json.dumps(said))"
    )
    said = in_fresh_python(code, said="flag comes too late: under" if refused else "", JAX_PLATFORMS="cpu", **given)
    if refused:
        assert said.endswith(f"imported before JAX starts: jaxlib 0.11.0 needs {xla.SAFE_REDUCTIONS} from then on")
        assert "\n" not in said
    else:
        assert said is None


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_self_check_passes_here_and_tells_wrong_sums(monkeypatch, precision):
    """Right under the flags of the tests; wrong where a sum or a product is off by half a percent."""
    jax = pytest.importorskip("jax")
    monkeypatch.setattr(xla, "_started_unguarded", False)
    with xla.precision(precision):
        assert xla.reductions_are_right()
        right = jax.device_get
        for wrong in range(2):

            def skewed(arrays, wrong=wrong):
                found = [np.array(array) for array in right(arrays)]
                assert {array.dtype.name for array in found} == {precision}
                found[wrong].flat[-1] *= 0.995
                return tuple(found)

            monkeypatch.setattr(jax, "device_get", skewed)
            assert not xla.reductions_are_right()
            with pytest.raises(ConfigError, match=r"^XLA_FLAGS: .*its self-check failed"):
                xla.check_reductions()
            monkeypatch.setattr(jax, "device_get", right)


@pytest.mark.skipif(
    (importlib.metadata.version("jaxlib"), platform.machine()) != ("0.10.2", "x86_64"), reason="sums are right there"
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_self_check_finds_the_defect(precision):
    code = (
        "import json, jax; jax.numpy.zeros(1)\nfrom periodic_jax.training import xla\n"
        f"with xla.precision({precision!r}): print(json.dumps(xla.reductions_are_right()))"
    )
    assert in_fresh_python(code, said="flag comes too late", JAX_PLATFORMS="cpu") is False
    assert in_fresh_python(code, JAX_PLATFORMS="cpu", XLA_FLAGS=xla.SAFE_REDUCTIONS) is True


def test_looking_at_results_needs_nothing_that_only_unix_has(tmp_path):
    """As on Windows: without the modules, and without the functions of `os`."""
    run = tmp_path / "run"
    periodic_jax.run_sweep(periodic_jax.RunConfig(out=run, lr=(0.1, 0.2), width=2, depth=1, steps=5))
    code = f"""
import asyncio, sys, os, json, warnings  # asyncio's own module for Unix needs them
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("sysconf", "sched_getaffinity", "fork"):
    if hasattr(os, name):
        delattr(os, name)
os.process_cpu_count = os.cpu_count  # which Python 3.13 would ask sched_getaffinity
warnings.simplefilter("ignore")  # of filelock: no flock
import periodic_jax as pj
for name in pj.__all__:
    getattr(pj, name)
found = pj.analysis.analyze(pj.open_run({str(run)!r}))
from periodic_jax.cli.main import main
real, sys.stdout = sys.stdout, open(os.devnull, "w")
for words in ("info --verify", "analyze", "plot", "report", "export --to csv"):
    main([*words.split()[:1], {str(run)!r}, *words.split()[1:]])
print(json.dumps(found.sizes["config"]), file=real)
"""
    assert in_fresh_python(code, JAX_PLATFORMS="cpu") == 2
    assert (run / "report.html").exists()
