"""A lock that keeps two processes off one run directory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from periodic_jax.core.errors import ConfigError

LOCK_FILE = ".lock"
FREE = "one that no other process is writing to"  # what a run directory must be


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run directory within a ``with`` block. The system frees the lock of a process that ends, however it ends.

    Args:
        path: an existing folder.

    Raises:
        ConfigError: another process holds it, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['.lock']
    """
    try:
        # Not through a link: in a stranger's folder it could lead to any file.
        handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise ConfigError("run directory", path, f"a folder that can be written ({error.strerror})") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError("run directory", path, FREE) from None
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a run directory."""
    try:
        handle = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
