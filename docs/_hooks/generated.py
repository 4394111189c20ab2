"""Parts of pages that the package itself knows, in the place of ``<!-- generated: WHAT -->``."""

import contextlib
import inspect
import io
import os
import re
import textwrap
import types

import periodic_jax
from periodic_jax.cli.commands import COMMANDS
from periodic_jax.cli.launch_engines import parse_launch
from periodic_jax.cli.main import parse_command
from periodic_jax.storage import schema

os.environ.update(COLUMNS="80", NO_COLOR="1")
PLACE = re.compile(r"<!-- generated: (\w+) ?([\w ]*) -->")
HEADINGS = {
    schema.STEP: "Of every configuration and step",
    schema.LAYER: "Of every configuration, step and scale-invariant layer",
    schema.EVALUATION: "Of every configuration and evaluation",
    schema.CONFIG: "Of every configuration",
}


def help_of(command: str) -> str:
    """What ``periodic-jax COMMAND --help`` prints at 80 columns."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        first, *rest = [*command.split(), "--help"]
        if first == "launch":
            parse_launch(rest)
        else:
            parse_command([first, *rest])
    lines = printed.getvalue().rstrip().splitlines()
    return "\n".join(textwrap.fill(line, 80) if len(line) > 80 else line for line in lines)


def commands(_: str) -> str:
    """A section for each command, with its help."""
    names = [""]
    for name in COMMANDS:
        names += [name] if name != "launch" else ["launch slurm", "launch ray"]
    parts = []
    for name in names:
        heading = f"## periodic-jax {name}" if name else "## periodic-jax"
        parts.append(f"{heading}\n\n```text\n{help_of(name)}\n```")
    return "\n\n".join(parts)


def quantities(_: str) -> str:
    """A table of the recorded quantities for each kind of dimensions."""
    parts = []
    for dims, heading in HEADINGS.items():
        rows = [q for q in schema.QUANTITIES.values() if q.dims == dims]
        lines = [f"| `{q.name}` | {q.long_name} | {q.units} | {FEATURES[q.only]} |" for q in rows]
        parts.append(
            "\n".join([f"### {heading}", "", "| name | what | unit | recorded |", "|---|---|---|---|", *lines])
        )
    return "\n\n".join(parts)


def public(_: str) -> str:
    """A table of what ``periodic_jax`` itself has, with links to the pages of the subpackages."""
    rows = []
    for name in periodic_jax.__all__:
        value = getattr(periodic_jax, name)
        if isinstance(value, types.ModuleType):
            path, page = value.__name__, value.__name__.split(".")[1]
            rows.append(f"| [`pj.{name}`]({page}.md#{path}) | the module `{path}` |")
        elif not isinstance(value, str):
            summary = " ".join(inspect.getdoc(value).split("\n\n")[0].split())
            rows.append(f"| [`pj.{name}`][{value.__module__}.{value.__qualname__}] | {summary} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


FEATURES = {
    "": "always",
    "sharpness": "`--track-sharpness`",
    "eigenvalue": "`--track-eigenvalue`",
    "corruption": "`--corrupt-train`",
    "updates": "other optimisers than SGD",
}
MAKERS = {"commands": commands, "public": public, "quantities": quantities}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put in what is generated."""
    return PLACE.sub(lambda match: MAKERS[match[1]](match[2]), markdown)
