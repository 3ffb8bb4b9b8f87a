"""The two unpacked npm packages: pictures of emoji, and their names.

    EMOJI/assets/1f98a.webp                   @lobehub/fluent-emoji-3d: a picture a sequence of code
    EMOJI/assets/1f468-1f3fd-200d-1f373.webp  points, 256 x 256 RGBA, WebP or PNG
    NAMES/data-by-emoji.json                  unicode-emoji-json: {"🦊": {"name": "fox", "group":
                                              "Animals & Nature", ...}}, without skin tones

A *subject* is an emoji with its name. Its *looks* are the pictures that share the name: one, or six
where the emoji comes in skin tones. Seen side by side, the six are six people (or hands): skin and
hair colour differ, and with them the face; clothes, pose and tools are the same. So the looks of a
subject are different identities of one description, and words cannot tell them apart. The tones'
own names are not used: in version 1.1.0 the files of the second and the third tone are exchanged.
"""

import hashlib
import json
import pathlib
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from unidiff_jax.outside import InputError, decode_values, fits, inside, read_file, read_object

GROUPS = (
    "Smileys & Emotion",
    "People & Body",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
)
"""Groups of things. The others are signs: `Symbols` (letters and arrows on tiles), `Flags`."""

_TONES = range(0x1F3FB, 0x1F400)
_VARIATION = 0xFE0F  # asks for the coloured picture; left out at will


class PackageError(ValueError):
    """A folder that is no such package."""


class Listed(NamedTuple):
    """A subject as the packages list it; `looks` are its files, the one without a tone first."""

    emoji: str
    name: str
    group: str
    looks: list[pathlib.Path]


def list_subjects(emoji: str | pathlib.Path, names: str | pathlib.Path) -> list[Listed]:
    """Every emoji that has a name and a picture, by code points.

    Args:
      emoji: the unpacked package of pictures.
      names: the unpacked package of names.

    Raises:
      PackageError: a folder without the files above, or no picture has a name.
    """
    assets, table = pathlib.Path(emoji) / "assets", pathlib.Path(names) / "data-by-emoji.json"
    if not assets.is_dir():
        raise PackageError(f"{assets} is no folder; unpack @lobehub/fluent-emoji-3d into {emoji}")
    try:
        known = read_object(table)
        named = {_plain(map(ord, key)): (key, v["name"], v["group"]) for key, v in known.items()}
    except FileNotFoundError:
        raise PackageError(f"{table} is missing; unpack unicode-emoji-json into {names}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackageError(f"{table} is damaged ({error!r})") from None
    if not fits(known, {str: {"name": str, "group": str}}):
        raise PackageError(f"{table} is damaged (a name or a group is no text)")
    looks: dict[tuple[int, ...], dict[tuple[int, ...], pathlib.Path]] = {}
    for path in sorted(assets.iterdir()):
        if path.suffix not in (".webp", ".png"):
            continue
        try:
            inside(assets, path.name)
        except InputError as error:
            raise PackageError(str(error)) from None
        try:
            codes = [int(code, 16) for code in path.stem.split("-")]
        except ValueError:
            raise PackageError(f"{path} is not named by code points, such as 1f98a.webp") from None
        tones = tuple(code for code in codes if code in _TONES)
        looks.setdefault(_plain(codes), {}).setdefault(tones, path)
    if not looks.keys() & named.keys():
        raise PackageError(f"{assets} holds no picture that {table} names")
    return [
        Listed(*named[codes], [path for _, path in sorted(looks[codes].items())])
        for codes in sorted(looks.keys() & named.keys())
    ]


def _plain(codes) -> tuple[int, ...]:
    """Code points without tones and variation selectors: what an emoji's looks share."""
    return tuple(code for code in codes if code not in _TONES and code != _VARIATION)


def read_look(path: pathlib.Path, *, size: int) -> UInt8[np.ndarray, "s s 4"]:
    """A picture cut to what is seen, in the middle of a square; RGB times alpha, and alpha.

    Raises:
      PackageError: it cannot be read, has no alpha, or shows nothing.
    """
    try:
        picture = decode_values(read_file(path), name=str(path))
    except (InputError, OSError) as error:
        raise PackageError(f"{path} cannot be read: {error}") from None
    if picture.ndim != 3 or picture.shape[2] != 4:
        raise PackageError(f"{path} is no picture with an alpha channel")
    rows, columns = (np.flatnonzero((picture[..., 3] >= 8).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise PackageError(f"{path} shows nothing")
    seen = picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    seen[..., :3] *= seen[..., 3:] / 255  # so that resampling mixes no colour of unseen pixels in
    height, width = seen.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = seen
    small = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
    return np.rint(small).astype(np.uint8)


def digest(subjects: list[Listed]) -> str:
    """SHA-256 of names and pictures: what the records are made of."""
    total = hashlib.sha256()
    for subject in subjects:
        total.update(json.dumps([subject.emoji, subject.name, subject.group]).encode())
        for look in subject.looks:
            total.update(hashlib.sha256(look.read_bytes()).digest())
    return total.hexdigest()
