"""Everything on disk but checkpoints, without JAX."""
