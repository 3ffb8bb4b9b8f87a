"""Headers of safetensors: what lies where, believed only where it can be so.

A file is the header's length (8 bytes, the lowest first), the header, and the data. The header is a
JSON object: of each tensor its dtype, its shape, and the bytes of the data that are its own. As the
safetensors library does with whole files, these are checked before anything is read by them: known
dtypes, sizes that are shape times dtype, and tensors that fill the data without gap or overlap.
"""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from unidiff_jax.outside import InputError, decode_object, shown

MAX_HEADER = 100_000_000
"""Bytes of a header, the library's own bound."""

ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
"""Bytes of a number by dtype."""

_MAX_RANK, _MAX_SPAN = 32, 2**56


class Stored(NamedTuple):
    """Where a tensor lies: its bytes in the file are `start` to `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """Tensors by name in the header's order, and the header's texts by key."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]


def data_start(first: bytes, *, size: int, name: str) -> int:
    """Where the data begin.

    Args:
      first: the first 8 bytes of the file.
      size: of the whole file, in bytes.
      name: what error messages call it.

    Raises:
      InputError: the file is too short, or the header too long.
    """
    start = 8 + int.from_bytes(first[:8], "little")
    if len(first) < 8 or start > size:
        raise InputError(f"{name} is damaged: its header ends at byte {start} of {size}")
    if start - 8 > MAX_HEADER:
        raise InputError(f"{name}: a header of {start - 8:,} bytes; at most {MAX_HEADER:,}")
    return start


def parse_header(text: bytes, *, size: int, dtypes: Collection[str], name: str) -> Header:
    """The header of a file.

    Args:
      text: the JSON, from byte 8 to `data_start`.
      size: of the whole file, in bytes.
      dtypes: of `ITEM_BYTES`, those that the caller reads.
      name: what error messages call it.

    Raises:
      InputError: no header, or one that does not fit the file; names the tensor.
    """
    entries = decode_object(text, name=f"the header of {name}", limit=MAX_HEADER)
    metadata = entries.pop("__metadata__", {})
    if not _is_texts(metadata):
        raise InputError(f"{name} is damaged: its metadata are not texts by key")
    begin = 8 + len(text)
    tensors = {
        key: _stored(key, entry, begin=begin, dtypes=dtypes, name=name)
        for key, entry in entries.items()
    }
    end = begin
    for key, tensor in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if tensor.start != end:
            what = "overlaps another" if tensor.start < end else "has a gap before it"
            raise InputError(f"{name} is damaged: the tensor {shown(key)} {what}")
        end = tensor.stop
    if end != size:
        raise InputError(f"{name} is damaged: it has {size} bytes instead of {end}")
    return Header(tensors, metadata)


def _stored(key: str, entry: Any, *, begin: int, dtypes: Collection[str], name: str) -> Stored:
    if not isinstance(entry, dict):
        raise InputError(
            f"{name} is damaged: the tensor {shown(key)} is described by {shown(entry)}"
        )
    dtype, shape, offsets = (entry.get(k) for k in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise InputError(
            f"{name}: the tensor {shown(key)} has dtype {shown(dtype)}; known are "
            f"{', '.join(sorted(dtypes))}"
        )
    if not _are_sizes(shape) or len(shape) > _MAX_RANK or _span(shape) > _MAX_SPAN:
        raise InputError(f"{name} is damaged: the tensor {shown(key)} has shape {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise InputError(f"{name} is damaged: the tensor {shown(key)} lies at {shown(offsets)}")
    start, stop = offsets
    if stop - start != math.prod(shape) * ITEM_BYTES[dtype]:
        raise InputError(
            f"{name} is damaged: the tensor {shown(key)} has {stop - start} bytes for {dtype} of "
            f"shape {shown(shape)}"
        )
    return Stored(dtype, tuple(shape), begin + start, begin + stop)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _span(shape: list[int]) -> int:
    """Numbers of a shape, as if no axis were empty: numpy counts so."""
    return math.prod(max(size, 1) for size in shape)


def _is_texts(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(v, str) for v in values.values())
