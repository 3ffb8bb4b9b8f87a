"""COCO's masks: polygons and uncompressed run lengths to pixels, as its own tools draw them."""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

Mask = Bool[np.ndarray, "h w"]

_FINE = 5
"""COCO's tools trace outlines on a grid so many times finer than the pixels."""


def runs_to_mask(counts: Sequence[int], *, height: int, width: int) -> Mask:
    """Run lengths down the columns, of what is outside and inside in turn.

    Raises:
      ValueError: compressed (text), or of another sum than the picture's pixels.
    """
    if isinstance(counts, str | bytes):
        raise ValueError("compressed run lengths; decode them to a list first")
    runs = np.asarray(counts, np.int64)
    if runs.ndim != 1 or runs.sum() != height * width:
        raise ValueError(f"the runs sum to {runs.sum()}, the picture has {height * width} pixels")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def polygons_to_mask(polygons: Sequence[Sequence[float]], *, height: int, width: int) -> Mask:
    """The union of polygons [x, y, x, y, ...].

    Raises:
      ValueError: an odd number of coordinates, or fewer than three corners.
    """
    mask = np.zeros((height, width), bool)
    for polygon in polygons:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or len(points) % 2 or len(points) < 6:
            raise ValueError(f"a polygon has {len(points)} coordinates; three corners are six")
        mask |= _polygon(points.reshape(-1, 2), height, width)
    return mask


def _polygon(points: np.ndarray, height: int, width: int) -> Mask:
    """Fills down the columns between the places where the outline crosses their middles."""
    corners = np.trunc(_FINE * points + 0.5).astype(np.int64)
    xs, ys = _outline(np.concatenate([corners, corners[:1]]))
    # crossings: steps in x whose smaller end is in the middle of a column of pixels
    step = np.flatnonzero(xs[1:] != xs[:-1]) + 1
    left = np.where(xs[step] < xs[step - 1], xs[step], xs[step] - 1)
    column = (left + 0.5) / _FINE - 0.5
    kept = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    low = np.minimum(ys[step], ys[step - 1])
    row = np.ceil(np.clip((low + 0.5) / _FINE - 0.5, 0, height))
    starts = (column[kept] * height + row[kept]).astype(np.int64)
    # between every two crossings down the columns it is inside
    toggles = np.bincount(starts, minlength=height * width + 1)[: height * width]
    return (np.cumsum(toggles) % 2 == 1).reshape(width, height).T


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every fine place that the edges pass, along the longer direction of each."""
    xs, ys = [], []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        dx, dy = abs(x1 - x0), abs(y1 - y0)
        flip = (dx >= dy and x0 > x1) or (dx < dy and y0 > y1)
        if flip:
            x0, y0, x1, y1 = x1, y1, x0, y0
        count = max(dx, dy)
        along = np.arange(count + 1)
        along = along[::-1] if flip else along
        if dx >= dy:
            slope = (y1 - y0) / dx if dx else 0.0
            xs.append(along + x0)
            ys.append(np.trunc(y0 + slope * along + 0.5).astype(np.int64))
        else:
            slope = (x1 - x0) / dy
            ys.append(along + y0)
            xs.append(np.trunc(x0 + slope * along + 0.5).astype(np.int64))
    return np.concatenate(xs), np.concatenate(ys)
