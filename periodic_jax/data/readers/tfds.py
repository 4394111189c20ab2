"""Data sets prepared by TensorFlow Datasets (TFDS), read without TensorFlow, and their download where asked for."""

import importlib.util
import json
import logging
import os
import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from periodic_jax.core.errors import DataFileError, MissingDependencyError, PeriodicJaxError
from periodic_jax.data.dataset import Arrays
from periodic_jax.data.locations import Place, home

BUILDERS = {"cifar10": "cifar10", "cifar100": "cifar100", "svhn": "svhn_cropped"}  # names there
INFO = "dataset_info.json"
# What the features of these data sets are. TFDS imports whatever module a features.json names.
FEATURES = tuple(
    f"tensorflow_datasets.core.features.{name}"
    for name in (
        "features_dict.FeaturesDict", "image_feature.Image", "class_label_feature.ClassLabel", "text_feature.Text",
        "tensor_feature.Tensor", "scalar.Scalar",
    )
)  # fmt: skip
# The keys under which TFDS reads the name of a class from it.
CLASS_KEYS = ("type", "pythonClassName", "python_class_name", "proto_cls", "jsonFeature", "json_feature")


def find_places(name: str, data_dir: Path | None) -> list[Place]:
    """Where a prepared data set may be: the given folder, then TFDS's own; the newest version there."""
    places = []
    for root in filter(None, (data_dir, default_folder())):
        own = root / BUILDERS[name]
        versions = [p for p in _children(own) if re.fullmatch(r"\d+\.\d+\.\d+", p.name) and (p / INFO).is_file()]
        newest = max(versions, key=lambda p: tuple(map(int, p.name.split("."))), default=own / "VERSION")
        places.append(Place(newest, _children(newest), partial(read, name, newest)))
    return places


def default_folder() -> Path:
    """$TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or home("tensorflow_datasets"))


def read(name: str, folder: Path) -> Arrays:
    """Read one version of a prepared data set, in array_record, parquet or tfrecord files.

    Args:
        name: a key of `BUILDERS`.
        folder: the version's, with dataset_info.json.

    Returns:
        The images and labels, in the order of their ids, which is that of the official files; as stored where there
        are no ids.

    Raises:
        DataFileError: a corrupted or foreign data set.
    """
    _check_metadata(folder)
    import tensorflow_datasets as tfds

    noisy = logging.getLogger("absl")
    level = noisy.level
    noisy.setLevel(logging.ERROR)  # it recommends OpenCV
    try:
        builder = tfds.builder_from_directory(str(folder))
        train, test = (_split(builder, split, folder) for split in ("train", "test"))
    except DataFileError:
        raise
    except Exception as error:  # whatever corrupted files make TFDS, array_record, protobuf or Pillow raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataFileError(folder, f"corrupted ({reason})", f"TFDS's {BUILDERS[name]}") from None
    finally:
        noisy.setLevel(level)
    return Arrays(*train, *test)


def download(name: str, data_dir: Path | None) -> Path:
    """Let TFDS download and prepare a data set.

    Args:
        name: a key of `BUILDERS`.
        data_dir: where to; TFDS's default folder, if None.

    Returns:
        The folder of the prepared version.

    Raises:
        MissingDependencyError: TensorFlow is not installed.
        PeriodicJaxError: the download fails.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise MissingDependencyError(f"--download of {name}", "TensorFlow", "periodic_jax[tfds]")
    import tensorflow_datasets as tfds

    root = data_dir or default_folder()
    try:
        builder: Any = tfds.builder(BUILDERS[name], data_dir=str(root), file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        return Path(builder.data_dir)
    except Exception as error:  # no network, no room, a changed file: all reported by their first line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"--download of {name} to {root} failed ({reason}); give the files with --data-dir"
        raise PeriodicJaxError(message) from None


def _children(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _check_metadata(folder: Path) -> None:
    """Refuse metadata that would have TFDS import a module or open a file elsewhere."""
    strange: list[str] = []

    def collect_classes(pairs: list[tuple[str, Any]]) -> None:
        """Of every object in features.json, whatever it lies in."""
        strange.extend(str(value) for key, value in pairs if key in CLASS_KEYS and value not in FEATURES)

    try:
        json.loads((folder / "features.json").read_text(), object_pairs_hook=collect_classes)
        info = json.loads((folder / INFO).read_text())
        templates = [str(split.get("filepathTemplate", "")) for split in info["splits"]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"corrupted ({type(error).__name__})"
        raise DataFileError(folder, reason, f"readable {INFO} and features.json") from None
    if strange:
        raise DataFileError(folder, f"feature {strange[0]}", "images, labels and ids only")
    if outside := [template for template in templates if "/" in template or "\\" in template]:
        raise DataFileError(folder, f"files {outside[0]}", "files of that folder")


def _split(builder: Any, split: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    info = builder.info.splits[split]
    if builder.info.file_format.value == "tfrecord":
        decode = builder.info.features.deserialize_example_np
        examples = [decode(record) for path in info.filepaths for record in tf_records(Path(path))]
    else:
        examples = list(builder.as_data_source(split=split))
    if len(examples) != info.num_examples:
        raise DataFileError(folder, f"{len(examples)} {split} examples", f"{info.num_examples}")
    if examples and "id" in examples[0]:
        examples = sorted(examples, key=lambda example: (len(example["id"]), example["id"]))
    images = np.stack([example["image"] for example in examples])
    return images, np.array([int(example["label"]) for example in examples])


def tf_records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the data, its checksum (4).

    Args:
        path: the file.

    Yields:
        The data of each record. Checksums are passed over: what is in the records, PNG images, has its own.

    Raises:
        DataFileError: a file that ends within a record.
    """
    content = path.read_bytes()
    start = 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start) if start + 12 <= len(content) else (len(content),)
        end = start + 12 + length + 4
        if end > len(content):
            raise DataFileError(path, "a cut record", "complete records")
        yield content[start + 12 : end - 4]
        start = end
