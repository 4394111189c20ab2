"""Checksums inside JSON files, by which a file that was changed is told from one that was not."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

SEAL = "checksum"


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object with a checksum over everything else in it.

    Example:
        >>> sealed = seal({"a": 1})
        >>> is_checksummed(sealed), is_checksummed(sealed | {"a": 2}), is_checksummed({"a": 2})
        (True, False, False)
    """
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: zlib.crc32(json.dumps(rest, sort_keys=True).encode())}


def is_checksummed(content: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what was sealed; one without a checksum is not."""
    return dict(content) == seal(content)


def seal_metadata(content: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a zarr array or group with a checksum over everything else, among its attributes."""
    attributes = {key: value for key, value in content["attributes"].items() if key != SEAL}
    checksum = seal({**content, "attributes": attributes})[SEAL]
    return {**content, "attributes": {**attributes, SEAL: checksum}}
