"""The command ``periodic-jax``."""
