"""Small files in the formats that data sets are published in, written without the code that reads them."""

import io
import struct
import tarfile
from typing import NamedTuple

import numpy as np

from periodic_jax import ConfigError


class Images(NamedTuple):
    """Images and labels for training and testing."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def random_images(seed=0, train=10, test=4, classes=10) -> Images:
    """Random 32x32 images in colour, with labels that all occur in the training part where it is large enough."""
    rng = np.random.default_rng(seed)
    labels = np.arange(train + test) % classes
    images = rng.integers(0, 256, (train + test, 32, 32, 3), dtype=np.uint8)
    return Images(images[:train], labels[:train], images[train:], labels[train:])


def python2_pickle(content) -> bytes:
    """Protocol 2 as Python 2's cPickle and NumPy 1 wrote it: texts are byte strings, arrays of numpy.core."""
    return b"\x80\x02" + _python2(content) + b"."


def _python2(content) -> bytes:
    if isinstance(content, dict):
        return b"}q\x01(" + b"".join(_python2(k) + _python2(v) for k, v in content.items()) + b"u"
    if isinstance(content, list):
        return b"]q\x02(" + b"".join(map(_python2, content)) + b"e"
    if isinstance(content, bytes):
        short = len(content) < 256
        return (b"U" + struct.pack("B", len(content)) if short else b"T" + struct.pack("<i", len(content))) + content
    if isinstance(content, int):
        return b"K" + struct.pack("B", content) if content < 256 else b"M" + struct.pack("<H", content)
    assert content.dtype == np.uint8
    dtype = b"cnumpy\ndtype\nq\x03U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"".join(map(_python2, content.shape))
    empty = b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87R"
    return empty + b"(K\x01(" + shape + b"t" + dtype + b"\x89" + _python2(content.tobytes()) + b"tb"


def planes(images) -> np.ndarray:
    """Images as CIFAR's files hold them: ``(count, 3072)``, all of red, then of green, then of blue."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar10_files(data: Images, write=python2_pickle) -> dict[str, bytes]:
    """The official batches, with what else they hold."""
    files = {}
    for k, part in enumerate(np.array_split(np.arange(len(data.images)), 5), 1):
        files[f"data_batch_{k}"] = write(_batch(data.images[part], data.labels[part], f"training batch {k} of 5"))
    files["test_batch"] = write(_batch(data.test_images, data.test_labels, "testing batch 1 of 1"))
    files["batches.meta"] = write({b"num_cases_per_batch": len(data.images), b"label_names": [b"airplane"]})
    return files


def cifar100_files(data: Images, write=python2_pickle) -> dict[str, bytes]:
    """The official files train and test."""
    files = {}
    for name, images, labels in (("train", data.images, data.labels), ("test", data.test_images, data.test_labels)):
        batch = _batch(images, labels, name)
        batch[b"fine_labels"] = batch.pop(b"labels")
        files[name] = write({**batch, b"coarse_labels": [0] * len(images)})
    return files


def _batch(images, labels, title):
    names = [f"image_{i}.png".encode() for i in range(len(images))]
    listed = [int(label) for label in labels]
    return {b"data": planes(images), b"labels": listed, b"batch_label": title.encode(), b"filenames": names}


def write_folder(folder, files):
    """Write files by name, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(path, folder, files):
    """Write a ``.tar.gz`` of a folder, and return its path."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def cifar10_binary_files(data: Images) -> dict[str, bytes]:
    """The official binary version, which TFDS reads: a byte of label and 3072 of image, again and again."""

    def records(images, labels):
        return np.concatenate([np.asarray(labels, np.uint8)[:, None], planes(images)], 1).tobytes()

    parts = np.array_split(np.arange(len(data.images)), 5)
    files = {f"data_batch_{k}.bin": records(data.images[p], data.labels[p]) for k, p in enumerate(parts, 1)}
    names = "\n".join(f"class {k}" for k in range(10))
    return {**files, "test_batch.bin": records(data.test_images, data.test_labels), "batches.meta.txt": names.encode()}


def mutations(content: bytes, count: int, seed=0, keep=slice(0, 0)):
    """Corrupted copies: bytes changed, cut out, put in twice, or the end missing; most of them outside ``keep``."""
    rng = np.random.default_rng(seed)
    places = np.setdiff1d(np.arange(len(content)), np.arange(len(content))[keep])
    for _ in range(count):
        corrupted = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.choice(places) if rng.random() < 0.95 else rng.integers(len(content)))
            length = int(rng.integers(1, 9))
            match rng.integers(5):
                case 0:
                    corrupted[at : at + 1] = rng.bytes(1)
                case 1:
                    corrupted[at : at + length] = rng.choice([b"\xff" * length, b"\0" * length, b"."])
                case 2:
                    del corrupted[at : at + length]
                case 3:
                    corrupted[at:at] = content[at : at + length * 4]
                case 4:
                    del corrupted[at:]
        yield bytes(corrupted)


def refusal(read, *arguments) -> str:
    """What a reader says against its input; nothing if it accepts it. Anything but a ConfigError comes through."""
    try:
        read(*arguments)
    except ConfigError as error:
        return str(error)
    return ""


def assert_holds(dataset, expected: Images):
    """The data set has these images and labels, in the usual types."""
    for name in Images._fields:
        assert np.array_equal(getattr(dataset, name), getattr(expected, name)), name
    assert dataset.images.dtype == np.uint8
    assert dataset.labels.dtype == np.int32
