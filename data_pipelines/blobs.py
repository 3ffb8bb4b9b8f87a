"""Records as safetensors blobs: named arrays, and JSON in the blob's metadata.

The header is read here because `safetensors.numpy.load` returns no metadata and copies every array;
these arrays are read-only views of the blob. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

_DTYPES = {
    name: np.dtype(code)
    for name, code in {"U8": "<u1", "U16": "<u2", "I32": "<i4", "F16": "<f2", "F32": "<f4"}.items()
}


class BlobError(ValueError):
    """Bytes that are no blob with such metadata."""


class Blob(NamedTuple):
    """What a blob holds: arrays by name, and values that JSON can say."""

    arrays: dict[str, np.ndarray]
    values: dict[str, Any]


def pack_blob(arrays: Mapping[str, np.ndarray], values: Mapping[str, Any], *, key: str) -> bytes:
    """Arrays and values as one blob; `key` names the metadata."""
    text = json.dumps(dict(values), separators=(",", ":"))
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(whole, {key: text})


def unpack_blob(blob: bytes, *, key: str) -> Blob:
    """What `pack_blob` was given.

    Raises:
      BlobError: the bytes are no blob, or it has no metadata under `key`.
    """
    try:
        start = 8 + int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8:start])
        values = json.loads(header.pop("__metadata__")[key])
        arrays = {}
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            dtype = _DTYPES[entry["dtype"]]
            flat = np.frombuffer(blob, dtype, (last - first) // dtype.itemsize, start + first)
            arrays[name] = flat.reshape(entry["shape"])
        return Blob(arrays, values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BlobError(f"{type(error).__name__}: {error}") from None
