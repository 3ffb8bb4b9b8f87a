"""Things in a picture, given by masks: cut out, covered, chosen and named.

Masks are bool (h, w); a picture is uint8 (h, w, 3), RGB. What a video or a drawn scene shows
becomes references and holes by the same rules.
"""

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Integer, UInt8

HOLE_GREY = 128
MAX_ASSETS = 3
MIN_SHARE = 0.015
"""A thing of fewer of the picture's pixels is no reference: 15 pixels at 32 a side."""

_ARTICLE = re.compile(r"^(?:a|an|the|some)\s+", re.IGNORECASE)

_Thing = TypeVar("_Thing")


def is_seen(ids: Integer[np.ndarray, "n h w"], thing: int) -> bool:
    """Whether each of some maps of ids shows a thing whole enough to be a reference."""
    areas = (ids == thing).sum(axis=(1, 2))
    return bool((areas >= MIN_SHARE * ids[0].size).all())


def box_of(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box; the mask is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def cut_out(
    picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """A thing alone on white, in its bounding box."""
    box = box_of(mask)
    return np.where(mask[box][..., None], picture[box], np.uint8(255))


def cover(
    picture: UInt8[np.ndarray, "h w 3"], masks: Sequence[Bool[np.ndarray, "h w"]]
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with grey boxes over things."""
    hole = boxes(masks, shape=picture.shape[:2])
    return np.where(hole[..., None], np.uint8(HOLE_GREY), picture)


def boxes(
    masks: Sequence[Bool[np.ndarray, "h w"]], *, shape: tuple[int, ...]
) -> Bool[np.ndarray, "h w"]:
    """The bounding boxes of masks of a shape, filled."""
    filled = np.zeros(shape, bool)
    for mask in masks:
        filled[box_of(mask)] = True
    return filled


def draw_things(things: Sequence[_Thing], rng: np.random.Generator, *, most: int) -> list[_Thing]:
    """A random number of things, at most `most`, in random order."""
    count = min(len(things), int(rng.integers(1, most + 1)))
    return [things[i] for i in rng.permutation(len(things))[:count]]


def bare_name(name: str) -> str:
    """A name without its article: `a red ball` is `red ball`."""
    return _ARTICLE.sub("", name.strip())


def name_references(names: Sequence[str], *, first: int) -> str:
    """What a prompt calls things that further frames show.

    Args:
      names: of the things.
      first: number of the frame that shows the first one.

    Example:
      >>> name_references(["a dog", "red ball"], first=1)
      'the dog of IMG1 and the red ball of IMG2'
    """
    parts = (f"the {bare_name(name)} of IMG{number}" for number, name in enumerate(names, first))
    return " and ".join(parts)
