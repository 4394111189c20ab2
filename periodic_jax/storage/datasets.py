"""Results on disk, an analysis, a landscape or a comparison of minima: NetCDF files that any xarray opens.

A checksum among the attributes covers all else. Nothing else is believed of a file: one from a stranger can hold no
links, no parts in other files, no filters, and no arrays that are larger than itself.
"""

import os
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from periodic_jax.core.errors import ConfigError
from periodic_jax.core.files import find_foreign_file
from periodic_jax.storage.checksums import SEAL
from periodic_jax.storage.run_directory import ANALYSIS

MOST_BYTES = 2**34


def write_store(dataset: xr.Dataset, store: Path) -> Path:
    """Write a Dataset of numbers and text as a NetCDF file, whole or not at all, over an earlier one.

    Raises:
        ConfigError: the folder cannot be written.
    """
    draft = store.with_name(store.name + ".partial")
    dataset = dataset.drop_encoding().assign_attrs({SEAL: _checksum(dataset)})
    # Text as arrays of characters, so that the size of everything is known before it is read.
    encoding = {name: {"dtype": "S1"} for name, array in dataset.variables.items() if _is_text(array)}
    try:
        draft.unlink(missing_ok=True)  # of a process that was killed
        draft.touch()  # the reason why not is plainer here than from HDF5
        dataset.to_netcdf(draft, engine="h5netcdf", encoding=encoding)
        os.replace(draft, store)
    except (OSError, RuntimeError) as error:
        raise not_written(store, error) from None
    finally:
        if draft.is_file():
            draft.unlink()
    return store


def not_written(path: Path, error: Exception) -> ConfigError:
    """The error for a result that could not be written. Drafts and renaming leave what was there as it was."""
    reason = str(getattr(error, "strerror", None) or error).partition("\n")[0]
    return ConfigError("not written", path, f"a place that can be written ({reason}); what was there is unchanged")


def open_analysis(path: str | Path) -> xr.Dataset:
    """Open the analysis.nc of a run directory.

    Raises:
        ConfigError: there is none, or a damaged one.
    """
    return read_store(Path(path) / ANALYSIS, "an analysis, as periodic-jax analyze writes it")


def read_store(store: str | Path, accepted: str = "a file of results, as this package writes it") -> xr.Dataset:
    """Read what `write_store` wrote.

    Args:
        store: the file.
        accepted: what it should be, for the error.

    Raises:
        ConfigError: there is none, or a damaged one.
    """
    try:
        _check_contents(Path(store))
        with xr.open_dataset(store, engine="h5netcdf") as opened:
            dataset = opened.load()
        dataset = dataset.drop_encoding()
        dataset = dataset.assign(
            {name: dataset[name].astype(str) for name, v in dataset.variables.items() if _is_text(v)}
        )
        if dataset.attrs.pop(SEAL, None) != _checksum(dataset):
            raise ValueError("its checksum does not agree")
        return dataset
    except Exception as error:  # whatever a damaged or foreign file makes HDF5, NumPy or xarray raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError("results", store, f"{accepted} ({reason})") from None


def _is_text(array: xr.Variable) -> bool:
    return array.dtype.kind in "UO"


def _check_contents(path: Path) -> None:
    """Refuse what would read other files or run filters, and what would take more memory than the file has bytes."""
    if find_foreign_file(path.parent, [path.name]):
        raise ValueError("not a plain file")
    if (size := path.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{size} bytes long, which no such file is")
    with h5py.File(path, "r") as file:
        arrays: list[Any] = [file[name] for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink)]
        plain = len(arrays) == len(file) and all(
            isinstance(array, h5py.Dataset)
            and array.dtype.kind in "biufS"
            and not (array.is_virtual or array.external or array.id.get_create_plist().get_nfilters())
            for array in arrays
        )
        if not plain or sum(array.nbytes for array in arrays) > 2 * size:
            raise ValueError("more than plain arrays of numbers and characters")


def _checksum(dataset: xr.Dataset) -> int:
    """Of names, dimensions, values and attributes."""
    about: list[tuple[Any, Any]] = [("", sorted(dataset.attrs.items()))]
    total = zlib.crc32(repr(sorted(dataset.sizes.items())).encode())
    for name, array in sorted(dataset.variables.items()):
        total = zlib.crc32(repr((name, array.dims)).encode(), total)
        values = array.values
        content = repr(values.tolist()).encode() if _is_text(array) else np.ascontiguousarray(values).tobytes()
        total = zlib.crc32(content, total)
        about.append((name, sorted(array.attrs.items())))
    plain = [(name, key, np.asarray(value).tolist()) for name, attrs in about for key, value in attrs if key != SEAL]
    return zlib.crc32(repr(plain).encode(), total)
