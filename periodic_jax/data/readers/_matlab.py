"""Reads numeric arrays from MATLAB 5 files, in a few lines that a damaged file cannot crash, as SciPy's C code it can.

A file is a header of 128 bytes and elements: type and size (4 bytes each), then the data, padded to 8 bytes; up to 4
bytes of data are put into the tag itself. An element is an array, or the zlib stream of one. An array's own elements
are its flags, its dimensions, its name and its numbers, first index fastest.
"""

import math
import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from periodic_jax.core.errors import DataFileError

LARGEST = 2**30  # bytes in one array
INT32, MATRIX, COMPRESSED = 5, 14, 15
DTYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
NUMERIC_CLASSES = range(6, 16)
COMPLEX = 0x0800


def read_matlab(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """Read real numeric arrays.

    Args:
        path: of a MATLAB 5 file, compressed or not.
        names: of the arrays wanted.

    Returns:
        Those of them that the file holds, in the type their numbers are stored in, which MATLAB chooses as small as
        they fit.

    Raises:
        ConfigError: no such file, a damaged one, or another format.
    """
    if not path.is_file():
        raise DataFileError(path, "no such file", "an existing file")
    if path.stat().st_size > LARGEST:
        raise DataFileError(path, f"{path.stat().st_size} bytes", f"at most {LARGEST}")
    content = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or len(content) <= 128:
        raise DataFileError(path, "no header of MATLAB 5", "a MATLAB 5 file")
    found = {}
    try:
        for kind, element in _elements(memoryview(content)[128:], order):
            if kind == COMPRESSED:
                stream = zlib.decompressobj()
                inflated = memoryview(stream.decompress(element, LARGEST))
                if not stream.eof:
                    raise ValueError("a stream without end")
                ((kind, element),) = _elements(inflated, order)
            if kind == MATRIX:
                name, array = _matrix(element, order, names)
                if array is not None:
                    found[name] = array
    except (ValueError, zlib.error, struct.error, MemoryError) as error:
        raise DataFileError(path, f"corrupted ({error})", "a whole MATLAB 5 file") from None
    return found


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, data) of each element."""
    start = 0
    while start < len(content):
        first, size = struct.unpack_from(order + "II", content, start)
        if first >> 16:  # the small format: size and type share four bytes, the data are the other four
            kind, size, begin, end = first & 0xFFFF, first >> 16, start + 4, start + 8
            if size > 4:
                raise ValueError("a small element that is none")
        else:
            kind, begin = first, start + 8
            end = begin + size + (-size % 8 if kind != COMPRESSED else 0)
        if begin + size > len(content):
            raise ValueError("a cut element")
        yield kind, content[begin : begin + size]
        start = end


def _matrix(content: memoryview, order: str, names: Collection[str]) -> tuple[str, np.ndarray | None]:
    """Name and numbers of an array; no numbers where it is not wanted."""
    elements = _elements(content, order)
    (_, flags), (dims_kind, dims), (_, name) = (next(elements, (0, memoryview(b""))) for _ in range(3))
    text = bytes(name).decode("latin-1")
    if text not in names:
        return text, None
    (flag,) = struct.unpack_from(order + "I", flags)
    if flag & 0xFF not in NUMERIC_CLASSES or flag & COMPLEX or dims_kind != INT32:
        raise ValueError(f"{text} is no array of real numbers")
    shape = tuple(np.frombuffer(dims, order + "i4").tolist())
    kind, numbers = next(elements, (0, memoryview(b"")))
    if kind not in DTYPES:
        raise ValueError(f"{text} holds no numbers")
    array = np.frombuffer(numbers, order + DTYPES[kind])
    if min(shape, default=-1) < 0 or math.prod(shape) != array.size:
        raise ValueError(f"{text} has {array.size} numbers for {shape}")
    return text, array.reshape(shape, order="F")
