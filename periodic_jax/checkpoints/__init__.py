"""Orbax checkpoints with checksums: reading and writing."""
