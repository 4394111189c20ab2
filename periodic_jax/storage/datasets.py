"""Datasets of results on disk."""

from pathlib import Path

import numpy as np
import xarray as xr
from zarr.storage import LocalStore

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import replace_folder
from periodic_jax.storage.run_directory import ANALYSIS


def write_store(dataset: xr.Dataset, store: Path) -> Path:
    """Write a Dataset as a zarr store, whole or not at all, over an earlier one.

    Raises:
        ConfigError: the folder cannot be written.
    """
    # Words become numbers with their meanings in the attributes: zarr's format has no settled type for words yet.
    try:
        with replace_folder(store) as draft:
            _numeric(dataset).to_zarr(LocalStore(draft), mode="w-", zarr_format=3, consolidated=False)
    except OSError as error:
        raise _unwritten(store, error) from None
    return store


def _unwritten(path: Path, error: OSError) -> ConfigError:
    """What to say of a result that could not be written; drafts and renaming leave what was there as it was."""
    reason = error.strerror or error
    return ConfigError("not written", path, f"a place that can be written ({reason}); what was there is unchanged")


def _numeric(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with words as numbers and their meanings in ``flag_meanings``, as in the CF conventions."""
    words = {name: array for name, array in dataset.variables.items() if array.dtype.kind in "UO"}
    changed = {}
    for name, array in words.items():
        meanings, codes = np.unique(array.values.astype(str), return_inverse=True)
        attributes = {**array.attrs, "flag_values": list(range(len(meanings))), "flag_meanings": meanings.tolist()}
        changed[name] = (array.dims, codes.astype(np.int32), attributes)
    return dataset.drop_vars(words).assign(changed).set_coords([n for n in words if n in dataset.coords])


def open_analysis(path: str | Path) -> xr.Dataset:
    """Open the analysis.zarr of a run directory, with its words.

    Raises:
        ConfigError: there is none, or a damaged one.
    """
    return read_store(Path(path) / ANALYSIS, "an analysis, as periodic-jax analyze writes it")


def read_store(store: str | Path, accepted: str = "a store of results, as this package writes it") -> xr.Dataset:
    """Read what `write_store` wrote, with its words.

    Args:
        store: the folder.
        accepted: what it should be, for the error.

    Raises:
        ConfigError: there is none, or a damaged one.
    """
    try:
        stored = xr.open_zarr(LocalStore(store, read_only=True), consolidated=False, zarr_format=3, chunks=None).load()
        coded = {name: array for name, array in stored.variables.items() if "flag_meanings" in array.attrs}
        words = {name: (a.dims, np.asarray(a.attrs["flag_meanings"])[a.values]) for name, a in coded.items()}
        return stored.drop_vars(coded).assign(words).set_coords([n for n in words if n in stored.coords])
    except Exception as error:  # whatever a damaged or foreign store makes zarr, NumPy or xarray raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError("run directory", store, f"{accepted} ({reason})") from None
