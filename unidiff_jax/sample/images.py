"""Pictures from outside: read safely, bring to the model's size, write back."""

import io
import os
import struct
import zlib
from typing import IO, Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps, UnidentifiedImageError

from unidiff_jax.frames import CODECS
from unidiff_jax.paths import AnyPath, as_path, written_whole

MAX_SIDE = 16384
MAX_PIXELS = 2**26
"""A picture with a longer side or more pixels is refused before it is decoded."""

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


def load_image(source: Any, *, codec: str, size: int) -> np.ndarray:
    """Reads a given frame: centre crop to a square, resize, decode by its codec's kind.

    Args:
      source: path (PNG, JPEG or WebP), PIL picture, or uint8 array (h, w, 3).
      codec: `rgb` gives uint8 (size, size, 3), `depth` float in [0, 1], `mask` bool.
      size: pixels a side.

    Raises:
      InputError: no picture, another format, or too large.
    """
    picture = open_picture(source)
    picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    rgb = np.asarray(picture, np.float32) / 127.5 - 1.0
    return CODECS[codec].read(rgb)


def to_picture(rgb: np.ndarray, *, codec: str, size: tuple[int, int]) -> Image.Image:
    """A generated frame as a picture: RGB in [-1, 1] cleaned by its codec."""
    clean = CODECS[codec].draw(CODECS[codec].read(rgb))
    picture = Image.fromarray(CODECS["rgb"].read(clean))
    return picture if picture.size == size else picture.resize(size)


def write_values(values: np.ndarray, path: AnyPath) -> list[epath.Path]:
    """Writes a frame as its codec reads it, for a benchmark to score.

    Args:
      values: depth as float (h, w) in [0, 1], a mask as bool (h, w), or uint8 (h, w, 3).
      path: of a PNG; maps also get a `.npy` of the same name. Depth has 16 bits a pixel
        (65535 is 1), a mask is 0 and 255 in one channel.

    Returns:
      The files.

    Raises:
      InputError: another kind of file, which would not keep the values.
    """
    path = as_path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: values are kept by a .png alone")
    if values.ndim == 3:
        picture = Image.fromarray(values)
    elif values.dtype == bool:
        picture = Image.fromarray(values.astype(np.uint8) * np.uint8(255))
    else:
        picture = Image.fromarray(np.round(values * 65535.0).astype(np.uint16))
    with written_whole(path) as file:
        picture.save(file)
    if values.ndim == 3:
        return [path]
    array = path.with_suffix(".npy")
    with written_whole(array) as file, file.open("wb") as opened:
        np.save(opened, values, allow_pickle=False)
    return [path, array]


def open_picture(source: Any) -> Image.Image:
    """An RGB picture from a path, a PIL picture or a uint8 array; raises as `load_image`."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise InputError(
                f"a picture array is uint8 (h, w, 3), got {source.dtype} {source.shape}"
            )
        _check_size(source.shape[1], source.shape[0], "the picture")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        _check_size(*source.size, "the picture")
        try:
            return _to_rgb(source)
        except _DAMAGE as error:  # PIL reads a file's pixels only now
            raise InputError(f"the picture is damaged: {error}") from None
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a picture is a path, a PIL image or an array, got {type(source).__name__}"
        )
    path = as_path(source)
    if not path.is_file():
        raise InputError(f"no such picture: {path}")
    with path.open("rb") as file:
        return _decode(file, str(path))


def decode_picture(data: bytes, *, name: str = "the picture") -> Image.Image:
    """An RGB picture from the bytes of a PNG, JPEG or WebP file.

    Args:
      data: the file's bytes.
      name: what error messages call it.

    Raises:
      InputError: no picture, another format, damaged, or too large.
    """
    return _decode(io.BytesIO(data), name)


def _decode(file: IO[Any], name: str) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            _check_size(*picture.size, name)
            return _to_rgb(picture)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is no PNG, JPEG or WebP picture") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} is too large: {error}") from None
    except _DAMAGE as error:
        raise InputError(f"{name} is damaged: {error}") from None


def _check_size(width: int, height: int, name: str) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"{name} is {width}x{height} pixels; at most {MAX_SIDE} a side and "
            f"{MAX_PIXELS} in all: make it smaller first"
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Applies the EXIF rotation and lays transparency on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits: PIL would cut at 255
        values = np.asarray(picture, np.float32) / 257.0
        picture = Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")
