"""Semantic maps and bounding boxes as pictures in named colours, and back.

OneDiffusion tells its prompt which thing has which colour, one tag a thing, and draws the things in
those flat colours on black:

    [[semanticmap2image]] <#ff0000 Red mask: dragon> <#00ff00 Lime mask: bird> a caption

So a generated map is read by the nearest of the tags' colours. Colours are given by name and in the
order of the things; without them the first ones of `COLORS` are taken.
"""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Int, UInt8

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (0xFF, 0x00, 0x00),
    "lime": (0x00, 0xFF, 0x00),
    "blue": (0x00, 0x00, 0xFF),
    "yellow": (0xFF, 0xFF, 0x00),
    "magenta": (0xFF, 0x00, 0xFF),
    "cyan": (0x00, 0xFF, 0xFF),
    "orange": (0xFF, 0xA5, 0x00),
    "purple": (0x80, 0x00, 0x80),
    "brown": (0xA5, 0x2A, 0x2A),
    "green": (0x00, 0x80, 0x00),
    "pink": (0xFF, 0xC0, 0xCB),
    "teal": (0x00, 0x80, 0x80),
    "darkorange": (0xFF, 0x8C, 0x00),
    "blueviolet": (0x8A, 0x2B, 0xE2),
    "darkgreen": (0x00, 0x64, 0x00),
    "orangered": (0xFF, 0x45, 0x00),
    "navy": (0x00, 0x00, 0x80),
    "gold": (0xFF, 0xD7, 0x00),
    "turquoise": (0x40, 0xE0, 0xD0),
    "orchid": (0xDA, 0x70, 0xD6),
}
"""RGB by name: the released code's twenty, in its order."""

KINDS = ("mask", "boundingbox")

NOISE_SHARE = 0.1
"""Patches below this share of a colour's largest patch do not move its box."""


def color_tags(names: Sequence[str], *, kind: str, colors: Sequence[str] = ()) -> str:
    """The tags of a prompt, such as `<#00ffff Cyan mask: dragon>`, separated by spaces.

    Args:
      names: what is shown, one a colour.
      kind: `mask` or `boundingbox`.
      colors: a colour's name for each; the default is the first ones of `COLORS`.

    Raises:
      ValueError: an unknown kind or colour, a colour given twice, or another number of colours.

    Example:
      >>> color_tags(["dragon"], kind="mask", colors=["cyan"])
      '<#00ffff Cyan mask: dragon>'
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, got {kind!r}")
    chosen = _choose(colors, len(names))
    return " ".join(
        f"<#{bytes(COLORS[color]).hex()} {color.capitalize()} {kind}: {name}>"
        for color, name in zip(chosen, names, strict=True)
    )


def draw_masks(
    masks: Bool[np.ndarray, "n h w"], *, colors: Sequence[str] = ()
) -> UInt8[np.ndarray, "h w 3"]:
    """Masks in flat colours on black; of two masks at a place the later one is seen.

    Raises:
      ValueError: as `color_tags`.
    """
    masks = np.asarray(masks, bool)
    picture = np.zeros((*masks.shape[1:], 3), np.uint8)
    for mask, color in zip(masks, _choose(colors, len(masks)), strict=True):
        picture[mask] = COLORS[color]
    return picture


def read_masks(
    picture: UInt8[np.ndarray, "h w 3"], *, colors: Sequence[str]
) -> Bool[np.ndarray, "n h w"]:
    """Inverse of `draw_masks`: the places nearer to a colour than to the others and to black.

    Args:
      picture: RGB. Scaled or compressed pictures have mixed colours at edges, so give the colours
        of the tags and not all twenty: half of cyan, for one, is teal.
      colors: the tags' colours.

    Raises:
      ValueError: as `color_tags`.
    """
    colors = _choose(colors, len(colors))
    table = np.array([(0, 0, 0), *(COLORS[color] for color in colors)], np.int32)
    # One colour at a time: a table of all distances is large for large pictures.
    best = np.full(picture.shape[:2], np.iinfo(np.int32).max, np.int32)
    nearest = np.zeros(picture.shape[:2], np.int32)
    for i, color in enumerate(table):
        distance = np.square(picture.astype(np.int32) - color).sum(axis=-1)
        closer = distance < best
        best[closer], nearest[closer] = distance[closer], i
    return np.arange(1, len(table))[:, None, None] == nearest


def draw_boxes(
    boxes: Int[np.ndarray, "n 4"],
    *,
    size: tuple[int, int],
    colors: Sequence[str] = (),
    line: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Bounding boxes in flat colours on black; of two boxes at a place the later one is seen.

    Args:
      boxes: left, top, right, bottom in pixels; right and bottom are outside of the box.
      size: width and height of the picture in pixels.
      colors: as `color_tags`.
      line: thickness of outlines in pixels, drawn inside the box; None fills the boxes.

    Raises:
      ValueError: as `color_tags`; or a box that is empty or leaves the picture, or no line.
    """
    if line is not None and line < 1:
        raise ValueError(f"line is at least 1 pixel, got {line}")
    width, height = size
    masks = np.zeros((len(boxes), height, width), bool)
    for mask, box in zip(masks, np.asarray(boxes).tolist(), strict=True):
        left, top, right, bottom = box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"box {box} does not lie in a picture of {width}x{height} pixels")
        mask[top:bottom, left:right] = True
        if line is not None:
            mask[top + line : max(bottom - line, 0), left + line : max(right - line, 0)] = False
    return draw_masks(masks, colors=colors)


def read_boxes(
    picture: UInt8[np.ndarray, "h w 3"], *, colors: Sequence[str]
) -> Int[np.ndarray, "n 4"]:
    """Inverse of `draw_boxes`, for filled boxes and for outlines.

    A box is the extent of a colour's patches without the small ones, which are noise of a generated
    picture. What another box hides can make it smaller.

    Returns:
      Left, top, right, bottom in pixels; zeros for a colour that is not there.

    Raises:
      ValueError: as `color_tags`.
    """
    masks = read_masks(picture, colors=colors)
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        patches, count = scipy.ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        if not count:
            continue
        areas = np.bincount(patches.ravel())[1:]
        kept = np.isin(patches, 1 + np.flatnonzero(areas >= NOISE_SHARE * areas.max()))
        rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
        box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _choose(colors: Sequence[str], count: int) -> Sequence[str]:
    chosen = list(colors) or list(COLORS)[:count]
    for color in chosen:
        if color not in COLORS:
            raise ValueError(f"unknown colour {color!r}; colours are: {', '.join(COLORS)}")
    if len(chosen) != count:
        raise ValueError(f"{count} things need as many colours (at most 20), got {len(chosen)}")
    if len(set(chosen)) < count:
        raise ValueError(f"each thing has a colour of its own, got {', '.join(chosen)}")
    return chosen
