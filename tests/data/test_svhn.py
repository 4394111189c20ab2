import hashlib
import warnings

import numpy as np
import pytest
import scipy.io
from helpers.official_files import Images, assert_holds, mutations, random_images, refusal
from scipy.io import savemat

from periodic_jax import ConfigError, data
from periodic_jax.data.readers import svhn

DATA = random_images()
pytestmark = pytest.mark.usefixtures("home")


def write_svhn(folder, content: Images):
    """SVHN's files: images last, the digit 0 as label 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, images, labels in (
        ("train_32x32.mat", content.images, content.labels),
        ("test_32x32.mat", content.test_images, content.test_labels),
    ):
        digits = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        savemat(folder / name, {"X": images.transpose(1, 2, 3, 0), "y": digits}, do_compression=True)
    return folder


def publish(monkeypatch, folder):
    """Let the files' checksums be the published ones."""
    for name in svhn.FILES:
        monkeypatch.setitem(svhn.SHA256, name, hashlib.sha256((folder / name).read_bytes()).hexdigest())


def test_svhn_is_read_with_its_0_as_class_0(tmp_path, monkeypatch):
    publish(monkeypatch, write_svhn(tmp_path / "svhn", DATA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = data.load("svhn", data_dir=tmp_path)
    assert_holds(dataset, DATA)
    assert dataset.num_classes == 10
    (tmp_path / "svhn" / "test_32x32.mat").unlink()
    with pytest.raises(ConfigError, match=r"test_32x32.mat: no such file; expected an existing file"):
        data.load("svhn", data_dir=tmp_path)


def test_only_the_published_files_reach_scipy(tmp_path, monkeypatch):
    """Its reader crashes the process on some corrupted files."""
    content = random_images(2, 2, 2)
    path = write_svhn(tmp_path, content) / "train_32x32.mat"
    with pytest.raises(
        ConfigError, match=r"train_32x32.mat: SHA-256 [0-9a-f]{64}; expected the official file, SHA-256 435e"
    ):
        data.load("svhn", data_dir=tmp_path)
    publish(monkeypatch, tmp_path)
    official, read = path.read_bytes(), []

    def loadmat(file, **options):
        read.append(file.name)
        return original(file, **options)

    original = scipy.io.loadmat
    monkeypatch.setattr(scipy.io, "loadmat", loadmat)
    for corrupted in mutations(official, 150, seed=3):
        path.write_bytes(corrupted)
        said = refusal(svhn.read, tmp_path)
        assert corrupted == official or ("SHA-256" in said and "\n" not in said)
    assert len(read) < 10  # of mutations that change nothing
    read.clear()
    path.write_bytes(official)
    np.testing.assert_array_equal(svhn.read(tmp_path).images, content.images)
    assert read == [str(tmp_path / name) for name in svhn.FILES]
