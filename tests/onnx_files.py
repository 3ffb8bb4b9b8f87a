"""Tiny networks as ONNX files, written field by field after onnx.proto3 (ONNX 1.x, IR 8).

Field numbers: ModelProto ir_version 1, graph 7, opset_import 8; GraphProto node 1, name 2,
initializer 5, input 11, output 12; NodeProto input 1, output 2, op_type 4; TensorProto dims 1,
data_type 2, name 8, raw_data 9; ValueInfoProto name 1, type 2.
"""

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

_FLOAT = 1


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _value(name: str, shape: Sequence[int | str] | None) -> bytes:
    if shape is None:
        return _bytes(1, name)
    sizes = b"".join(
        _bytes(1, _number(1, size) if isinstance(size, int) else _bytes(2, size)) for size in shape
    )
    tensor = _number(1, _FLOAT) + _bytes(2, sizes)
    return _bytes(1, name) + _bytes(2, _bytes(1, tensor))


def write_network(
    path: pathlib.Path,
    nodes: Sequence[tuple[str, Sequence[str], str]],
    *,
    shape: Sequence[int | str],
    output: str,
    weights: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a network.

    Args:
      path: the file.
      nodes: operator, inputs and output of each step; operators with their default attributes.
      shape: of the input `pictures`; a text is a size that is open.
      output: name of the one output.
      weights: float32 arrays by name.
    """
    graph = b"".join(
        _bytes(1, b"".join(_bytes(1, i) for i in inputs) + _bytes(2, made) + _bytes(4, operator))
        for operator, inputs, made in nodes
    )
    graph += _bytes(2, "tiny")
    for name, array in (weights or {}).items():
        sizes = b"".join(_number(1, size) for size in array.shape)
        raw = _bytes(8, name) + _bytes(9, array.astype("<f4").tobytes())
        graph += _bytes(5, sizes + _number(2, _FLOAT) + raw)
    graph += _bytes(11, _value("pictures", shape)) + _bytes(12, _value(output, None))
    path.write_bytes(_number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17)))
