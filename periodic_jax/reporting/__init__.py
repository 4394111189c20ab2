"""Results as text, tables, other formats, and an HTML page."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["export", "html", "tables"])
