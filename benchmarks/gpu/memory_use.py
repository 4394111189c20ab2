"""Worker: the most memory that a sweep took on its device, and what was forecast."""

import argparse
import json
from pathlib import Path

from benchmarks.train_jax import arguments, build, train
from periodic_jax.training import xla


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("options", help="of `benchmarks.train_jax`, as JSON")
    options = arguments().parse_args([])
    vars(options).update(json.loads(parser.parse_args().options))
    xla.use_cores_as_devices()
    import jax

    with xla.precision(options.precision):
        sweep = build(options)
        train(sweep, 64)
        stats = jax.devices()[0].memory_stats() or {}
        from periodic_jax.runs.planning import estimate_resources
        from periodic_jax.runs.session import SessionPlan

        estimate = estimate_resources(sweep, sweep.grid, SessionPlan(Path("unused"), 64, 64))
        temporary = sweep.bytes_of_temporaries()
    answer = {
        "layout": sweep.layout, "peak_bytes": stats.get("peak_bytes_in_use"), "temporary_bytes": temporary,
        "data_bytes": estimate.data_bytes, "record_bytes": estimate.record_bytes,
        "state_bytes": estimate.state_bytes,  # with the copy for a checkpoint, which is not made here
        "forecast_bytes": estimate.memory_bytes + temporary,
    }  # fmt: skip
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
