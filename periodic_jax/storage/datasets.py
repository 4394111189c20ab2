"""Datasets of results on disk."""

from pathlib import Path

import numpy as np
import xarray as xr
from zarr.storage import LocalStore

from periodic_jax.core.errors import CorruptedRunError, RunNotFoundError, UnwritableError
from periodic_jax.core.files import replace_folder
from periodic_jax.storage.run_directory import ANALYSIS


def write_store(dataset: xr.Dataset, store: Path) -> Path:
    """Write a Dataset as a zarr store, atomically, over an earlier one.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    # Words become numbers with their meanings in the attributes: zarr's format has no settled type for words yet.
    try:
        with replace_folder(store) as draft:
            _numeric(dataset).to_zarr(LocalStore(draft), mode="w-", zarr_format=3, consolidated=False)
    except OSError as error:
        raise UnwritableError(store, error.strerror or error) from None
    return store


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
        RunNotFoundError: there is none.
        CorruptedRunError: it is corrupted.
    """
    return read_store(Path(path) / ANALYSIS, f"periodic-jax analyze {path} writes it")


def read_store(store: str | Path, remedy: str = "write it again") -> xr.Dataset:
    """Read what `write_store` wrote, with its words.

    Args:
        store: the folder.
        remedy: what to do where there is none, for the error.

    Raises:
        RunNotFoundError: there is none.
        CorruptedRunError: it is corrupted.
    """
    if not Path(store).exists():
        raise RunNotFoundError(store, "there is no such folder of results", remedy)
    try:
        stored = xr.open_zarr(LocalStore(store, read_only=True), consolidated=False, zarr_format=3, chunks=None).load()
        coded = {name: array for name, array in stored.variables.items() if "flag_meanings" in array.attrs}
        words = {name: (a.dims, np.asarray(a.attrs["flag_meanings"])[a.values]) for name, a in coded.items()}
        return stored.drop_vars(coded).assign(words).set_coords([n for n in words if n in stored.coords])
    except Exception as error:  # whatever a corrupted or foreign store makes zarr, NumPy or xarray raise
        raise CorruptedRunError(store, str(error).partition("\n")[0] or type(error).__name__, remedy) from None
