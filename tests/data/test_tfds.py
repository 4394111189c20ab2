import importlib.util
import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.official_files import Images, cifar10_binary_files, random_images, refusal, write_folder

from periodic_jax import data
from periodic_jax.core.errors import MissingDependencyError, PeriodicJaxError
from periodic_jax.data.readers import tfds as reader

DATA = random_images(seed=3, train=23, test=11)
TENSORFLOW = importlib.util.find_spec("tensorflow") is not None


def binary_records(path, labels_number):
    """TFDS's own reader of a binary file, but for TensorFlow's file and PNG encoder, in whose place Pillow's is."""
    from PIL import Image

    for record in np.fromfile(path, np.uint8).reshape(-1, labels_number + 3072):
        pixels = record[labels_number:].reshape(3, 32, 32).transpose(1, 2, 0)
        yield record[:labels_number], Image.fromarray(np.ascontiguousarray(pixels))


def prepare(folder, archive):
    """TFDS's own builder of CIFAR-10 over a small archive of the binary version, as `reader.download` starts it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.image_classification import cifar

    def download(self, url):
        assert url.endswith("cifar-10-binary.tar.gz")
        return archive

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", download)
        if not TENSORFLOW:
            patch.setattr(cifar, "_load_data", binary_records)
            found = SimpleNamespace(find_spec=lambda name: True)
            patch.setattr(reader, "importlib", SimpleNamespace(util=found))
        return data.load("cifar10", data_dir=folder, download=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A home folder without data sets, and the folder that TFDS prepared CIFAR-10 in."""
    home, root = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("tfds")
    write_folder(root / "archive" / "cifar-10-batches-bin", cifar10_binary_files(DATA))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.delenv("TFDS_DATA_DIR", raising=False)
        assert_holds(prepare(root, str(root / "archive")))
        yield root


def assert_holds(dataset):
    for name in Images._fields:
        assert np.array_equal(getattr(dataset, name), getattr(DATA, name)), name


def version(folders):
    (folder,) = (folders / "cifar10").glob("3.*")
    return folder


def test_what_tfds_prepared_is_read_in_the_official_order(folders, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "other"))
    dataset = data.load("cifar10", data_dir=folders)
    assert_holds(dataset)
    assert dataset.source == str(version(folders))
    monkeypatch.setenv("TFDS_DATA_DIR", str(folders))
    assert_holds(data.load("cifar10"))


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed, and TFDS uses it")
def test_reading_needs_no_tensorflow(folders):
    reader.read("cifar10", version(folders))
    assert "tensorflow_datasets" in sys.modules
    assert "tensorflow" not in sys.modules


@pytest.mark.skipif(not TENSORFLOW, reason="TensorFlow is not installed: TFDS writes no tfrecord files without it")
def test_tfrecord_files_that_tfds_wrote_are_read(folders, tmp_path):
    import tensorflow_datasets as tfds

    with pytest.MonkeyPatch.context() as patch:
        archive = str(folders / "archive")
        patch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: archive)
        builder = tfds.builder("cifar10", data_dir=str(tmp_path), file_format="tfrecord")
        builder.download_and_prepare()
    assert list(tmp_path.rglob("*.tfrecord-*"))
    assert_holds(data.load("cifar10", data_dir=tmp_path))


def copy_as_tfrecord(folders, to):
    """The prepared data set with its records in TFRecord files, without their checksums."""
    import tensorflow_datasets as tfds

    to.mkdir(parents=True)
    source = version(folders)
    builder = tfds.builder_from_directory(str(source))
    for split in ("train", "test"):
        raw = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        records = [bytes(raw[i]) for i in range(len(raw))]
        framed = b"".join(struct.pack("<QI", len(r), 0) + r + b"\0\0\0\0" for r in records)
        (to / f"cifar10-{split}.tfrecord-00000-of-00001").write_bytes(framed)
    for name in ("features.json", "dataset_info.json", "label.labels.txt"):
        (to / name).write_text((source / name).read_text().replace('"array_record"', '"tfrecord"'))
    return to


def test_tfrecord_files_are_read_without_tensorflow(folders, tmp_path):
    folder = copy_as_tfrecord(folders, tmp_path / "cifar10" / "3.0.2")
    assert_holds(data.load("cifar10", data_dir=tmp_path))
    file = folder / "cifar10-train.tfrecord-00000-of-00001"
    whole = file.read_bytes()
    for cut in (1, 4, 2000, len(whole) - 5):
        file.write_bytes(whole[:-cut])
        assert "cut record" in refusal(reader.read, "cifar10", folder)
    (length,) = struct.unpack_from("<Q", whole)
    file.write_bytes(whole[length + 16 :])
    assert "22 train examples" in refusal(reader.read, "cifar10", folder)
    rng = np.random.default_rng(0)
    for _ in range(20):
        corrupted = bytearray(whole)
        corrupted[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(corrupted)
        assert "\n" not in refusal(reader.read, "cifar10", folder)


def test_metadata_that_would_import_or_look_elsewhere_is_refused(folders, tmp_path, monkeypatch):
    (tmp_path / "strange_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    folder = write_folder(tmp_path / "3.0.2", {file.name: file.read_bytes() for file in version(folders).iterdir()})
    features, info = (json.loads((folder / name).read_text()) for name in ("features.json", "dataset_info.json"))

    def said(features=features, info=info):
        (folder / "features.json").write_text(features if isinstance(features, str) else json.dumps(features))
        (folder / "dataset_info.json").write_text(info if isinstance(info, str) else json.dumps(info))
        return refusal(reader.read, "cifar10", folder)

    assert said() == ""
    for key in ("type", "pythonClassName", "python_class_name"):
        assert "feature strange_module.Image" in said({**features, key: "strange_module.Image"})
        nested = {"featuresDict": {"features": {"image": {key: "strange_module.Image", "content": {}}}}}
        assert "feature strange_module.Image" in said({**features, **nested})
    assert "feature" in said({**features, "jsonFeature": {"json": '{"type": "strange_module.Image"}'}})
    assert said(info={**info, "moduleName": "strange_module"}) == ""
    elsewhere = [{**split, "filepathTemplate": "/etc/{DATASET}"} for split in info["splits"]]
    assert "files /etc/" in said(info={**info, "splits": elsewhere})
    for corrupted in ("", "[]", "{}", "[" * 100_000, '{"splits": 3}', '{"splits": [{"name": "train"}]}'):
        assert "corrupted" in said(info=corrupted)
    assert "strange_module" not in sys.modules
    for file in folder.glob("*array_record*"):
        file.write_bytes(file.read_bytes()[:-100])
    assert "corrupted" in said()


def test_the_newest_version_is_read(folders, tmp_path):
    for number in ("3.0.2", "3.0.10", "incomplete.XY_3.0.11"):
        write_folder(tmp_path / "cifar10" / number, {"dataset_info.json": b"{}"})
    (place, _) = reader.find_places("cifar10", tmp_path)
    assert place.path.name == "3.0.10"


@pytest.mark.skipif(TENSORFLOW, reason="TensorFlow is installed")
def test_a_download_without_tensorflow_is_refused(folders, tmp_path):
    with pytest.raises(MissingDependencyError) as caught:
        reader.download("cifar10", tmp_path)
    assert str(caught.value).startswith("--download of cifar10 needs TensorFlow, which is not installed: python -m pip")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_told_in_a_line(folders, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, url):
        raise OSError("no route\nto host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    monkeypatch.setattr(reader, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: True)))
    with pytest.raises(PeriodicJaxError) as caught:
        reader.download("cifar10", tmp_path)
    said = str(caught.value)
    assert said.startswith("--download of cifar10 to ")
    assert "no route" in said
    assert "\n" not in said
