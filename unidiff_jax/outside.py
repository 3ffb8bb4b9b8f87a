"""What comes from outside: files, pictures, JSON, texts and names, read right or refused.

Pictures that users give, data sets, records, model folders and prompts may be damaged or made to do
harm. Everything that reads their bytes reads them here, so that the bounds hold everywhere. What
cannot be used is an `InputError`; callers that have a kind of their own (`SampleError`,
`FolderError`, ...) raise that with the same message.

How a picture becomes RGB: it is turned as its EXIF says, transparency is laid on white, of an
animation the first picture counts, 16 bits are scaled to 8, CMYK and palettes become RGB; colour
profiles are ignored. Its size is checked before it is decoded.

Nothing here, and nothing that is built on it, loads a pickle or runs code of a file.
"""

import io
import json
import os
import pathlib
import re
import stat
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from unidiff_jax.paths import AnyPath, as_path, is_remote

MAX_SIDE = 16384
MAX_PIXELS = 2**26
"""A picture with a longer side or more pixels is refused before it is decoded."""

MAX_FILE = 2**30
"""Bytes of a file that is read whole, such as a picture's."""

MAX_JSON = 2**26
MAX_DEPTH = 64
"""Bytes of settings, manifests and records in JSON, and how many brackets may be open in them."""

FORMATS = ("PNG", "JPEG", "WEBP")

# What PIL raises on damaged files, by format and by what is damaged (pixels, chunks, EXIF).
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    zlib.error,
)


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to give."""


# ------------------------------------------------------------------------------------------- files


def inside(folder: AnyPath, name: Any) -> epath.Path:
    """The path of a name that a manifest, an archive or a listing has.

    A link that is the folder itself is followed, and so are links between the folder's files and
    those of Hugging Face's cache (`snapshots/REVISION/FILE` to `blobs`).

    Raises:
      InputError: no text, a path that leaves the folder, or a link that leads out of it.
    """
    folder = as_path(folder)
    if not isinstance(name, str) or not name.strip("./") or not _is_encodable(name):
        raise InputError(f"{folder}: {shown(name)} is not the name of a file")
    absolute = name.startswith("/") or pathlib.PureWindowsPath(name).drive or "://" in name
    if absolute or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise InputError(f"{folder}: the path {shown(name)} leaves the folder; give one inside it")
    path = folder / name
    if not is_remote(path) and _passes_link(folder, name):
        real = pathlib.Path(os.path.realpath(path))
        if not any(real.is_relative_to(root) for root in _roots(folder)):
            raise InputError(
                f"{folder}: the link {shown(name)} leads out of the folder; put the file there"
            )
    return path


def _is_encodable(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _passes_link(folder: epath.Path, name: str) -> bool:
    path = os.fspath(folder)
    for part in name.split("/"):
        path = os.path.join(path, part)
        if os.path.islink(path):
            return True
    return False


def _roots(folder: epath.Path) -> list[pathlib.Path]:
    """Where links of a folder may lead."""
    root = pathlib.Path(os.path.realpath(folder))
    caches = [
        path.parent.parent for path in (root, *root.parents) if path.parent.name == "snapshots"
    ]
    return [root, *(cache / "blobs" for cache in caches)]


def read_file(path: AnyPath, *, limit: int = MAX_FILE) -> bytes:
    """A file's bytes.

    Raises:
      InputError: no regular file, such as a pipe or a device, or larger than `limit` bytes.
      OSError: it is not there or cannot be read.
    """
    check_file(path)
    with as_path(path).open("rb") as file:
        data: Any = file.read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, the most that is read; cut it")
    return data


def check_file(path: AnyPath) -> None:
    """Raises InputError for a pipe, a device or a folder, FileNotFoundError where nothing is."""
    if not is_remote(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise InputError(f"{path} is no file that can be read whole; give a regular file")


# ---------------------------------------------------------------------------------------- pictures


def decode_picture(
    data: bytes, *, name: str = "the picture", formats: Sequence[str] = FORMATS
) -> Image.Image:
    """An RGB picture from a PNG, JPEG or WebP file, as the module says.

    Args:
      data: the file's bytes.
      name: what error messages call it.
      formats: of `FORMATS`.

    Raises:
      InputError: no picture, another format, damaged, cut short, or too large.
    """
    return _decode(data, name=name, formats=formats, convert=_to_rgb)


def decode_values(data: bytes, *, name: str = "the map") -> np.ndarray:
    """The values of a picture's file as they are stored: ids, depth, or colours with their alpha.

    Returns:
      uint8 (h, w) of ids (indices where there is a palette) or greys, uint16 (h, w) of 16 bits, or
      uint8 (h, w, c): RGB, grey and alpha, or RGBA.

    Raises:
      InputError: as `decode_picture`.
    """
    return _decode(data, name=name, formats=FORMATS, convert=_stored)


def check_size(width: int, height: int, *, name: str) -> None:
    """Raises InputError for a picture of more than `MAX_SIDE` a side or `MAX_PIXELS` in all."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels; at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS} in all: make it smaller first"
        )


def convert_picture(source: Image.Image) -> Image.Image:
    """A picture that the caller has opened with PIL, of any format, as RGB.

    Raises:
      InputError: damaged or too large.
    """
    check_size(*source.size, name="the picture")
    try:
        return _to_rgb(source)
    except _DAMAGE as error:  # PIL reads a file's pixels only now
        raise InputError(f"the picture is damaged: {error}") from None


def _decode(data: bytes, *, name: str, formats: Sequence[str], convert: Any) -> Any:
    try:
        with Image.open(io.BytesIO(data), formats=formats) as picture:
            check_size(*picture.size, name=name)
            return convert(picture)
    except InputError:
        raise
    except UnidentifiedImageError:
        *others, last = (format.replace("WEBP", "WebP") for format in formats)
        wanted = f"{', '.join(others)} or {last}" if others else last
        raise InputError(f"{name} is no {wanted} picture") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is too large: {error}") from None
    except _DAMAGE as error:
        raise InputError(f"{name} is damaged: {error}") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: PIL would cut at 255
        values = np.asarray(picture, np.float32) / 257.0
        picture = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _stored(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        return np.asarray(picture).astype(np.uint16)  # PIL has older files as 32 bits
    if picture.mode not in ("1", "L", "P", "LA", "RGB", "RGBA"):
        picture = picture.convert("RGB")
    return np.asarray(picture).astype(np.uint8)


# -------------------------------------------------------------------------------------------- JSON


def decode_json(data: bytes | str, *, name: str, limit: int = MAX_JSON) -> Any:
    """The value of a JSON text.

    Raises:
      InputError: not JSON, longer than `limit`, or deeper than `MAX_DEPTH` brackets.
    """
    if len(data) > limit:
        raise InputError(f"{name} has more than {limit:,} bytes of JSON, the most that is read")
    try:
        value = json.loads(data)
    except RecursionError:
        raise InputError(f"{name} nests JSON deeper than {MAX_DEPTH} brackets") from None
    except ValueError as error:
        raise InputError(f"{name} is not JSON: {error}") from None
    if _is_deep(data, value):
        raise InputError(f"{name} nests JSON deeper than {MAX_DEPTH} brackets")
    return value


def decode_object(data: bytes | str, *, name: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object; raises InputError for something else, and as `decode_json`."""
    value = decode_json(data, name=name, limit=limit)
    if not isinstance(value, dict):
        raise InputError(f"{name} holds a {type(value).__name__}, not a JSON object")
    return value


def read_object(path: AnyPath, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
      InputError: as `decode_object` and `read_file`; names the file.
      OSError: it is not there or cannot be read.
    """
    return decode_object(read_file(path, limit=limit), name=str(path), limit=limit)


def fits(value: Any, form: Any) -> bool:
    """Whether a JSON value has a form.

    Args:
      value: what JSON gave.
      form: a type (`float` is any finite number, and `int` no bool); None; `[form]`, a list of such
        values; `{"key": form}`, an object that has these keys; `{str: form}`, an object of such
        values; or a tuple of forms, one of which fits.

    Example:
      >>> fits({"images": [0, 2], "more": 1}, {"images": [int], "more": (int, None)})
      True
    """
    if isinstance(form, tuple):
        return any(fits(value, one) for one in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(fits(one, form[0]) for one in value)
    if isinstance(form, dict) and str in form:
        return isinstance(value, dict) and all(fits(one, form[str]) for one in value.values())
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            key in value and fits(value[key], inner) for key, inner in form.items()
        )
    if form is float:
        return type(value) in (int, float) and abs(value) < float("inf")
    return value is None if form is None else type(value) is form


def _is_deep(data: bytes | str, value: Any) -> bool:
    """Whether a walk by recursion, or a repr, could exhaust the stack."""
    opened = ("[", "{") if isinstance(data, str) else (b"[", b"{")
    if sum(map(data.count, opened)) <= MAX_DEPTH:  # pyright: ignore[reportArgumentType]
        return False
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (v for node in level for v in (node.values() if isinstance(node, dict) else node))
        level = [child for child in inner if isinstance(child, dict | list)]
        if not level:
            return False
    return True


# ------------------------------------------------------------------------------------------- texts

MAX_TEXT = 2**20
"""Characters of a prompt; what follows is cut, which no model would read."""

_SPACES = re.compile("[\t\n\x0b\x0c\r\x85]")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def clean_text(text: str) -> str:
    """A prompt without control characters and halves of characters (lone surrogates).

    Tabs and line ends become spaces. Tokenizers drop controls, or fail on them, each in its way.
    """
    if text.isprintable():
        return text
    return _CONTROLS.sub("", _SPACES.sub(" ", text))


def shown(value: Any) -> str:
    """What a message says of a value from outside: its repr, cut to a line."""
    text = repr(value[:200] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
