"""A small sweep to stop, kill and damage, in this process or in one of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from periodic_jax import RunCallbacks, RunConfig, open_run
from periodic_jax.checkpoints.reader import load_checkpoint
from periodic_jax.runs.build import abstract_states
from periodic_jax.runs.manifest import from_manifest
from periodic_jax.storage.run_directory import read_config

# One configuration diverges at once, and momentum fills the optimiser's state.
SETTINGS = {
    "lr": (0.1, 1.0, 1e30), "weight_decay": (0.0,), "momentum": (0.9,), "seed": (0, 1), "width": 2, "depth": 1,
    "eval_every": 10, "checkpoint_seconds": 0.0,
}  # fmt: skip
STEPS = 40
OPTIONS = {
    "lr": "0.1 1.0 1e30", "weight-decay": "none", "momentum": "0.9", "seed": "0 1", "width": 2, "depth": 1,
    "eval-every": 10, "checkpoint-seconds": 0, "steps": STEPS,
}  # fmt: skip


def configured(out, **changes):
    return RunConfig(**{"out": out, "steps": STEPS, **SETTINGS, **changes})


def stop_after(chunks):
    """Callbacks that ask for an end before the chunk of that number."""
    asked = iter(range(chunks))
    return RunCallbacks(should_stop=lambda: 0 if next(asked, None) is not None else 143)


def assert_same_run(path, expected, step=STEPS):
    """All telemetry and the last states are the same to the bit, and no step is missing."""
    a, b = open_run(path, flat=True).load(), open_run(expected, flat=True).load()
    assert a.drop_attrs().identical(b.drop_attrs())
    assert np.isfinite(a.loss[0]).all()
    states, wanted = states_at(path, step), states_at(expected, step)
    assert set(states) == set(wanted)
    for name, array in states.items():
        np.testing.assert_array_equal(array, wanted[name], strict=True, err_msg=name)


def states_at(path, step):
    """The states in a checkpoint of a run on digits."""
    return load_checkpoint(path, step, abstract_states(from_manifest(read_config(path), path), (8, 8, 1), 10))


def flip(file, where=0.5):
    """Turn one bit of a byte, somewhere in a file."""
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= 1
    file.write_bytes(content)


def started(out, **changes):
    """The command line on the same settings, in a process of its own."""
    return _process("sweep", {**OPTIONS, "out": out, **changes})


def branched(parent, out, **options):
    """A branch, in a process of its own."""
    return _process(f"branch {parent}", {"out": out, **options})


def words_of(options):
    """Options as arguments; a path is one of them, with spaces or without."""
    values = {name: [value] if isinstance(value, Path) else str(value).split() for name, value in options.items()}
    return [word for name, value in values.items() for word in (f"--{name}", *map(str, value))]


def environment():
    """Of processes that compile no program that was compiled in this session."""
    return {**os.environ, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}


def _process(command, options):
    return subprocess.Popen(
        [sys.executable, "-m", "periodic_jax.cli.main", *command.split(), *words_of(options)],
        env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def wait_for(process, condition, seconds=120):
    """Wait until something holds, or the process ends."""
    begun = time.monotonic()
    while process.poll() is None and not condition():
        assert time.monotonic() - begun < seconds
        time.sleep(0.002)
