"""SVHN's official MATLAB files, train_32x32.mat and test_32x32.mat."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np

from periodic_jax.core.errors import DataFileError
from periodic_jax.data.dataset import Arrays
from periodic_jax.data.locations import Place

# As TFDS publishes them. A corrupted file can crash SciPy's reader, hence only the official ones reach it.
SHA256 = {
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}
FILES = tuple(SHA256)


def find_places(root: Path) -> list[Place]:
    """Where in a folder the two files may be."""
    files = [root / name for name in FILES]
    return [Place(files[0], files, partial(read, root))]


def read(folder: Path) -> Arrays:
    """Read both files.

    Args:
        folder: with the files in it.

    Returns:
        The images and labels; the digit 0, labelled 10 in the files, is class 0.

    Raises:
        DataFileError: a missing file, or one with another checksum than the official one.
    """
    train, test = (_read(folder / name) for name in FILES)
    return Arrays(*train, *test)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat

    if not path.is_file():
        raise DataFileError(path, "no such file", "an existing file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != SHA256[path.name]:
            expected = f"the official file, SHA-256 {SHA256[path.name]}; images of your own go into an npz file"
            raise DataFileError(path, f"SHA-256 {digest}", expected)
        file.seek(0)
        content = loadmat(file, variable_names=("X", "y"))
    return content["X"].transpose(3, 0, 1, 2), content["y"].ravel() % 10
