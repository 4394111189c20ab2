"""Results on disk, an analysis, a landscape or a comparison of minima: NetCDF files that any xarray opens.

A checksum among the attributes covers all else. Nothing else is believed of a file: one from a stranger can hold no
links, no parts in other files, no filters, and no arrays that are larger than itself.
"""

import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from periodic_jax.core.errors import RunNotFoundError, UnwritableError, as_corruption, first_line
from periodic_jax.core.files import find_foreign_file, replace_file
from periodic_jax.storage.checksums import SEAL
from periodic_jax.storage.run_directory import ANALYSIS

MOST_BYTES = 2**34


def write_store(dataset: xr.Dataset, store: Path) -> Path:
    """Write a Dataset of numbers and text as a NetCDF file, atomically, over an earlier one.

    Raises:
        UnwritableError: the folder cannot be written.
    """
    dataset = dataset.drop_encoding().assign_attrs({SEAL: _checksum(dataset)})
    # Text as arrays of characters, so that the size of everything is known before it is read.
    encoding = {name: {"dtype": "S1"} for name, array in dataset.variables.items() if _is_text(array)}
    try:
        with replace_file(store) as draft:
            draft.touch()  # the reason why not is plainer here than from HDF5
            dataset.to_netcdf(draft, engine="h5netcdf", encoding=encoding)
    except (OSError, RuntimeError) as error:
        raise UnwritableError(store, first_line(error)) from None
    return store


def open_analysis(path: str | Path) -> xr.Dataset:
    """Open the analysis.nc of a run directory.

    Raises:
        RunNotFoundError: there is none.
        CorruptedRunError: it is corrupted.
    """
    return read_store(Path(path) / ANALYSIS, f"periodic-jax analyze {path} writes it")


def read_store(store: str | Path, remedy: str = "write it again") -> xr.Dataset:
    """Read what `write_store` wrote, with its text.

    Args:
        store: the file.
        remedy: what to do where there is none, for the error.

    Raises:
        RunNotFoundError: there is none.
        CorruptedRunError: it is corrupted.
    """
    if not Path(store).exists():
        raise RunNotFoundError(store, "there is no such file of results", remedy)
    with as_corruption(store, remedy):
        _check_contents(Path(store))
        with xr.open_dataset(store, engine="h5netcdf") as opened:
            dataset = opened.load().drop_encoding()
        texts = {name: dataset[name].astype(str) for name, array in dataset.variables.items() if _is_text(array)}
        dataset = dataset.assign(texts)
        if dataset.attrs.pop(SEAL, None) != _checksum(dataset):
            raise ValueError("its checksum does not agree")
        return dataset


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
        about.append((str(name), sorted(array.attrs.items())))
    plain = [(name, key, np.asarray(value).tolist()) for name, attrs in about for key, value in attrs if key != SEAL]
    return zlib.crc32(repr(plain).encode(), total)
