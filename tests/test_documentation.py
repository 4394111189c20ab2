"""README and the pages of the site: their commands parse, their examples run, what they name exists."""

import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest
from helpers import synthetic

import periodic_jax
from periodic_jax.analysis.regimes import LEAST_STEPS
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.cli.launch_engines import ENGINES, parse_launch
from periodic_jax.cli.main import parse_command
from periodic_jax.plots.style import FAINT
from periodic_jax.runs.config import RunConfig
from periodic_jax.sweeps.chunks import FIRST_STEPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# Decisions are a log, whose options may have gone; experiments are written by code.
APART = {"experiments", "decisions"}
PAGES = [
    path for path in sorted((ROOT / "docs").rglob("*.md")) if not APART & set(path.relative_to(ROOT / "docs").parts)
]
PAGES = [ROOT / "README.md", *PAGES]
ELSEWHERE = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")]
API = ROOT / "docs" / "reference" / "api"
# Its examples are programs of one's own, without anything that the tests set.
OWN = ROOT / "docs" / "guides" / "own_network.md"


def pages(*parameters):
    """A test for each page, or for each of what is found on it."""
    return pytest.mark.parametrize(*parameters, ids=lambda value: value.stem if isinstance(value, Path) else None)


def commands(text):
    """The commands on a page that can be given as they stand, as lists of arguments."""
    blocks = re.findall(r"(?:^(?:    |\t).*\n)+", text, re.MULTILINE)
    blocks += re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    for line in re.findall(r"periodic-jax .*", joined):
        words = shlex.split(line, comments=True)[1:]
        if "..." not in words and "$" not in line:
            yield words


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 100
    assert len(README.split()) <= 1200


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_the_citation_is_of_this_version():
    assert f"\nversion: {periodic_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_two_commands_are_those_that_ci_runs():
    ci = (ROOT / ".ci" / "run").read_text()
    for command in (
        "python -m pip install -e . && periodic-jax demo",
        'python -m pip install -e ".[test]" && python -m pytest',
    ):
        assert command in README
        assert command in ci


@pages("page", PAGES)
def test_every_option_it_names_exists(page):
    kinds = (RunConfig, *COMMANDS.values(), *ENGINES.values())
    fields = [name for kind in kinds for name in kind.__dataclass_fields__]
    known = {"--" + name.replace("_", "-") for name in fields} | {"--help", "--for", "--signal"}  # the last is sbatch's
    text = re.sub(r"^(#SBATCH|srun|curl| *rsync).*", "", page.read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)) <= known


def test_pages_name_options():
    assert "--weight-decay" in README
    assert any("--weight-decay" in page.read_text() for page in PAGES[1:])


def test_what_pages_say_of_chunks_and_regimes_is_so():
    signals = (ROOT / "docs" / "guides" / "resume_and_branch.md").read_text()
    regimes = (ROOT / "docs" / "theory" / "periods.md").read_text()
    assert f"A chunk has {FIRST_STEPS} steps at first" in signals
    assert f"fewer than {LEAST_STEPS} steps" in regimes
    assert f"faint where it is below {FAINT:g}" in regimes


@pages("page", [*PAGES, *sorted((ROOT / "docs" / "tutorials").glob("*.py"))])
def test_every_command_parses(page):
    text = page.read_text()
    if page.suffix == ".py":
        text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
    for words in commands(text):
        if words[0] == "launch":
            parse_launch(words[1:])
        else:
            parse_command(words)


def test_commands_are_found():
    found = list(commands(README))
    assert ["analyze", "runs/mine"] in found
    assert any("--shards" in words for words in found)
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 30


@pages("page", [*PAGES, *ELSEWHERE, *sorted((ROOT / "docs" / "development" / "decisions").glob("*.md"))])
def test_every_file_it_points_to_exists(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert target.startswith(("https://", "http://")) or (page.parent / target).exists(), target


def test_every_page_that_is_named_exists():
    """In words, as in a help text or the changelog."""
    sources = [*PAGES, *ELSEWHERE, *(ROOT / "periodic_jax").rglob("*.py")]
    named = {name for path in sources for name in re.findall(r"(?<![\w/.])docs/[\w/-]+\.(?:md|py)\b", path.read_text())}
    assert "docs/guides/own_network.md" in named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def examples(text):
    """The Python programs on a page."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_alone(program, folder, **variables):
    """A program in a process of its own, in which warnings are errors."""
    environment = {**os.environ, "MPLBACKEND": "Agg", **variables}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("example", examples(README))
def test_examples_of_readme_run_for_a_few_steps(tmp_path, monkeypatch, example):
    monkeypatch.chdir(tmp_path)
    exec(compile(re.sub(r"steps=\d+", "steps=40", example), "README.md", "exec"), {"__name__": "__main__"})
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(README))
def test_examples_of_readme_run(tmp_path, example):
    run_alone(example, tmp_path, XLA_FLAGS="")  # not those of the other tests: thousands of steps would take minutes


def test_examples_of_the_page_on_networks_run_in_a_process_of_their_own(tmp_path):
    """One process for all, since most of the time is its start; each example has its own names."""
    programs = examples(OWN.read_text())
    assert len(programs) > 3
    run_alone(
        f"for program in {programs!r}: exec(program, {{'__name__': '__main__'}})", tmp_path,
        JAX_COMPILATION_CACHE_DIR=jax.config.jax_compilation_cache_dir or "",
    )  # fmt: skip


@pages(
    ("page", "example"),
    [(page, example) for page in PAGES[1:] if page != OWN for example in examples(page.read_text())],
)
def test_examples_of_the_site_run(tmp_path, monkeypatch, page, example):
    monkeypatch.chdir(tmp_path)
    for name, mention in (("demo", "runs/demo"), ("grid-0", "grid-*")):
        if mention in example:
            synthetic.open_flat(tmp_path / "runs" / name, synthetic.FOUR, synthetic.four(), eval_every=200)
    exec(compile(example, page.name, "exec"), {"__name__": "__main__"})
    plt.close("all")


def modules():
    """Names of all public modules of the package."""
    yield from (
        info.name
        for info in pkgutil.walk_packages(periodic_jax.__path__, "periodic_jax.")
        if not any(part.startswith("_") for part in info.name.split("."))
    )


def test_every_public_name_has_a_page():
    shown = {path.stem: set(re.findall(r"^::: (\S+)", path.read_text(), re.MULTILINE)) for path in API.glob("*.md")}
    for name in modules():
        assert name in shown[name.split(".")[1]], name
    names = [(periodic_jax, name) for name in periodic_jax.__all__]
    for module in map(importlib.import_module, modules()):
        names += [(module, name) for name in getattr(module, "__all__", ())]
    for module, name in names:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__module__ in set().union(*shown.values()), name
            assert inspect.getdoc(value), f"{module.__name__}.{name} has no docstring"
