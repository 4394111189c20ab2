"""What the files of a run directory declare of their own size, compared with what its config.json implies.

A run directory may be a stranger's. A zarr.json of 100 bytes can declare terabytes, a chunk of 100 kB can unfold to
gigabytes, and a link can lead to any file. All of that is looked at before anything is read.
"""

import math
from collections.abc import Mapping
from typing import Any

MOST_CHUNK = 2**32  # bytes, unfolded
ITEM_SIZES = {"float32": 4, "float64": 8, "int64": 8, "uint32": 4}
CODECS = ["bytes", "zstd", "crc32c"]
DIMENSIONS = (
    ("config",), ("step",), ("eval_step",), ("layer",), ("config", "step"), ("config", "step", "layer"),
    ("config", "eval_step"),
)  # fmt: skip


def metadata_error(content: Any, lengths: Mapping[str, int]) -> str | None:
    """What a zarr.json declares that no run of these lengths does; None where all is well.

    Args:
        content: of the file, of an array or a group.
        lengths: the most entries that each dimension may have.

    Raises:
        LookupError, TypeError, AttributeError: it is no such metadata at all.

    Example:
        >>> metadata_error({"node_type": "group", "attributes": {}}, {})
    """
    if content.get("consolidated_metadata"):
        return "declares the arrays a second time"
    if content["node_type"] == "group":
        return None
    shape, names = content["shape"], tuple(content["dimension_names"])
    chunk = content["chunk_grid"]["configuration"]["chunk_shape"]
    if names not in DIMENSIONS or not len(shape) == len(chunk) == len(names):
        return f"declares the dimensions {', '.join(map(str, names))}"
    if not all(type(n) is int and n >= 0 for n in shape) or not all(type(n) is int and n >= 1 for n in chunk):
        return "declares a length that is none"
    for name, length in zip(names, shape, strict=True):
        if length > lengths[name]:
            return f"declares {length} entries along {name}, where config.json has room for {lengths[name]}"
    if content["data_type"] not in ITEM_SIZES:
        return f"declares values of the type {content['data_type']}"
    if chunk_bytes(content) > MOST_CHUNK:
        return f"declares chunks of {chunk_bytes(content)} bytes"
    if [codec["name"] for codec in content["codecs"]] != CODECS or content.get("storage_transformers"):
        return "declares codecs that are not " + ", ".join(CODECS)
    if content["chunk_key_encoding"].get("name") != "default" or content["chunk_grid"].get("name") != "regular":
        return "declares another order of chunks"
    return None


def chunk_bytes(content: Mapping[str, Any]) -> int:
    """Bytes of one chunk of an array, unfolded, as its zarr.json declares them."""
    return math.prod(content["chunk_grid"]["configuration"]["chunk_shape"]) * ITEM_SIZES[content["data_type"]]


def unfolds_to(head: bytes) -> int | None:
    """Bytes that zstd's content declares it unfolds to, by RFC 8878, section 3.1.1.1; None where it declares none.

    Args:
        head: its first 18 bytes, or all of it.
    """
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    size_kind, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    begin = 5 + (not single) + (0, 1, 2, 4)[dictionary]
    length = (single, 2, 4, 8)[size_kind]
    if not length or len(head) < begin + length:
        return None
    return int.from_bytes(head[begin : begin + length], "little") + 256 * (length == 2)
