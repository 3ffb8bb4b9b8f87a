"""What is said of a scene: which things it shows, where, and on what background.

    a fox on the left and a pizza on the right, on a light blue background
    <p> on the left and a pizza on the right, on a light blue background

Places are read off the exact masks, and said only where they are plain: two things stand beside
each other if their middles are `BESIDE` apart along one axis, and less along the other.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from data_pipelines.subjects.names import phrase

PLACEHOLDER = "<p>"
"""Stands for a thing that a picture or its features tell (UniVG)."""

BESIDE = 0.18
"""In sides of the picture."""

OFF_CENTRE, CENTRED = 0.15, 0.07
"""A lone thing is on a side if its middle is so far from the picture's, or in the middle."""

_AXES = (("on the left", "on the right"), ("at the top", "at the bottom"))


def say_places(instance: UInt8[np.ndarray, "h w"], count: int) -> list[str] | None:
    """Where each thing is, such as `on the left`; None where it is not plain.

    Args:
      instance: 1 + number of the thing that is seen, 0 for none.
      count: number of things, each of which is seen.
    """
    middles = []
    for number in range(1, count + 1):
        rows, columns = np.nonzero(instance == number)
        middles.append((columns.mean() + 0.5, rows.mean() + 0.5))
    points = np.array(middles) / len(instance)
    if count == 1:
        off = points[0] - 0.5
        axis = int(np.argmax(np.abs(off)))
        if np.abs(off).max() <= CENTRED:
            return ["in the middle"]
        if abs(off[axis]) < OFF_CENTRE or abs(off[axis]) < 1.5 * abs(off[1 - axis]):
            return None
        return [_AXES[axis][int(off[axis] > 0)]]
    for axis in (0, 1):
        order = np.argsort(points[:, axis])
        along = np.diff(points[order, axis])
        if along.min() >= BESIDE and along.min() >= np.abs(np.diff(points[order, 1 - axis])).max():
            low, high = _AXES[axis]
            words = [low, high] if count == 2 else [low, "in the middle", high]
            return [words[place] for place in np.argsort(order)]
    return None


def caption(
    words: Sequence[str],
    *,
    background: str,
    places: Sequence[str] | None = None,
    order: Sequence[int] | None = None,
    replaced: Sequence[int] = (),
) -> str:
    """A scene in one sentence.

    Args:
      words: what the things are called.
      background: its words.
      places: where they are; None says nothing of it.
      order: in which they are named; None is as given.
      replaced: numbers of the things that are called `PLACEHOLDER`.
    """
    parts = []
    for i in range(len(words)) if order is None else order:
        name = PLACEHOLDER if i in replaced else phrase(words[i])
        parts.append(name if places is None else f"{name} {places[i]}")
    named = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    comma = "," if len(parts) > 1 or places is not None else ""
    return f"{named}{comma} on {background}"


def expression(words: str, *, place: str | None = None) -> str:
    """A thing of a scene, as in `the fox on the left`."""
    return f"the {words}" if place is None else f"the {words} {place}"
