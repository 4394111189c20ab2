"""The run directory: telemetry of every step as zarr arrays with names, coordinates and units, opened as an xarray
Dataset.

    DIR/config.json      resolved configuration, versions, command, hardware, and when the run has ended the summary
                         and the checksums of its telemetry
       /telemetry.zarr   zarr v3 group, dims (config, step) and (config, eval_step), NaN where nothing was reached
       /checkpoints/     see `checkpoints.reader`
       /minima/          see `storage.minima_files`

No pickle and no code is ever read from a run directory.
"""

import contextlib
import errno
import itertools
import os
import reprlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from periodic_jax.core.errors import (
    ConfigError,
    CorruptedRunError,
    RunNotFoundError,
    UnreadableError,
    as_corruption,
    failed_read,
    first_line,
)
from periodic_jax.core.files import find_foreign_file, read_json, write_json
from periodic_jax.core.limits import MOST_STEPS
from periodic_jax.storage.checksums import SEAL, TelemetryChecksums, is_checksummed, seal
from periodic_jax.storage.schema import FORMAT

CONFIG_FILE = "config.json"
TELEMETRY = "telemetry.zarr"
SUMMARY_FILE = "summary.csv"
CHECKPOINTS = "checkpoints"
CHECKSUMS = "checksums.json"  # the last file of a checkpoint to be written
RECORD = "telemetry.json"  # in a checkpoint: the run's id, and `storage.checksums.TelemetryChecksums`
ANALYSIS = "analysis.nc"
LANDSCAPE = "landscape.nc"
MINIMA = "minima"
COMPARISON = "minima.nc"
SHARDS_FILE, SHARDS = "shards.json", "shards"  # see `storage.shards`
BRANCH = "branch_step="  # before the step, in the names of run directories of branches from several checkpoints
OWN_FILES = (
    CONFIG_FILE, TELEMETRY, CHECKPOINTS, "figures", "report.html", SUMMARY_FILE, ANALYSIS, LANDSCAPE, MINIMA,
    COMPARISON,
)  # fmt: skip
# What to do about it.
GIVE = "give the folder of a run"
RESTORE = "restore it from a copy, or remove the run's folder and train it again"
# What config.json holds beside its format, where it holds it.
KINDS = {
    "id": str, "config": dict, "data": dict, "parent": dict, "summary": dict, "telemetry": dict, "sessions": list,
    "ends": list, "command": list,
}  # fmt: skip


def default_folders(name: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, runs/NAME-3 ..., the folders of runs that were given none."""
    return (Path("runs", name if k == 1 else f"{name}-{k}") for k in itertools.count(1))


def free_folder(name: str) -> str:
    """The first of `default_folders` that does not exist."""
    return next(str(folder) for folder in default_folders(name) if not folder.exists())


def branch_folder(path: Path, step: int) -> Path:
    """The run directory of one of several branches that begin at different steps."""
    return path / f"{BRANCH}{step}"


def branch_folders(path: Path) -> dict[int, Path]:
    """The run directories of several branches, by the step at which they begin; none where a folder is a run itself."""
    if not os.path.isdir(path) or (path / CONFIG_FILE).exists():  # the former is false of a path that cannot be
        return {}
    names = [folder.name.removeprefix(BRANCH) for folder in sorted(path.glob(f"{BRANCH}*"))]
    return {step: branch_folder(path, step) for step in sorted(int(name) for name in names if name.isdecimal())}


def is_sharded(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a grid that was cut into shards."""
    try:
        return (Path(path) / SHARDS_FILE).exists()
    except (OSError, ValueError):
        return False


def check_encoding(argument: str, path: str | os.PathLike[str]) -> None:
    """Refuse a path that is not UTF-8, such as one from a system that wrote Latin-1: checkpoints and results can
    neither be written nor read there.

    Args:
        argument: what the path was given as.
        path: of a run directory, which need not exist.

    Raises:
        ConfigError: it is not.
    """
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(argument, path, "a path in UTF-8: rename the folder, or go through a link") from None


def check_unused(path: Path, taken_by: Iterable[str] = (*OWN_FILES, SHARDS_FILE)) -> None:
    """Refuse a run directory that is taken.

    Args:
        path: the folder, which need not exist.
        taken_by: the entries of which there must be none.

    Raises:
        ConfigError: it holds a run already, is not a folder, or has a name that no folder can have.
    """
    try:
        file, taken = path.exists() and not path.is_dir(), any((path / name).exists() for name in taken_by)
    except OSError as error:
        raise ConfigError("--out", path, f"a folder that can be read ({error.strerror})") from None
    if file:
        raise ConfigError("--out", path, "a folder, not a file")
    if taken:
        resumable = (path / CONFIG_FILE).exists()
        more = f" (periodic-jax resume {path} goes on with the one there)" if resumable else ""
        more = " (--shards goes on with the grid there)" if is_sharded(path) else more
        raise ConfigError("--out", path, f"a folder that holds no run yet{more}")


def claim_directory(path: Path, taken_by: Iterable[str] = (*OWN_FILES, SHARDS_FILE)) -> None:
    """Create a run's folder.

    Args:
        path, taken_by: as for `check_unused`.

    Raises:
        ConfigError: it holds a run already, is not a folder, or cannot be written.
    """
    check_unused(path, taken_by)
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, ValueError) as error:  # a ValueError for a null character in the name
        raise ConfigError("--out", path, f"a folder that can be written ({first_line(error)})") from None


def write_config(path: Path, record: Mapping[str, Any]) -> None:
    """Write a run's config.json, with a checksum."""
    write_json(path / CONFIG_FILE, seal(record))


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of a run's config.json.

    Raises:
        ConfigError: the path is not UTF-8.
        RunNotFoundError: there is no run.
        CorruptedRunError: its config.json is corrupted, or there are links among its files, which could lead out of it.
        UnreadableError: it cannot be read now.
    """
    check_encoding("run directory", path)
    file = Path(path) / CONFIG_FILE
    if strange := find_foreign_file(Path(path), (n + ending for n in OWN_FILES for ending in ("", ".partial"))):
        reason = "it is no plain file or folder, and a link could lead anywhere"
        raise CorruptedRunError(strange, reason, "replace it by what it should be")
    try:
        content = read_json(file)
    except OSError as error:
        if failed := failed_read(error):
            raise UnreadableError(file, failed) from None
        if is_sharded(path):
            remedy = f"the sweep's command goes on with it; or give a shard, such as {path}/{SHARDS}/0"
            raise RunNotFoundError(path, "it holds a grid in shards", remedy) from None
        if error.errno == errno.ENOENT and (branches := branch_folders(Path(path))):
            one = next(iter(branches.values()))
            raise RunNotFoundError(path, "it holds branches from several checkpoints", f"give one: {one}") from None
        if error.errno == errno.ENOENT and (Path(path) / SHARDS).is_dir():
            raise RunNotFoundError(path, f"there is no {SHARDS_FILE}", "give the sweep's command again") from None
        absent = f"there is no {CONFIG_FILE}" if os.path.isdir(path) else "there is no such folder"
        reason = {errno.ENOENT: absent, errno.ENOTDIR: "it is a file"}.get(error.errno or 0)
        raise RunNotFoundError(Path(path), reason or f"it cannot be read ({error.strerror})", GIVE) from None
    except (ValueError, RecursionError) as error:
        if not Path(path).is_dir():  # a null character in the name
            raise RunNotFoundError(path, str(error), GIVE) from None
        raise CorruptedRunError(file, f"no readable JSON: {error}", RESTORE) from None
    if reason := manifest_error(content):
        raise CorruptedRunError(file, reason, RESTORE)
    others = list(_other_checkpoints(Path(path), content.get("id")))
    if others and None not in others:
        reason = f"it is of another run than {CHECKPOINTS}/{others[0]}"
        raise CorruptedRunError(file, reason, "restore the one of the two that was replaced")
    return {key: value for key, value in content.items() if key != SEAL}


def first_step(record: Mapping[str, Any]) -> int:
    """The first step that a run recorded, from its config.json; not 0 for a branch."""
    return record.get("parent", {}).get("step", 0)


def manifest_error(content: Any) -> str | None:
    """What the content of a config.json has that no run writes there, in words; None for a genuine one."""
    if not isinstance(content, dict):
        return f"it is no JSON object but {reprlib.repr(content)}"
    if missing := [name for name in ("format", SEAL) if name not in content]:
        return f"it has no {' and no '.join(missing)}"
    if not is_checksummed(content):
        return "its checksum is another one"
    if content["format"] != FORMAT:
        return f"its format is {reprlib.repr(content['format'])}, and {FORMAT} is what this version reads"
    for name, kind in KINDS.items():
        if not isinstance(content.get(name, kind()), kind):
            return f"its {name} is {reprlib.repr(content[name])}, which is no {'object' if kind is dict else 'list'}"
    try:
        if "telemetry" in content:
            TelemetryChecksums.from_json(content["telemetry"])
    except (ValueError, LookupError, TypeError) as error:
        return f"its telemetry is {reprlib.repr(content['telemetry'])} ({first_line(error)})"
    for step in (*content.get("ends", ()), content.get("parent", {}).get("step", 0)):
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            return f"it names step {reprlib.repr(step)}"
    return None


def checkpoint_steps(path: Path) -> list[int]:
    """The steps of a run's complete checkpoints, ascending.

    Raises:
        UnreadableError: the folder cannot be read now, which must not be taken for a run without checkpoints.
    """
    folder = path / CHECKPOINTS
    try:
        names = [name for name in os.listdir(folder) if name.isdecimal()] if folder.is_dir() else []
        return sorted(int(name) for name in names if (folder / name / CHECKSUMS).exists())
    except OSError as error:
        raise UnreadableError(folder, failed_read(error) or first_line(error)) from None


def checkpoint_record(path: Path, step: int) -> dict[str, Any] | None:
    """What a checkpoint says of its run and of the telemetry by then; None where it does not, or not as it was written.

    Args:
        path: the run directory.
        step: of the checkpoint.

    Raises:
        UnreadableError: it cannot be read now.
    """
    folder = path / CHECKPOINTS / str(step)
    try:
        sealed, content = read_json(folder / CHECKSUMS), read_json(folder / RECORD)
        is_right = is_checksummed(sealed) and sealed.get(RECORD) == zlib.crc32((folder / RECORD).read_bytes())
    except OSError as error:
        if failed := failed_read(error):
            raise UnreadableError(folder, failed) from None
        return None
    except (ValueError, TypeError, RecursionError):
        return None
    return content if is_right and isinstance(content, dict) else None


def recorded_id(path: Path) -> str | None:
    """The id of a run, by which files of another are told; None in runs of earlier versions."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        return read_json(path / CONFIG_FILE).get("id")
    return None


def run_of_checkpoint(path: Path, step: int) -> str | None:
    """The id of the run that a checkpoint is of; None where it does not tell.

    Args:
        path, step: as for `checkpoint_record`.
    """
    return (checkpoint_record(path, step) or {}).get("run")


def _other_checkpoints(path: Path, run_id: str | None) -> Iterator[int | None]:
    """The steps of checkpoints of another run, from the newest on; None, and no more, where one is of this run."""
    for step in reversed(checkpoint_steps(path)):
        if (found := run_of_checkpoint(path, step)) is not None:
            yield None if found == run_id else step
            if found == run_id:
                return


def recorded_checksums(path: Path, record: Mapping[str, Any], step: int) -> TelemetryChecksums | None:
    """What a run's telemetry held after so many updates; None where that is not recorded, as earlier versions did not.

    Args:
        path: the run directory.
        record: the content of its config.json, which has it of a finished run.
        step: of a checkpoint, or of the run's end.

    Raises:
        CorruptedRunError: it is no such record.
        UnreadableError: it cannot be read now.
    """
    content = record.get("telemetry") if "summary" in record else checkpoint_record(path, step)
    if not content:
        return None
    with as_corruption(path / CHECKPOINTS / str(step) / RECORD, RESTORE):
        checksums = TelemetryChecksums.from_json(content)
    return checksums if checksums.step == step else None


def reached(path: Path, record: Mapping[str, Any]) -> int:
    """The step up to which all telemetry must be there: of the last checkpoint, or of a finished run's end."""
    steps = record.get("config", {}).get("steps")
    planned = steps if type(steps) is int else MOST_STEPS
    if "summary" in record and planned < MOST_STEPS:
        return planned
    return max((step for step in checkpoint_steps(path) if step <= planned), default=first_step(record))


def steps_per_epoch(path: str | Path) -> int | None:
    """Updates of one epoch of a run, from its config.json; None where that lacks the numbers."""
    shards = sorted((Path(path) / SHARDS).glob(f"*/{CONFIG_FILE}"))  # of a grid in shards, any of them tells
    record = read_config(shards[0].parent if shards else path)
    data, config = record.get("data", {}), record.get("config", {})
    if config.get("full_batch") is True:
        return 1
    images, batch = data.get("train_images"), config.get("batch_size")
    if not (isinstance(images, int) and isinstance(batch, int) and images > 0 and batch > 0):
        return None
    return max(images // batch, 1)
