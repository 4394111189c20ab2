"""Reads pickles of plain lists, numbers, bytes and uint8 arrays, and executes nothing in them.

A pickle can run any program when it is read the usual way. Here it cannot: only the instructions that such content
needs are carried out, and the names that NumPy's arrays are pickled under stand for what this module defines. Any
other name is refused. No library does this: NumPy's and pandas' readers run what a pickle names.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from periodic_jax.core.errors import DataFileError


def unpickle(content: bytes, source: object) -> Any:
    """What a pickle of lists, numbers, bytes and uint8 arrays holds; nothing in it is executed.

    Args:
        content: the pickle.
        source: where it is from, for the error.

    Returns:
        The object.

    Raises:
        DataFileError: a corrupted pickle, or one that names anything but uint8 arrays.

    Example:
        >>> unpickle(pickle.dumps({"data": np.arange(3, dtype=np.uint8)}, protocol=4), "batch")
        {'data': array([0, 1, 2], dtype=uint8)}
        >>> unpickle(pickle.dumps(print), "file")
        Traceback (most recent call last):
        periodic_jax.core.errors.DataFileError: data file file: it names builtins.print; expected a pickle of ...
    """
    reader = _Unpickler(io.BytesIO(content), encoding="bytes")
    reader.source = source
    try:
        return _plain(reader.load())
    except DataFileError:
        raise
    except Exception as error:  # whatever corrupted instructions make the unpickler raise
        raise DataFileError(source, f"corrupted ({type(error).__name__})", "a pickled batch") from None


class _Array:
    """A pickled array, before and after its state is known."""

    value: np.ndarray

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not (isinstance(dtype, _Dtype) and dtype.name in (b"u1", "u1", b"uint8", "uint8") and type(raw) is bytes):
            raise ValueError("not an array of uint8")
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError("no shape")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """A pickled dtype. Its state tells byte order and alignment, which single bytes do not have."""

    def __init__(self, name: Any, *flags: Any) -> None:
        self.name = name

    def __setstate__(self, state: Any) -> None:
        pass


def _encode(text: Any, encoding: Any) -> bytes:
    """How Python 3 writes bytes in the pickle protocols of Python 2."""
    if type(text) is not str or encoding not in ("latin1", b"latin1"):
        raise ValueError("not bytes")
    return text.encode("latin-1")


# NumPy's own functions are never reached: what they make of a crafted state is up to their C code.
_STANDS_FOR: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,  # numpy 1
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # numpy 2
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}

_INSTRUCTIONS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE
    SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND
    APPENDS EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
""".split()  # noqa: SIM905 (a table of words)


# The one written in Python: its memo is a dict, where a crafted index would make the one in C reserve 64 GB.
class _Unpickler(pickle._Unpickler):
    source: object
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Callable[[Any], None]]]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _STANDS_FOR:
            return _STANDS_FOR[module, name]
        expected = "a pickle of lists, numbers and uint8 arrays only"
        raise DataFileError(self.source, f"it names {module}.{name}", expected)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        # Text alone: hashing a tuple of tuples of tuples ... takes for ever.
        if not all(type(key) in (bytes, str) for key in items[::2]):
            raise ValueError("a key that is no text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _Array | _Dtype):
            raise ValueError("a state of something else than an array")
        built.__setstate__(state)


_Unpickler.dispatch = {
    **{code[0]: pickle._Unpickler.dispatch[code[0]] for code in (getattr(pickle, name) for name in _INSTRUCTIONS)},
    pickle.SETITEM[0]: _Unpickler.load_setitem,
    pickle.SETITEMS[0]: _Unpickler.load_setitems,
    pickle.BUILD[0]: _Unpickler.load_build,
}


def _plain(content: Any) -> Any:
    """The content with its arrays, which are values of a dictionary or the whole."""
    if isinstance(content, dict):
        return {key: _plain(value) if isinstance(value, _Array) else value for key, value in content.items()}
    return content.value if isinstance(content, _Array) else content
