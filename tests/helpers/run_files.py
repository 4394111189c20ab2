"""Run directories for tests, of numbers that tell where they belong."""

import numpy as np
import pytest

from helpers.synthetic import write_run
from periodic_jax.core.errors import ConfigError, CorruptedRunError, RunNotFoundError, UsageError

NAMES = ("loss", "weight_norm", "effective_lr", "angular_step")


def telemetry_of(grid, steps=120, layers=0):
    """Numbers that tell configuration, step and layer: 1000 i + t, plus a tenth for each layer."""
    scalar = 1000.0 * np.arange(len(grid))[:, None] + np.arange(steps)
    out = {name: k + scalar for k, name in enumerate(NAMES)}
    if layers:
        out["layer_weight_norm"] = scalar[..., None] + np.arange(layers) / 8
    return out


def written(path, grid, **options):
    telemetry = telemetry_of(grid, layers=len(options.get("layers", ())))
    return write_run(path / "run", grid, telemetry, **options), telemetry


def refusal(call, *args, **kwargs) -> str:
    """The message of the error about a run that the call must raise, checked to be one line that says what to do."""
    with pytest.raises((ConfigError, CorruptedRunError, RunNotFoundError)) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert message.isprintable()
    if isinstance(caught.value, UsageError):
        assert message.endswith(f"; {caught.value.accepted}")
    elif isinstance(caught.value, ConfigError):
        assert " is not accepted; expected " in message
    else:
        assert message.endswith(f"; {caught.value.remedy}")
    return message
