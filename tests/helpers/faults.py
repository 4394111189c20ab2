"""A file system that fails at a chosen operation, for the files of one folder: as a killed process sees it, or with an
error. And one compiled sweep for many runs of the same settings, so that each takes a fraction of a second.
"""

import asyncio
import builtins
import contextlib
import io
import os
import threading
from pathlib import Path

from zarr.core.sync import sync

from periodic_jax.runs import build

NAMES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "fsync", "link")


class Killed(BaseException):
    """In the place of SIGKILL: from here on, no operation on the folder is carried out."""


class FaultyFiles:
    """Within a ``with`` block, counts the operations that change a folder, and fails at one of them.

    Args:
        folder: only what is below it counts.
        at: the number of the operation that fails; none, if it is negative.
        error: the errno; None: a kill.
        once: later operations work again.
    """

    def __init__(self, folder, at=-1, error=None, *, once=False):
        self.folder, self.at, self.error, self.once = os.fspath(folder), at, error, once
        self.count, self.operations, self._lock = 0, [], threading.Lock()

    def __enter__(self):
        self._undo = contextlib.ExitStack()
        for name in NAMES:
            self._patch(os, name, self._counting(getattr(os, name), name))
        self._patch(os, "open", self._opening_descriptor(os.open))
        opened = self._opening_file(io.open)
        self._patch(io, "open", opened)
        self._patch(builtins, "open", opened)
        return self

    def __exit__(self, *_):
        self._undo.close()

    def _patch(self, module, name, new):
        self._undo.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, new)

    def concerns(self, path):
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        return os.fsdecode(path).startswith(self.folder)

    def step(self, name):
        """Count one operation; raises where it is to fail."""
        with self._lock:
            number, self.count = self.count, self.count + 1
            self.operations.append(name)
        if self.at < 0 or number < self.at or (self.once and number > self.at):
            return
        if self.error is None:
            raise Killed
        if number == self.at or name in ("write", "open", "mkdir", "fsync"):  # a full disk can still remove
            raise OSError(self.error, os.strerror(self.error))

    def _counting(self, operation, name):
        def counted(path, *args, dir_fd=None, **kwargs):
            where = path if dir_fd is None else f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{path}"
            if self.concerns(where):
                self.step(name)
            return operation(path, *args, **({} if dir_fd is None else {"dir_fd": dir_fd}), **kwargs)

        return counted

    def _opening_descriptor(self, operation):
        def opened(path, flags, *args, **kwargs):
            if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) and kwargs.get("dir_fd") is None and self.concerns(path):
                self.step("open")
            return operation(path, flags, *args, **kwargs)

        return opened

    def _opening_file(self, operation):
        def opened(path, mode="r", *args, **kwargs):
            if isinstance(path, int) or not set(mode) & set("wax+") or not self.concerns(path):
                return operation(path, mode, *args, **kwargs)
            self.step("open")
            return _File(operation(path, mode, *args, **kwargs), self)

        return opened


class _File:
    """An open file whose writing and closing count. A write that fails has written half."""

    def __init__(self, file, faulty):
        self._file, self._faulty = file, faulty

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, content):
        try:
            self._faulty.step("write")
        except BaseException:
            self._file.write(content[: len(content) // 2])
            raise
        return self._file.write(content)

    def close(self):
        if not self._file.closed:
            self._file.close()
            self._faulty.step("close")


def wait_for_zarr():
    """Return when zarr's threads write no more: where one task fails, the others are still at it."""

    async def others():
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)

    sync(others())


@contextlib.contextmanager
def one_sweep():
    """Within the block, all runs train the sweep of the first, from its initial states. They must be of one grid."""
    real, made = build.build_sweep, []

    def build_sweep(config):
        if not made:
            made.append(real(config).compile())
        (sweep,) = made
        sweep._states, sweep.step, sweep.stopped = sweep._initialise(sweep.initial_seeds), 0, 0
        return sweep

    build.build_sweep = build_sweep
    try:
        yield
    finally:
        build.build_sweep = real


def tree(folder):
    """The content of all files, by name, but for the lock."""
    files = (file for file in Path(folder).rglob("*") if file.is_file() and file.name not in (".lock", ".lease"))
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def failing(patch, name, number):
    """Reading one file fails, as on a network's file system whose server went away."""
    read = Path.read_bytes

    def fails(path):
        if path.as_posix().endswith(name):
            raise OSError(number, os.strerror(number), os.fspath(path))
        return read(path)

    patch.setattr(Path, "read_bytes", fails)
