import json
import os
import pickle
import warnings

import numpy as np
import pytest
from helpers.official_files import (
    assert_holds,
    cifar10_files,
    cifar100_files,
    mutations,
    planes,
    python2_pickle,
    random_images,
    refusal,
    write_archive,
    write_folder,
)

from periodic_jax import ConfigError, data
from periodic_jax.data import cache
from periodic_jax.data.readers import cifar

DATA = random_images()
pytestmark = pytest.mark.usefixtures("home")


def test_batches_of_cifar10_are_read_in_their_order(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    dataset = data.load("cifar10", data_dir=tmp_path)
    assert_holds(dataset, DATA)
    assert dataset.num_classes == 10
    assert (dataset.mean, dataset.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    assert dataset.source == str(tmp_path / "cifar-10-batches-py")


def test_cifar100_has_its_fine_labels(tmp_path):
    expected = random_images(classes=100)
    write_folder(tmp_path / "cifar-100-python", cifar100_files(expected))
    dataset = data.load("cifar100", data_dir=tmp_path)
    assert_holds(dataset, expected)
    assert dataset.num_classes == 100


def test_the_folder_itself_and_those_of_torchvision_are_found(tmp_path, home):
    files = cifar10_files(DATA)
    own = write_folder(tmp_path / "a" / "cifar-10-batches-py", files)
    renamed = write_folder(tmp_path / "mine", files)
    below = write_folder(tmp_path / "b" / "cifar10" / "cifar-10-batches-py", files)
    for data_dir, source in ((own, own), (renamed, renamed), (tmp_path / "b", below)):
        assert data.load("cifar10", data_dir=data_dir).source == str(source)
    usual = write_folder(home / "datasets" / "cifar10" / "cifar-10-batches-py", files)
    assert data.load("cifar10").source == str(usual)
    assert data.load("cifar10", data_dir=tmp_path / "a").source == str(own)


def test_a_whole_archive_is_read_if_its_checksum_is_the_published_one(tmp_path, monkeypatch):
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_files(DATA))
    with pytest.raises(ConfigError, match=r"MD5 sum .* expected the official cifar-10-python.tar.gz, MD5 c58f"):
        data.load("cifar10", data_dir=tmp_path)
    with monkeypatch.context() as patch:
        publish(patch, path)
        assert_holds(data.load("cifar10", data_dir=tmp_path), DATA)
        assert_holds(data.load("cifar10", data_dir=path), DATA)
        write_archive(path, "cifar-10-batches-py", {"data_batch_1": b""})
        publish(patch, path)
        with pytest.raises(ConfigError, match="no file data_batch_2"):
            data.load("cifar10", data_dir=tmp_path)


def publish(patch, path):
    """Let a file's checksum be the published one."""
    import hashlib

    layout = cifar.LAYOUTS["cifar10"]._replace(md5=hashlib.md5(path.read_bytes()).hexdigest())
    patch.setitem(cifar.LAYOUTS, "cifar10", layout)


def test_corrupted_archives_give_clean_errors(tmp_path, monkeypatch):
    path = write_archive(
        tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_files(random_images(1, 5, 1))
    )
    whole = path.read_bytes()
    for corrupted in mutations(whole, 40, seed=1):
        path.write_bytes(corrupted)
        publish(monkeypatch, path)
        assert "\n" not in refusal(cifar.read_archive, "cifar10", path)


def batch(**changes):
    return python2_pickle(
        {b"data": planes(DATA.images[:2]), b"labels": [0, 1], **{k.encode(): v for k, v in changes.items()}}
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "corrupted"),
        (python2_pickle([]), "no dictionary"),
        (python2_pickle({b"data": planes(DATA.images)}), "keys data"),
        (batch(data=np.zeros((2, 3000), np.uint8)), "data (2, 3000)"),
        (batch(data=np.zeros((0, 3072), np.uint8), labels=[]), "data (0, 3072)"),
        (batch(labels=[1]), "1 labels"),
        (batch(labels=[1, 10]), "outside the classes"),
        (batch(labels=[b"1", 2]), "outside the classes"),
        (pickle.dumps({b"data": planes(DATA.images[:2]) / 255, b"labels": [0, 1]}, protocol=4), "corrupted"),
        (cifar10_files(DATA)["data_batch_3"][:-1], "corrupted"),
        (cifar10_files(DATA)["data_batch_3"][:2000], "corrupted"),
    ],
)
def test_a_batch_that_is_none_is_refused(tmp_path, content, named):
    folder = write_folder(tmp_path / "cifar-10-batches-py", {**cifar10_files(DATA), "data_batch_3": content})
    with pytest.raises(ConfigError) as caught:
        data.load("cifar10", data_dir=tmp_path)
    assert str(caught.value).startswith("data file ")
    assert named in str(caught.value)
    assert str(folder / "data_batch_3") in str(caught.value)
    (folder / "data_batch_3").unlink()
    with pytest.raises(ConfigError, match="no file data_batch_3;"):
        data.load("cifar10", data_dir=tmp_path)
    os.mkfifo(folder / "data_batch_3")  # which nobody writes to
    with pytest.raises(ConfigError, match="no file data_batch_3;"):
        data.load("cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn"])
def test_where_nothing_is_found_the_places_and_the_remedy_are_told(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        data.load(name, data_dir=tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    for part in (str(tmp_path), f"~/datasets/{name}", "~/tensorflow_datasets", "--download", "--data-dir", "[tfds]"):
        assert part in said
    assert said.index(f"~/datasets/{name}") < said.index("~/tensorflow_datasets")


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--data-dir: .*nowhere is not accepted"):
        data.load("cifar10", data_dir=tmp_path / "nowhere")


def test_a_folder_that_must_not_be_listed_is_told(tmp_path, monkeypatch):
    def forbid(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.exists", forbid)
    with pytest.raises(ConfigError, match=r"data file .*: unreadable \(Permission denied\); expected a file"):
        data.load("cifar10", data_dir=tmp_path)


def test_the_second_read_is_of_the_copy_until_a_file_changes(tmp_path, home):
    folder = write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    data.load("cifar10", data_dir=tmp_path)
    (copy,) = cache.cache_folder().iterdir()
    assert copy.parent == home / ".cache" / "periodic_jax"
    marked = DATA._replace(images=DATA.images + 1)
    np.save(copy / "images.npy", marked.images)
    assert_holds(data.load("cifar10", data_dir=tmp_path), marked)
    other = random_images(seed=5)
    write_folder(folder, cifar10_files(other))
    assert_holds(data.load("cifar10", data_dir=tmp_path), other)
    assert [p.name for p in cache.cache_folder().iterdir()] == [copy.name]


@pytest.mark.parametrize("corruption", ["cut", "foreign", "object", "labels", "stamp", "missing"])
def test_a_corrupted_copy_is_made_again(tmp_path, corruption):
    write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    data.load("cifar10", data_dir=tmp_path)
    (copy,) = cache.cache_folder().iterdir()
    file = copy / "images.npy"
    match corruption:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "foreign":
            file.write_bytes(b"PK")
        case "object":
            np.save(file, np.array([{}]), allow_pickle=True)
        case "labels":
            np.save(copy / "labels.npy", np.full(10, 10))
        case "stamp":
            (copy / cache.STAMP).write_text("[" * 9)
        case "missing":
            file.unlink()
    for _ in range(2):
        assert_holds(data.load("cifar10", data_dir=tmp_path), DATA)
    assert np.array_equal(np.load(file), DATA.images)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path, monkeypatch):
    write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_holds(data.load("cifar10", data_dir=tmp_path), DATA)


def test_synthetic_images_are_the_same_everywhere_and_tell_their_class():
    dataset = data.load("synthetic")
    assert dataset.images.shape == (5000, 32, 32, 3)
    assert dataset.test_images.shape == (1000, 32, 32, 3)
    assert int(dataset.images.astype(np.int64).sum()) == 1963649277
    assert np.bincount(dataset.labels).tolist() == [500] * 10
    np.testing.assert_allclose(dataset.mean, (dataset.images / 255).mean((0, 1, 2)), rtol=1e-9)
    means = np.stack([dataset.images[dataset.labels == k].mean(0) for k in range(10)]).reshape(10, -1)
    few = dataset.test_images[:100].reshape(100, -1)
    nearest = ((few[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == dataset.test_labels[:100]).mean() > 0.9


def test_reading_a_data_set_warns_of_nothing(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.load("cifar10", data_dir=tmp_path)


def test_the_stamp_of_a_copy_is_json(tmp_path):
    write_folder(tmp_path / "cifar-10-batches-py", cifar10_files(DATA))
    data.load("cifar10", data_dir=tmp_path)
    (copy,) = cache.cache_folder().iterdir()
    assert len(json.loads((copy / cache.STAMP).read_text())["files"]) == 6
