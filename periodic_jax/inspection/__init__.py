"""Questions to a finished run that need its weights."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["info", "landscape", "load", "minima", "replay"]
)
