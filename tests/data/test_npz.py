import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from helpers.official_files import assert_holds, mutations, random_images, refusal

from periodic_jax import ConfigError, data
from periodic_jax.data.readers.npz import load_npz

DATA = random_images()
pytestmark = pytest.mark.usefixtures("home")


NPZ = {"images": DATA.images, "labels": DATA.labels, "test_images": DATA.test_images, "test_labels": DATA.test_labels}


@pytest.mark.parametrize("keras", [False, True])
def test_an_npz_file_is_a_data_set(tmp_path, keras):
    path = tmp_path / "mine.npz"
    names = ("x_train", "y_train", "x_test", "y_test") if keras else NPZ
    arrays = dict(zip(names, NPZ.values(), strict=True))
    if keras:
        arrays["y_train"], arrays["y_test"] = arrays["y_train"][:, None], arrays["y_test"][:, None]
    np.savez(path, **arrays)
    dataset = data.load(str(path))
    assert_holds(dataset, DATA)
    assert dataset.num_classes == 10
    np.testing.assert_allclose(dataset.mean, (DATA.images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, (DATA.images / 255).std((0, 1, 2)), rtol=1e-12)


def test_grey_images_of_an_npz_file_get_a_channel(tmp_path):
    np.savez(tmp_path / "x.npz", **{**NPZ, "images": DATA.images[..., 0], "test_images": DATA.test_images[..., 0]})
    assert data.load(str(tmp_path / "x.npz")).image_shape == (32, 32, 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"images": DATA.images / 255}, "float64 10x32x32x3 images"),
        ({"images": np.full((10, 8, 8, 1), np.nan)}, "some NaN"),
        ({"images": DATA.images[:0], "labels": DATA.labels[:0]}, "0x32x32x3"),
        ({"images": DATA.images[0]}, "uint8 32x32x3"),
        ({"images": np.array([{}])}, "corrupted"),
        ({"labels": DATA.labels[:3]}, "labels"),
        ({"labels": DATA.labels[:0]}, "int64 0 labels"),
        ({"labels": DATA.labels.astype(float)}, "float64 10 labels"),
        ({"labels": np.full(10, np.nan)}, "some NaN"),
        ({"labels": DATA.labels - 1}, "training labels from -1 to 8"),
        ({"labels": np.where(DATA.labels == 9, 255, DATA.labels)}, "training labels from 0 to 255"),
        ({"labels": np.zeros(10, int)}, "training labels from 0 to 0"),
        ({"labels": DATA.labels[:, None]}, "labels"),
        ({"test_labels": DATA.test_labels + 10}, "label 13"),
        ({"test_images": DATA.test_images[:, :16]}, "images 16x32x3"),
        ({"test_images": DATA.test_images[:0], "test_labels": DATA.test_labels[:0]}, "0x32x32x3"),
    ],
)
def test_an_npz_file_that_is_no_data_set_is_refused(tmp_path, change, named):
    path = tmp_path / "mine.npz"
    np.savez(path, **{**NPZ, **change})
    with pytest.raises(ConfigError) as caught:
        data.load(str(path))
    assert named in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_is_no_npz_file_is_refused(tmp_path):
    path = tmp_path / "mine.npz"
    with pytest.raises(ConfigError, match=r"--dataset: .* expected an existing npz file"):
        data.load(str(path))
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"--dataset: .* expected an existing npz file"):
        data.load(str(path))
    path.unlink()
    for content in (b"", b"PK\x03\x04", pickle.dumps(NPZ), b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="corrupted"):
            data.load(str(path))
    np.savez(path, images=DATA.images)
    with pytest.raises(
        ConfigError, match=r"data file .*mine.npz: images; expected arrays images, labels, test_images, test_labels"
    ):
        data.load(str(path))


def test_corrupted_npz_files_give_clean_errors(tmp_path):
    path = tmp_path / "mine.npz"
    small = {name: array[:, :4, :4] if array.ndim == 4 else array for name, array in NPZ.items()}
    np.savez(path, **small)
    plain = path.read_bytes()
    np.savez_compressed(path, **small)
    refused = 0
    for whole in (plain, path.read_bytes()):
        for corrupted in mutations(whole, 200, seed=4):
            path.write_bytes(corrupted)
            said = refusal(load_npz, path)
            refused += bool(said)
            assert "\n" not in said
    assert refused > 200


def test_an_array_said_to_be_huge_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 32, 32, 3)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        for name in NPZ:
            file.writestr(f"{name}.npy", header.getvalue())
    with pytest.raises(ConfigError, match="corrupted"):
        data.load(str(tmp_path / "x.npz"))
