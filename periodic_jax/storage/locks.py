"""A lock that keeps two processes off one run directory.

Two guards, since neither reaches everywhere. The system's lock (flock) is freed with the process, however that ends,
but a file system may have none, and on some network mounts two machines both get it. A lease, a small file with host,
process and a time of renewal, needs nothing of the file system; a dead machine's goes stale.
"""

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from periodic_jax.core.errors import ConfigError, RunInterrupted, UsageError, first_line

LOG = logging.getLogger("periodic_jax")
LOCK_FILE, LEASE_FILE = ".lock", ".lease"
LEASE = 60.0  # seconds without a renewal after which another machine's lease is stale
RENEWED = 5.0  # seconds between renewals
# What flock says where there are no locks: it is the file system's answer, and none about other processes.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EINTR}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Callable[[], None]]:
    """Hold a run directory within a ``with`` block. The lock of a process that ends is free, however it ends.

    Where another machine holds a lease, and may have died, it is watched until it is renewed or `LEASE` seconds old.

    Args:
        path: an existing folder.

    Yields:
        A function that raises RunInterrupted if the lease was lost to another process meanwhile, as after a machine
        was suspended.

    Raises:
        ConfigError: another process holds the lock, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
        ...     sorted(file.name for file in Path(folder).iterdir())
        ['.lease', '.lock']
    """
    lost = list[LeaseCompromise]()
    lock, lease = _lock(path), _lease(path, lost.append)
    with contextlib.ExitStack() as held:
        try:
            lock.acquire()
            held.callback(_release, lock)
        except Timeout:
            raise _in_use(path, lease, "wait until it ends, or give another folder") from None
        except (OSError, NotImplementedError) as error:  # filelock raises the latter where there is no flock at all
            if not _has_no_locks(error):
                raise _unwritable(path, error) from None
            LOG.warning(
                "%s: no locks on this file system (%s): %s alone keeps other processes off", path, first_line(error),
                LEASE_FILE,
            )  # fmt: skip
        try:
            _acquire(lease, path)
            held.callback(_release, lease)
        except (Timeout, LeaseSettingsMismatch):
            raise _in_use(path, lease, f"wait until it ends; if it is gone, remove {path / LEASE_FILE}") from None
        except OSError as error:
            raise _unwritable(path, error) from None

        def check() -> None:
            if lost:
                message = (
                    f"{path}: {LEASE_FILE} was lost ({lost[0].reason}): another process may be writing there; stopped"
                )
                raise RunInterrupted(message, 1)

        yield check


def is_locked(path: Path) -> bool:
    """Whether a process is writing to a run directory, as far as can be told from here."""
    lease = _lease(path)
    try:
        if (path / LOCK_FILE).is_file():
            with _lock(path):
                pass
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return _is_fresh(lease)
    # The lock is free: a process of this machine would hold it.
    owner = lease.owner
    return owner is not None and not _is_here(owner.hostname) and _is_fresh(lease)


def _acquire(lease: SoftFileLease, path: Path) -> None:
    """Take the lease; of one that is there, wait until it is renewed or stale."""
    before = _renewal(lease)
    if (owner := lease.owner) and not _is_here(owner.hostname):
        LOG.warning(
            "%s: held by process %d on %s; watching for up to %g s whether it still runs", path, owner.pid,
            owner.hostname, LEASE,
        )  # fmt: skip

    def is_renewed() -> bool:
        return before is not None and _renewal(lease) not in (None, before)

    lease.acquire(timeout=LEASE + 2 * RENEWED, poll_interval=min(RENEWED / 2, LEASE / 10), cancel_check=is_renewed)


def _release(lock: FileLock | SoftFileLease) -> None:
    """Release it; where that fails, the lease goes stale and the lock ends with the process."""
    with contextlib.suppress(OSError):
        lock.release()


def _renewal(lease: SoftFileLease) -> float | None:
    """When a lease was last renewed, by the clock of the file system; None where there is none."""
    try:
        return os.lstat(lease.lock_file).st_mtime
    except OSError:
        return None


def _is_fresh(lease: SoftFileLease) -> bool:
    renewed = _renewal(lease)
    return renewed is not None and abs(time.time() - renewed) < LEASE


def _is_here(hostname: str) -> bool:
    return hostname.partition("?")[0] == socket.gethostname()  # filelock adds the container's number space


def _in_use(path: Path, lease: SoftFileLease, remedy: str) -> UsageError:
    owner = lease.owner
    process = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
    return UsageError(path, f"{process} is writing to it", remedy)


def _has_no_locks(error: BaseException) -> bool:
    return isinstance(error, NotImplementedError) or getattr(error, "errno", None) in NO_LOCKS


def _unwritable(path: Path, error: BaseException) -> ConfigError:
    return ConfigError("run directory", path, f"a folder that can be written ({first_line(error)})")


def _lock(path: Path) -> FileLock:
    # A lock of the file's contents by the system (flock), through no link: a link could lead to any file.
    return FileLock(path / LOCK_FILE, blocking=False, fallback_to_soft=False)


def _lease(path: Path, on_compromise: Callable[[LeaseCompromise], None] | None = None) -> SoftFileLease:
    interval = min(RENEWED, LEASE / 3)
    return SoftFileLease(
        path / LEASE_FILE, lease_duration=LEASE, heartbeat_interval=interval, on_compromise=on_compromise
    )
