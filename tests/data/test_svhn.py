import io
import warnings

import numpy as np
import pytest
from helpers.official_files import Images, assert_holds, mutations, random_images, refusal
from scipy.io import savemat

from periodic_jax import ConfigError, data
from periodic_jax.data.readers import svhn
from periodic_jax.data.readers._matlab import read_matlab

DATA = random_images()
pytestmark = pytest.mark.usefixtures("home")


def write_svhn(folder, content: Images, **changes):
    """SVHN's files: images last, the digit 0 as label 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (
        ("train_32x32.mat", content.images, content.labels),
        ("test_32x32.mat", content.test_images, content.test_labels),
    ):
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        arrays = {"X": images.transpose(1, 2, 3, 0), "y": digits, **changes}
        savemat(folder / name, arrays, do_compression=True)
    return folder


def test_svhn_is_read_with_its_0_as_class_0(tmp_path):
    write_svhn(tmp_path / "svhn", DATA)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = data.load("svhn", data_dir=tmp_path)
    assert_holds(dataset, DATA)
    assert dataset.num_classes == 10
    (tmp_path / "svhn" / "test_32x32.mat").unlink()
    with pytest.raises(ConfigError, match=r"test_32x32.mat: no such file; expected an existing file"):
        data.load("svhn", data_dir=tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "f4", "f8"])
def test_matlab_arrays_are_those_that_scipy_wrote(tmp_path, compressed, dtype):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(0, 99, (3, 4, 5)).astype(dtype),
        "b": np.array([[1, 2]], dtype),
        "other": np.array([{}]),
    }
    savemat(tmp_path / "x.mat", arrays, do_compression=compressed)
    read = read_matlab(tmp_path / "x.mat", ("a", "b"))
    assert read.keys() == {"a", "b"}
    for name, array in read.items():
        assert array.dtype == dtype
        assert np.array_equal(array, arrays[name])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"X": np.full((32, 32, 3, 10), 0.5)}, "X float64"),
        ({"X": np.zeros((32, 32, 4), np.uint8)}, "X uint8 (32, 32, 4)"),
        ({"y": np.zeros((3, 1), np.uint8)}, "y (3, 1)"),
        ({"y": np.array([["x"]])}, "y is no array of real numbers"),
        ({"y": np.array([[{}]])}, "y is no array of real numbers"),
        ({"y": np.full((10, 1), 1j)}, "y is no array of real numbers"),
        ({"y": np.zeros((0, 1))}, "y (0, 1)"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[0], [1]], np.uint8)}, "label 0"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [11]], np.uint8)}, "label 11"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [np.nan]])}, "label nan"),
    ],
)
def test_other_matlab_files_are_refused(tmp_path, changes, named):
    write_svhn(tmp_path, DATA, **changes)
    with pytest.raises(ConfigError) as caught:
        data.load("svhn", data_dir=tmp_path)
    assert named in str(caught.value)
    assert str(tmp_path / "train_32x32.mat") in str(caught.value)


def test_damaged_matlab_files_give_clean_errors(tmp_path):
    path = write_svhn(tmp_path, random_images(2, 2, 2)) / "train_32x32.mat"
    plain = {"X": DATA.images[:2].transpose(1, 2, 3, 0), "y": np.array([[1], [2]], np.uint8)}
    compressed, stream = path.read_bytes(), io.BytesIO()
    savemat(stream, plain)
    refused = 0
    for whole in (compressed, stream.getvalue()):
        for damaged in mutations(whole, 150, seed=3, keep=slice(300, -100)):
            path.write_bytes(damaged)
            said = refusal(svhn.read, tmp_path)
            refused += bool(said)
            assert "\n" not in said
    assert refused > 100
