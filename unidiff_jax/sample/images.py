"""Pictures from outside (`unidiff_jax.outside`) at the model's size, and pictures written."""

import os
from typing import Any

import numpy as np
from etils import epath
from PIL import Image, ImageOps

from unidiff_jax.frames import CODECS
from unidiff_jax.outside import InputError, check_size, convert_picture, decode_picture, read_file
from unidiff_jax.paths import AnyPath, as_path, written_whole


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
        check_size(source.shape[1], source.shape[0], name="the picture")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return convert_picture(source)
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"a picture is a path, a PIL image or an array, got {type(source).__name__}"
        )
    path = as_path(source)
    if not path.is_file():
        raise InputError(f"no such picture: {path}")
    return decode_picture(read_file(path), name=str(path))
