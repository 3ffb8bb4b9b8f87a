"""Records as safetensors blobs: named arrays, and JSON in the blob's metadata.

The header is read here (`unidiff_jax.headers`) because `safetensors.numpy.load` returns no metadata
and copies every array; these arrays are read-only views of the blob. Nothing is ever unpickled.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from unidiff_jax.headers import data_start, parse_header
from unidiff_jax.outside import InputError, decode_object

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
      BlobError: the bytes are no blob, or it has no JSON object under `key`.
    """
    size, name = len(blob), "the record"
    try:
        start = data_start(blob[:8], size=size, name=name)
        header = parse_header(blob[8:start], size=size, dtypes=_DTYPES, name=name)
        if key not in header.metadata:
            raise BlobError(f"{name} has no metadata {key!r}")
        values = decode_object(header.metadata[key], name=f"the metadata {key!r} of {name}")
    except InputError as error:
        raise BlobError(str(error)) from None
    arrays = {}
    for array, (dtype, shape, first, _) in header.tensors.items():
        flat = np.frombuffer(blob, _DTYPES[dtype], math.prod(shape), first)
        arrays[array] = flat.reshape(shape)
    return Blob(arrays, values)
