"""SVHN's official MATLAB files, train_32x32.mat and test_32x32.mat."""

import warnings
from pathlib import Path

import numpy as np

from periodic_jax.data.dataset import Arrays, checked, refusal
from periodic_jax.data.places import Place
from periodic_jax.errors import ConfigError

FILES = ("train_32x32.mat", "test_32x32.mat")
SHAPE = (32, 32, 3)


def places(root: Path) -> list[Place]:
    """Where in a folder the two files may be."""
    files = [root / name for name in FILES]
    return [Place(files[0], lambda: files, lambda: read(root))]


def read(folder: Path) -> Arrays:
    """Read both files.

    Args:
        folder: with the files in it.

    Returns:
        The images and labels; the digit 0, labelled 10 in the files, is class 0.

    Raises:
        ConfigError: a missing, damaged or foreign file.
    """
    train, test = (_read(folder / name) for name in FILES)
    return checked(Arrays(*train, *test), folder, 10, SHAPE)


def _read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from scipy.io import loadmat, whosmat

    if not path.is_file():
        raise ConfigError("data file", path, "an existing file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # The header is looked at first, so that nothing large or nested is built from a foreign file.
            kinds = {name: (shape, kind) for name, shape, kind in whosmat(path, appendmat=False)}
            (shape, kind), (label_shape, label_kind) = kinds.get("X", ((), "no X")), kinds.get("y", ((), "no y"))
            if kind != "uint8" or len(shape) != 4 or shape[:3] != SHAPE:
                raise refusal(path, f"X {kind} {shape}", "uint8 X (32, 32, 3, count)")
            if label_kind not in ("uint8", "double") or label_shape != (shape[3], 1):
                raise refusal(path, f"y {label_kind} {label_shape}", f"y ({shape[3]}, 1)")
            content = loadmat(path, appendmat=False, variable_names=["X", "y"])
        images, labels = np.asarray(content["X"]).transpose(3, 0, 1, 2), np.asarray(content["y"])[:, 0]
        wrong = labels[~np.isin(labels, np.arange(1, 11))]
    except ConfigError:
        raise
    except Exception as error:  # whatever a damaged file makes SciPy raise
        raise refusal(path, f"damage ({type(error).__name__})", "a MATLAB 5 file of uint8 X and y") from None
    if len(wrong):
        raise refusal(path, f"label {wrong[0]}", "labels from 1 to 10")
    return images, labels.astype(np.int32) % 10
