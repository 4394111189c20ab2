"""A lock that keeps two processes off one run directory."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from periodic_jax.core.errors import ConfigError, first_line

LOCK_FILE = ".lock"
FREE = "one that no other process is writing to"  # what a run directory must be


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a run directory within a ``with`` block. The system frees the lock of a process that ends, however it ends.

    Args:
        path: an existing folder.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['.lock']
    """
    lock = _lock(path)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError("run directory", path, FREE) from None
    except (OSError, NotImplementedError) as error:  # filelock 3 raises the latter where a file system has no locks
        raise ConfigError("run directory", path, f"a folder that can be written ({first_line(error)})") from None
    try:
        yield
    finally:
        lock.release()


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a run directory."""
    try:
        if (path / LOCK_FILE).is_file():
            with _lock(path):
                pass
    except (OSError, NotImplementedError) as error:
        return isinstance(error, Timeout)
    return False


def _lock(path: Path) -> FileLock:
    # A lock of the file's contents by the system (flock), through no link: a link could lead to any file.
    return FileLock(path / LOCK_FILE, blocking=False)
