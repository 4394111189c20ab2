"""The shards of a grid on an existing distributed engine: `slurm` and `ray`.

Both only start ``periodic-jax sweep ... --shards N --shard K``. A shard is an ordinary run, and waits for no other.
"""
