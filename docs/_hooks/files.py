"""Pages that do not lie in docs/, tutorials as pages, and links to all of these."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
# path in the repository -> path in the site
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "development/contributing.md",
    "CHANGELOG.md": "development/changelog.md",
    "benchmarks/README.md": "development/performance.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE.txt",
}
ELSEWHERE |= {
    f"benchmarks/results/{path.name}": f"development/{path.name}" for path in ROOT.glob("benchmarks/results/*")
}
ELSEWHERE |= {f"examples/{path.name}": f"examples/{path.name}" for path in ROOT.glob("examples/*.py")}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def site_path(path: str) -> str:
    """Where a file of the repository lies in the site."""
    if path.startswith("docs/tutorials/") and path.endswith(".py"):
        path = path.removesuffix(".py") + ".md"
    return ELSEWHERE.get(path, path.removeprefix("docs/"))


def relink(markdown: str, source: str) -> str:
    """Let relative links, which hold in the repository, hold in the site."""

    def link(match: re.Match) -> str:
        if ":" in match[0]:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[0]))
        return posixpath.relpath(site_path(target), posixpath.dirname(site_path(source)) or ".")

    parts = FENCED.split(markdown)  # odd ones are code
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def as_page(program: str) -> str:
    r"""A tutorial as Markdown: comments that begin a line are prose, ``# >`` is output, the rest is code.

    Example:
        >>> print(as_page("# Text.\nprint(1)\n# > 1\n"))
        Text.
        <BLANKLINE>
        ```python
        print(1)
        ```
        <BLANKLINE>
        ```text
        1
        ```
    """
    blocks: list[tuple[str, list[str]]] = []
    for line in program.splitlines():
        kind = "text" if line.startswith("# >") else "prose" if re.match(r"#( |$)", line) else "python"
        if not blocks or blocks[-1][0] != kind:
            blocks.append((kind, []))
        blocks[-1][1].append(line if kind == "python" else line[4:] if kind == "text" else line[2:])
    pages = []
    for kind, lines in blocks:
        if body := "\n".join(lines).strip("\n"):
            pages.append(body if kind == "prose" else f"```{kind}\n{body}\n```")
    return "\n\n".join(pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies elsewhere, and a page for each tutorial beside its program."""
    sources = {**ELSEWHERE}
    for program in sorted((ROOT / "docs" / "tutorials").glob("*.py")):
        path = program.relative_to(ROOT).as_posix()
        sources[path] = site_path(path)
    for path, target in sources.items():
        content = (ROOT / path).read_text()
        if path.startswith("docs/tutorials/"):
            name = Path(path).name
            content = f"{as_page(content)}\n\n[Download {name}]({name}){{: download }}\n"
        files.append(File.generated(config, target, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Links as they hold in the site."""
    path = page.file.src_uri
    source = next((p for p, target in ELSEWHERE.items() if target == path), f"docs/{path}")
    return relink(markdown, source) if not source.startswith("docs/tutorials") else markdown
