"""The data sets by name, and where they are found."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from periodic_jax.core.errors import ConfigError, DataFileError, UsageError
from periodic_jax.data.cache import cached
from periodic_jax.data.dataset import CIFAR_MEAN, CIFAR_STD, Dataset, checked
from periodic_jax.data.locations import Place, folders, home
from periodic_jax.data.readers import cifar, svhn, tfds
from periodic_jax.data.readers.builtin import load_digits, load_synthetic
from periodic_jax.data.readers.npz import load_npz

CIFAR_PAGE = "(of https://www.cs.toronto.edu/~kriz/cifar.html)"
SVHN_PAGE = "(of http://ufldl.stanford.edu/housenumbers)"


class Where(NamedTuple):
    """Where to look for files."""

    data_dir: Path | None = None  # before the usual folders
    download: bool = False  # fetch with TFDS what is found nowhere


def load_cifar(name: str, where: Where) -> Dataset:
    """``cifar10``: 50,000 + 10,000 photographs of 10 kinds of things, 32x32 in colour; ``cifar100``: of 100 kinds (the
    fine labels).
    """
    layout = cifar.LAYOUTS[name]
    places = [place for root in folders(name, where.data_dir) for place in cifar.find_places(name, root)]
    return _from_disk(name, where, places, f"{layout.folder} or {layout.archive} {CIFAR_PAGE}", layout.num_classes)


def load_svhn(where: Where) -> Dataset:
    """SVHN: 73,257 + 26,032 photographs of house numbers' digits, 32x32 in colour."""
    places = [place for root in folders("svhn", where.data_dir) for place in svhn.find_places(root)]
    return _from_disk("svhn", where, places, f"{' and '.join(svhn.FILES)} {SVHN_PAGE}", 10)


DATASETS: dict[str, Callable[[Where], Dataset]] = {
    "digits": lambda where: load_digits(),
    "cifar10": partial(load_cifar, "cifar10"),
    "cifar100": partial(load_cifar, "cifar100"),
    "svhn": load_svhn,
    "synthetic": lambda where: load_synthetic(),
}


def load(name: str, *, data_dir: str | Path | None = None, download: bool = False) -> Dataset:
    """Read a data set.

    CIFAR and SVHN are looked for in this order, below ``data_dir`` and then in the usual folders: the official files
    (CIFAR: the unpacked folder or the ``.tar.gz``; SVHN: the two ``.mat`` files; also in ``~/datasets/NAME``), a
    data set prepared by TFDS (also in ``~/tensorflow_datasets``), and, only if ``download`` is set, TFDS's download.

    Args:
        name: a key of `DATASETS`, or the path of an npz file; see `npz`.
        data_dir: a folder that holds the files, or a CIFAR ``.tar.gz``.
        download: whether TFDS may use the network.

    Returns:
        The data set.

    Raises:
        ConfigError: an unknown name, or nothing found.
        DataFileError: files that are corrupted or foreign.

    Example:
        >>> load("digits").images.shape
        (1500, 8, 8, 1)
    """
    where = Where(None if data_dir is None else Path(os.path.expanduser(data_dir)), download)
    try:
        if where.data_dir is not None and not where.data_dir.exists() and not download:
            raise ConfigError("--data-dir", data_dir, "an existing folder, or a .tar.gz of CIFAR")
        if name.endswith(".npz"):
            return load_npz(Path(os.path.expanduser(name)))
        if name not in DATASETS:
            raise ConfigError("--dataset", name, f"one of {', '.join(DATASETS)}, or the path of an npz file")
        return DATASETS[name](where)
    except OSError as error:  # a folder that must not be listed, a disk that fails
        reason = f"unreadable ({error.strerror})"
        raise DataFileError(error.filename or name, reason, "a file that can be read") from None


def _from_disk(name: str, where: Where, official: list[Place], files: str, num_classes: int) -> Dataset:
    """The first place that exists; a corrupted one is an error, and not passed over for the next."""
    if where.data_dir is not None and where.data_dir.is_file():
        candidates = official[:1]
    else:
        candidates = [*official, *tfds.find_places(name, where.data_dir)]
    present = next((place for place in candidates if place.path.exists()), None)
    if present is None and where.download:
        tfds.download(name, where.data_dir)
        present = next(place for place in tfds.find_places(name, where.data_dir) if place.path.exists())
    if present is None:
        looked = ", ".join(_short(place.path) for place in candidates)
        raise UsageError(
            "--dataset",
            f"{name} is not on this machine (looked for {looked})",
            f"give --data-dir DIR with {files} in it, or --download to fetch it with TFDS, which needs "
            'python -m pip install "periodic_jax[tfds]"',
        )

    check = partial(checked, source=present.path, num_classes=num_classes, shape=(32, 32, 3))
    arrays = cached(name, present, check)
    return Dataset(name, *arrays, num_classes, CIFAR_MEAN, CIFAR_STD, source=str(present.path))


def _short(path: Path) -> str:
    """With ~ for the home folder."""
    return f"~/{path.relative_to(home())}" if path.is_relative_to(home()) else str(path)
