"""The hooks of the site, where mkdocs is installed; `.ci/run` builds the site itself."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
HOOKS = Path(__file__).resolve().parent.parent / "docs" / "_hooks"


def load(name):
    """A hook as a module."""
    spec = importlib.util.spec_from_file_location(name, HOOKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tutorial_becomes_prose_code_and_output():
    page = load("files").as_page("# # Title\n#\n# Text.\n\nprint(1)  # one\n# > 1\n# > 2\n\n# End.\n")
    assert page == "# Title\n\nText.\n\n```python\nprint(1)  # one\n```\n\n```text\n1\n2\n```\n\nEnd."


def test_links_of_the_repository_become_links_of_the_site():
    relink = load("files").relink
    assert relink("[a](docs/guides/data.md#svhn)", "README.md") == "[a](guides/data.md#svhn)"
    assert relink("[a](../../benchmarks/README.md)", "docs/guides/x.md") == "[a](../development/performance.md)"
    assert relink("![a](../tutorials/grid.py)", "docs/guides/x.md") == "![a](../tutorials/grid.md)"
    for untouched in ("[a](https://x.org/y.md)", "[a](#here)", "```\n[a](b.md)\n```"):
        assert relink(untouched, "docs/guides/x.md") == untouched


def test_equations_become_mathml_with_a_space_after_a_functions_name():
    page = load("equations").on_page_content(r'<span class="arithmatex">\(-\ln a &lt; 1\)</span>')
    assert page.startswith("<math")
    assert "<mi>ln</mi><mspace" in page
    assert "&lt;" in page or "&#x0003C;" in page


def test_broken_links_and_what_is_loaded_from_elsewhere_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "index.html").write_text('<p id="here"><a href="../#top">x</a>')
    (tmp_path / "index.html").write_text(
        '<h1 id="top"><a href="a/#here">x</a><a href="a/#gone">x</a><a href="b/">x</a><img src="c.png">'
        '<a href="https://x.org">x</a><script src="https://x.org/y.js"></script><link rel="canonical" href="https://x/">'
    )
    assert load("links").broken(tmp_path) == [
        "index.html: a/#gone has no such anchor",
        "index.html: b/ does not exist",
        "index.html: c.png does not exist",
        "index.html: https://x.org/y.js is loaded from another host",
    ]
