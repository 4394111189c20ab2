"""Periodic training dynamics of scale-invariant networks with weight decay, for whole hyperparameter grids at once.

``__init__.pyi`` lists the public names. Each is loaded on first use, so ``import periodic_jax`` is cheap and looking at
results needs no JAX.
"""

import lazy_loader

from periodic_jax.training.xla import guard_xla_flags

guard_xla_flags()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
