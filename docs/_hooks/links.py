"""Checks the built pages: every link within the site ends somewhere, and nothing is loaded from another host."""

import logging
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.config.defaults import MkDocsConfig

log = logging.getLogger("mkdocs.hooks.links")
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")}
# Relations of <link> that name a page and load nothing.
NAMED = {"canonical", "prev", "next", "alternate", "edit"}


class Page(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[tuple[str, bool]] = []  # the link, and whether the page loads it
        self.anchors: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links and the anchor of an element."""
        named = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := named.get(key))}
        for key in ("href", "src"):
            if value := named.get(key):
                self.links.append((value, (tag, key) in LOADED and named.get("rel") not in NAMED))


def broken(site: Path) -> list[str]:
    """A line for each link of the site that does not hold."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    lines = []
    for path, page in pages.items():
        for link, is_loaded in page.links:
            parts = urlsplit(link)
            where = f"{path.relative_to(site)}: {link}"
            if parts.netloc and is_loaded:
                lines.append(f"{where} is loaded from another host")
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                lines.append(f"{where} does not exist")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                lines.append(f"{where} has no such anchor")
    return lines


def on_post_build(config: MkDocsConfig) -> None:
    """Warn of each broken link, which ends a strict build."""
    for line in broken(Path(config.site_dir).resolve()):
        log.warning(line)
