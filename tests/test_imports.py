import json
import os
import subprocess
import sys

import pytest

import periodic_jax
from periodic_jax.training import xla

HEAVY = {"jax", "jaxlib", "flax", "optax", "numpy", "scipy", "xarray", "zarr", "matplotlib", "tensorflow_datasets"}
COMPUTE = {"jax", "jaxlib", "flax", "optax", "orbax"}


def in_fresh_python(code: str, **environment: str):
    """What the code prints as JSON."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_is_light_and_fast():
    code = (
        "import sys, time, json; start = time.perf_counter(); import periodic_jax;"
        "took = time.perf_counter() - start; print(json.dumps([took, list(sys.modules)]))"
    )
    runs = [in_fresh_python(code) for _ in range(3)]
    assert min(took for took, _ in runs) < 0.3
    assert not HEAVY & set(runs[0][1])
    assert "periodic_jax" in runs[0][1]


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


@pytest.mark.parametrize("name", periodic_jax.__all__)
def test_public_names(name):
    value = getattr(periodic_jax, name)
    assert name in dir(periodic_jax)
    assert name == "__version__" or value.__name__.rpartition(".")[2] == name


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


@pytest.mark.parametrize("given", ["", "--xla_dump_to=x", f"{xla.SAFE_REDUCTIONS.split('=')[0]}=mine", "junk"])
def test_import_guards_the_flags(given):
    code = "import os, json, periodic_jax; print(json.dumps(os.environ['XLA_FLAGS']))"
    flags = in_fresh_python(code, XLA_FLAGS=given).split()
    assert set(given.split()) <= set(flags)
    guards = [flag for flag in flags if flag.startswith(xla.SAFE_REDUCTIONS.split("=")[0])]
    assert guards == ([given] if "mine" in given else [xla.SAFE_REDUCTIONS])
