"""The errors that tell a user what to do next. Each is one printable line."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class PeriodicJaxError(Exception):
    """Something that a user can put right: what happened, to what, and what to do next.

    Attributes:
        status: the exit status of the command that ends by it.
    """

    status = 2
    template = "{}"  # of the message, for the arguments in order

    def __str__(self) -> str:
        shown = [f"{value:.15g}" if isinstance(value, float) else str(value) for value in self.args]
        # Values and names of files may hold line breaks or terminal codes: as escapes they stay on one harmless line.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in self.template.format(*shown))


class ConfigError(PeriodicJaxError, ValueError):
    """A setting that cannot be used.

    Args:
        argument: the setting as the user knows it, e.g. ``--lr``.
        value: what was given.
        accepted: what would be accepted.

    Example:
        >>> str(ConfigError("--width", 0, "a whole number from 1"))
        '--width: 0 is not accepted; expected a whole number from 1'
    """

    template = "{}: {} is not accepted; expected {}"

    def __init__(self, argument: object, value: object, accepted: str) -> None:
        self.argument, self.value, self.accepted = argument, value, accepted
        super().__init__(argument, value, accepted)


class UsageError(ConfigError):
    """Something that is missing, unknown, or does not go with something else: what, why, and what to do next.

    Example:
        >>> str(UsageError("--augment", "does not go with --full-batch", "leave one of the two out"))
        '--augment: does not go with --full-batch; leave one of the two out'
    """

    template = "{}: {}; {}"


class DataFileError(ConfigError):
    """A file that was given as a data set and is none: the file, what is wrong with it, what is expected.

    Example:
        >>> str(DataFileError("x.npz", "no array labels", "images and labels"))
        'data file x.npz: no array labels; expected images and labels'
    """

    template = "data file {}: {}; expected {}"


class _FileError(PeriodicJaxError):
    """A file or folder, what is wrong with it, and what to do next."""

    template = "{}: {}; {}"

    def __init__(self, file: object, reason: str, remedy: str) -> None:
        self.file, self.reason, self.remedy = file, reason, remedy
        super().__init__(file, reason, remedy)


class RunNotFoundError(_FileError):
    """There is no run, or not that part of it: where, why, and what to do.

    Example:
        >>> str(RunNotFoundError("runs/a", "no config.json", "give the folder of a run"))
        'runs/a: no config.json; give the folder of a run'
    """


class CorruptedRunError(_FileError):
    """A file of a run is not what was written: which, why, and what to do.

    Example:
        >>> str(CorruptedRunError("runs/a/config.json", "its checksum is another one", "restore it from a copy"))
        'runs/a/config.json: corrupted (its checksum is another one); restore it from a copy'
    """

    template = "{}: corrupted ({}); {}"


class UnreadableError(_FileError):
    """A file of a run cannot be read now, which says nothing about what it holds: which, why, and what to do.

    Example:
        >>> str(UnreadableError("runs/a/config.json", "Stale file handle"))
        'runs/a/config.json: cannot be read now (Stale file handle); try again when its file system answers'
    """

    status = 1
    template = "{}: cannot be read now ({}); {}"

    def __init__(self, file: object, reason: str, remedy: str = "try again when its file system answers") -> None:
        super().__init__(file, reason, remedy)


class UnwritableError(_FileError):
    """A result could not be written; what was there before is unchanged: where, why, and what to do."""

    def __init__(self, file: object, reason: object, remedy: str = "what was there is unchanged") -> None:
        super().__init__(file, f"not written ({reason})", remedy)


class MissingDependencyError(PeriodicJaxError):
    """A package is not installed, or not in a version that will do.

    Args:
        purpose: what needs it.
        package: what is needed.
        install: what to give to pip.

    Example:
        >>> str(MissingDependencyError("the report", "plotly", "periodic_jax[report]"))
        "the report needs plotly, which is not installed: python -m pip install 'periodic_jax[report]'"
    """

    template = "{} needs {}, which is not installed: python -m pip install '{}'"

    def __init__(self, purpose: str, package: str, install: str) -> None:
        super().__init__(purpose, package, install)


class RunInterrupted(PeriodicJaxError):
    """A run ended before its last step; all up to its last checkpoint is kept.

    Args:
        message: why, and how to go on.
        status: what the command exits with.
    """

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message, status)


def first_line(error: BaseException) -> str:
    """Why an error was raised, in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return text.partition("\n")[0][:200] or type(error).__name__


# What the system says of a name that is wrong, and not of a disk or a network that fails.
_OF_THE_NAME = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}


def failed_read(error: BaseException) -> str | None:
    """What the system says where it could not read; None for any other error, also for a file that is not there.

    Example:
        >>> failed_read(OSError(5, "Input/output error")), failed_read(FileNotFoundError(2, "No such file"))
        ('Input/output error', None)
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (told := re.search(r"\[OS error (\d+)", str(error))):  # so does tensorstore
        number = int(told[1])
    return None if number is None or number in _OF_THE_NAME else os.strerror(number)


@contextlib.contextmanager
def as_corruption(file: object, remedy: str) -> Iterator[None]:
    """Whatever a library raises within the block is corruption of a file, which may come from a stranger.

    Args:
        file: the file or folder that is read.
        remedy: what to do.

    Raises:
        UnreadableError: the system could not read.
        CorruptedRunError: any other error than those of this module was raised, and no file's content can be the
            reason of a missing name or module.
    """
    try:
        yield
    except (PeriodicJaxError, NameError, ImportError):
        raise
    except Exception as error:
        if reason := failed_read(error):
            raise UnreadableError(file, reason) from None
        raise CorruptedRunError(file, first_line(error), remedy) from None
