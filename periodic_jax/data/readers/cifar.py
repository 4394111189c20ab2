"""CIFAR's official Python archives: a folder of pickled batches, or the ``.tar.gz`` of it.

They are read by `unpickle`, which executes nothing, and an archive only if its checksum is the published one.
"""

import hashlib
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from periodic_jax.core.errors import DataFileError
from periodic_jax.data.dataset import Arrays
from periodic_jax.data.locations import Place
from periodic_jax.data.readers._pickle import unpickle

LARGEST = 2**29  # bytes; the official files have up to 155 million


class Layout(NamedTuple):
    """Names in an official archive."""

    folder: str
    archive: str
    md5: str  # published beside the archive
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: str
    num_classes: int

    def files(self, folder: Path) -> list[Path]:
        """The batches in a folder."""
        return [folder / part for part in self.train + self.test]


LAYOUTS = {
    "cifar10": Layout(
        "cifar-10-batches-py", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a",
        tuple(f"data_batch_{k}" for k in range(1, 6)), ("test_batch",), "labels", 10,
    ),
    "cifar100": Layout(
        "cifar-100-python", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85", ("train",), ("test",),
        "fine_labels", 100,
    ),
}  # fmt: skip


def find_places(name: str, root: Path) -> list[Place]:
    """Where in a folder the batches or their archive may be; the folder may itself be one of them."""
    layout = LAYOUTS[name]
    if root.is_file():
        return [Place(root, [root], partial(read_archive, name, root))]
    is_batches = root.name == layout.folder or (root / layout.train[0]).is_file()
    folders = [root] * is_batches + [root / layout.folder]
    unpacked = [Place(folder, layout.files(folder), partial(read_folder, name, folder)) for folder in folders]
    archive = root / layout.archive
    return [*unpacked, Place(archive, [archive], partial(read_archive, name, archive))]


def read_folder(name: str, folder: Path) -> Arrays:
    """Read an unpacked archive.

    Args:
        name: a key of `LAYOUTS`.
        folder: with the batches in it.

    Returns:
        The images and labels, in the archive's order.

    Raises:
        DataFileError: a missing, corrupted or foreign file.
    """
    layout = LAYOUTS[name]
    files = [path for path in layout.files(folder) if path.is_file()]
    for path in files:
        if (size := path.stat().st_size) > LARGEST:
            raise DataFileError(path, f"{size} bytes", "a batch of CIFAR")
    return _assembled(layout, {path.name: path.read_bytes() for path in files}, folder)


def read_archive(name: str, path: Path) -> Arrays:
    """Read a ``.tar.gz``, whose checksum must be the published one.

    Args:
        name: a key of `LAYOUTS`.
        path: of the archive.

    Returns:
        The images and labels, in the archive's order.

    Raises:
        DataFileError: another checksum, or a member that is missing, corrupted or foreign.
    """
    layout = LAYOUTS[name]
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != layout.md5:
        expected = f"the official {layout.archive}, MD5 {layout.md5}; a copy of one's own is read when unpacked"
        raise DataFileError(path, f"MD5 sum {md5}", expected)
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                part = Path(member.name).name
                if member.isfile() and part in layout.train + layout.test and member.size <= LARGEST:
                    file = archive.extractfile(member)
                    contents[part] = file.read() if file else b""
    except Exception as error:  # whatever a corrupted archive makes gzip, zlib and tarfile raise
        raise DataFileError(path, f"corrupted ({type(error).__name__})", f"the official {layout.archive}") from None
    return _assembled(layout, contents, path)


def _assembled(layout: Layout, contents: dict[str, bytes], source: Path) -> Arrays:
    def joined(parts: Iterable[str]) -> list[np.ndarray]:
        batches = [_batch(contents[part], layout, source / part) for part in parts]
        return [np.concatenate(column) for column in zip(*batches, strict=True)]

    for part in layout.train + layout.test:
        if part not in contents:
            raise DataFileError(source, f"no file {part}", ", ".join(layout.train + layout.test))
    return Arrays(*joined(layout.train), *joined(layout.test))


def _batch(content: bytes, layout: Layout, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(count, 32, 32, 3)`` and labels of one pickled batch."""
    batch = unpickle(content, path)
    if not isinstance(batch, dict):
        raise DataFileError(path, "no dictionary", f"a batch with data and {layout.labels}")
    named = {key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = named.get("data"), named.get(layout.labels)
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        keys = ", ".join(sorted(named)) or "none"
        raise DataFileError(path, f"keys {keys}", f"arrays data and lists {layout.labels}")
    if data.ndim != 2 or data.shape[1] != 3072 or not len(data):
        raise DataFileError(path, f"data {data.shape}", "data (count, 3072), at least one image")
    if len(labels) != len(data) or not all(type(label) is int and 0 <= label < layout.num_classes for label in labels):
        expected = f"one from 0 to {layout.num_classes - 1} for each of {len(data)} images"
        raise DataFileError(path, f"{len(labels)} {layout.labels}, or some outside the classes,", expected)
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int32)
