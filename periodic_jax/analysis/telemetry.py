"""Telemetry as arrays with the steps last: of a Dataset by the names of its dimensions, of a mapping as it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from periodic_jax.core.errors import ConfigError, UsageError


def steps_last(
    telemetry: Mapping[Any, Any], needed: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Curves of one shape ``(..., steps)``.

    An ``effective_lr`` that is missing is lr/ρ², where ``lr`` is there, which is right at a constant rate.

    Args:
        telemetry: a Dataset, whose dimension ``step`` may be in any place; or a mapping of arrays with the steps last.
        needed: the curves to return.
        optional: those to return where they are there.

    Raises:
        ConfigError: what is missing, or shapes that differ.

    Example:
        >>> curves = xr.Dataset({"loss": (("step", "lr"), np.zeros((5, 2)))})
        >>> steps_last(curves, ["loss"])["loss"].shape
        (2, 5)
    """
    arrays = {}
    for name in (*needed, *optional):
        if name in telemetry:
            arrays[name] = arranged(telemetry, telemetry[name])
        elif name == "effective_lr" and "lr" in telemetry and "weight_norm" in telemetry:
            norm = arranged(telemetry, telemetry["weight_norm"])
            lr = np.asarray(of_configurations(telemetry, telemetry["lr"]))
            arrays[name] = (lr[..., None] / norm**2).astype(norm.dtype)
        elif name in needed:
            more = " (or lr, from which it follows)" if name == "effective_lr" else ""
            raise UsageError("telemetry", f"it has no {name}", f"give {', '.join(needed)}{more}")
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or () in shapes.values():
        raise ConfigError("telemetry", shapes, "arrays of one shape (..., steps)")
    return arrays


def arranged(telemetry: Mapping[Any, Any], array: Any) -> np.ndarray:
    """A curve with its steps last, and the dimensions of configurations in the order of the ``weight_norm``."""
    if not isinstance(array, xr.DataArray):
        return np.asarray(array)
    if "step" not in array.dims:
        raise ConfigError("telemetry", f"{array.name} over {array.dims}", "a dimension named step")
    return array.transpose(*_lead(telemetry, array), "step").values


def of_configurations(telemetry: Mapping[Any, Any], value: Any) -> Any:
    """A number of each configuration, in the shape of the leading dimensions of `steps_last`; others as they are."""
    if not isinstance(value, xr.DataArray) or not isinstance(telemetry, xr.Dataset):
        return value
    like = telemetry[next(name for name in ("weight_norm", "loss") if name in telemetry)]
    lead = _lead(telemetry, like)
    if strange := set(value.dims) - set(lead):
        raise ConfigError("telemetry", f"{value.name} over {sorted(map(str, strange))}", f"dimensions among {lead}")
    return value.broadcast_like(like.isel(step=0, drop=True)).transpose(*lead).values


def aligned(curve: Any, *values: Any) -> tuple[Any, ...]:
    """A curve with its steps last, and numbers of each configuration in the shape of its leading dimensions."""
    if not isinstance(curve, xr.DataArray):
        return curve, *values
    own = curve.to_dataset(name="loss")
    return arranged(own, own["loss"]), *(of_configurations(own, value) for value in values)


def broadcast(name: str, value: Any, lead: tuple[int, ...]) -> np.ndarray:
    """A number of each configuration, or one for all, in the shape of the leading dimensions.

    Raises:
        ConfigError: it has another shape.
    """
    try:
        return np.broadcast_to(np.asarray(value), lead)
    except ValueError:
        raise ConfigError(name, f"of shape {np.shape(value)}", f"one number, or an array of shape {lead}") from None


def _lead(telemetry: Mapping[Any, Any], array: xr.DataArray) -> list[Any]:
    """The dimensions but ``step``, in the order that all curves get."""
    first = next((telemetry[name] for name in ("weight_norm", "loss") if name in telemetry), array)
    order = first.dims if isinstance(first, xr.DataArray) and set(first.dims) == set(array.dims) else array.dims
    return [dim for dim in order if dim != "step"]
