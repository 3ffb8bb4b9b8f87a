"""Files that are made to do harm, for tests: small where they lie, large or elsewhere when read."""

import json
import os
import pickle
import struct
import tarfile
import zlib

from PIL import Image
from raw_data import encode


def png_bomb(side=30_000):
    """A whole PNG of `side` x `side` pixels in about 1/8000 of their bits."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pack, row = zlib.compressobj(), bytes(1 + side // 8)
    data = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_text_bomb(size=200_000_000):
    """A PNG of one pixel with a compressed comment of `size` bytes."""
    whole, pack = encode(Image.new("RGB", (1, 1))), zlib.compressobj()
    data = b"Comment\0\0" + pack.compress(bytes(size)) + pack.flush()
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + data))
    return whole[:33] + chunk + whole[33:]


def webp_bomb():
    """An animated WebP whose canvas says 16383 x 16383 pixels."""
    frames = [Image.new("RGBA", (8, 8), color) for color in ("red", "blue")]
    data = bytearray(encode(frames[0], format="WEBP", save_all=True, append_images=frames[1:]))
    place = data.find(b"VP8X") + 12
    data[place : place + 6] = (16382).to_bytes(3, "little") * 2
    return bytes(data)


def tar_header(name, *, kind=tarfile.REGTYPE, size=0, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info.tobuf(tarfile.GNU_FORMAT)


def safetensors_file(header, data=b""):
    """A file with this header: an object, or the bytes themselves."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


SAFETENSORS = {
    "overlap": safetensors_file(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)
    ),
    "gap": safetensors_file(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 12, 20)}, bytes(20)
    ),
    "beyond the end": safetensors_file({"a": tensor("F32", [2], 0, 8)}, bytes(4)),
    "more than is told": safetensors_file({"a": tensor("F32", [2], 0, 8)}, bytes(12)),
    "before the start": safetensors_file({"a": tensor("F32", [2], -8, 0)}, bytes(8)),
    "another shape": safetensors_file({"a": tensor("F32", [3], 0, 8)}, bytes(8)),
    "a shape that overflows": safetensors_file({"a": tensor("F32", [2**62, 4], 0, 0)}),
    "a negative shape": safetensors_file({"a": tensor("F32", [-1, -2], 0, 8)}, bytes(8)),
    "a dtype that is none": safetensors_file({"a": tensor("X9", [2], 0, 8)}, bytes(8)),
    "a dtype that is not read": safetensors_file({"a": tensor("F8_E4M3", [8], 0, 8)}, bytes(8)),
    "no dtype": safetensors_file({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no object": safetensors_file([1, 2]),
    "a tensor that is none": safetensors_file({"a": 3}),
    "metadata that are none": safetensors_file({"__metadata__": {"a": 3}}),
    "no JSON": safetensors_file(b"{"),
    "deep JSON": safetensors_file(b'{"a":' * 20_000),
    "a name twice": safetensors_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        bytes(8),
    ),
    "a header of 2**60 bytes": (2**60).to_bytes(8, "little") + b"{}",
    "seven bytes": b"\x02\0\0\0\0\0\0",
    "nothing": b"",
}
"""Files that no reader may take, by what is wrong."""


class Marker:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickle_bomb(path):
    """Bytes that make the folder `path` when somebody unpickles them."""
    return pickle.dumps(Marker(path))
