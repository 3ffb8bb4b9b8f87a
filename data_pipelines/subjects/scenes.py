"""How subjects are drawn together: where they stand, how they are turned and lit, and on what.

A look is drawn in a scene and as a reference ("asset") by the same function with other numbers: in
a scene it has at most `LARGEST` of the picture's side, as a reference at least `ASSET_SIDES[0]`;
both are mirrored, turned and lit by chance. So pixels that are copied are no answer.

Masks are exact: a pixel is a thing's where its alpha is a half or more and nothing drawn later has
that. The look's edges are mixed with the background.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

Look = UInt8[np.ndarray, "s s 4"]

SIDES = {1: (0.45, 0.7), 2: (0.36, 0.52), 3: (0.3, 0.4)}
"""A thing's side by the number of things, in sides of the picture."""

LARGEST = SIDES[1][1]
ASSET_SIDES = (0.8, 0.95)
MAX_OVERLAP = 0.1
"""Share of the smaller thing's square that another's may cover."""

SCENE_TURN, ASSET_TURN = 12.0, 20.0
"""Degrees, either way."""

GAIN, SHADE = 0.12, 0.12
"""Light: change of a whole thing's brightness, and from one side of it to the other, either way."""

COLORS = {
    "white": (250, 250, 250),
    "light grey": (205, 208, 212),
    "dark grey": (72, 76, 82),
    "black": (18, 18, 20),
    "light blue": (168, 208, 240),
    "blue": (44, 92, 190),
    "light green": (178, 222, 170),
    "green": (40, 128, 66),
    "yellow": (246, 222, 110),
    "orange": (240, 150, 60),
    "red": (196, 44, 48),
    "pink": (246, 184, 204),
    "purple": (128, 72, 160),
    "brown": (128, 88, 56),
}
"""RGB of the names of backgrounds."""


class Background(NamedTuple):
    """What is behind the things: its picture, and words such as `a light blue background`."""

    picture: UInt8[np.ndarray, "h w 3"]
    words: str


class Scene(NamedTuple):
    """A drawn scene.

    Attributes:
      picture: uint8 (h, w, 3).
      instance: uint8 (h, w), 1 + the number of the thing that is seen, 0 for the background.
      background: its words.
      behind: the picture without things.
    """

    picture: UInt8[np.ndarray, "h w 3"]
    instance: UInt8[np.ndarray, "h w"]
    background: str
    behind: UInt8[np.ndarray, "h w 3"]


def draw_background(size: int, rng: np.random.Generator) -> Background:
    """One colour, a slope between two, or two halves."""
    first, second = (list(COLORS)[i] for i in rng.choice(len(COLORS), 2, replace=False))
    kind, level = rng.integers(4), rng.random() < 0.5
    a, b = np.array(COLORS[first], np.float32), np.array(COLORS[second], np.float32)
    if kind < 2:  # half of all
        share, words = np.zeros(size, np.float32), f"{_article(first)} {first} background"
    else:
        sides = ("on the left", "on the right") if level else ("at the top", "at the bottom")
        share = (np.arange(size, dtype=np.float32) + 0.5) / size
        if kind == 2:
            words = f"a background that fades from {first} {sides[0]} to {second} {sides[1]}"
        else:
            share = np.rint(share)
            words = f"a background that is {first} {sides[0]} and {second} {sides[1]}"
    line = np.rint(a + share[:, None] * (b - a)).astype(np.uint8)
    picture = np.broadcast_to(line[None] if level else line[:, None], (size, size, 3))
    return Background(picture, words)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def place(count: int, rng: np.random.Generator) -> np.ndarray:
    """Sides and centres (x, y) of things, (count, 3) in sides of the picture."""
    low, high = SIDES[count]
    while True:
        sides = rng.uniform(low, high, (32, count))
        centres = sides[..., None] / 2 + rng.random((32, count, 2)) * (1 - sides[..., None])
        for side, centre in zip(sides, centres, strict=True):
            if _overlap(side, centre) <= MAX_OVERLAP:
                return np.concatenate([side[:, None], centre], axis=1)


def _overlap(side: np.ndarray, centre: np.ndarray) -> float:
    """Largest share of a thing's square that another one covers."""
    worst = 0.0
    for i in range(len(side)):
        for j in range(i):
            reach = (side[i] + side[j]) / 2 - np.abs(centre[i] - centre[j])
            small = min(side[i], side[j])
            x, y = np.minimum(np.maximum(reach, 0.0), small)
            worst = max(worst, x * y / small**2)
    return worst


def draw_look(
    look: Look,
    *,
    size: int,
    side: float,
    centre: tuple[float, float],
    turn: float,
    mirrored: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """A look alone, lit by chance: float32 (size, size, 4), RGB times alpha and alpha, to 255.

    Args:
      look: as in records.
      size: pixels a side of the picture.
      side: of the look's square, in pixels.
      centre: (x, y) of its middle, in pixels.
      turn: degrees.
      mirrored: left and right exchanged.
      rng: of the light.
    """
    # one step of averaging a halving, so that the bilinear sampling below skips no pixels
    while look.shape[0] // 2 >= max(side, 2):
        half = look.shape[0] // 2
        look = cv2.resize(look, (half, half), interpolation=cv2.INTER_AREA)
    scale, angle = side / look.shape[0], math.radians(turn)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    turned = np.array([[-cos if mirrored else cos, -sin], [-sin if mirrored else sin, cos]])
    middle = (look.shape[0] - 1) / 2
    shift = np.array(centre) - 0.5 - turned @ (middle, middle)
    drawn = cv2.warpAffine(
        look,
        np.concatenate([turned, shift[:, None]], axis=1),
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    ).astype(np.float32)
    gain, slope = 1 + rng.uniform(-GAIN, GAIN), rng.uniform(-SHADE, SHADE)
    axis = int(rng.integers(2))
    along = (np.arange(size, dtype=np.float32) + 0.5 - centre[axis]) / side
    light = gain + slope * np.clip(along, -0.5, 0.5)
    light = light[None, :, None] if axis == 0 else light[:, None, None]
    drawn[..., :3] = np.minimum(drawn[..., :3] * light, drawn[..., 3:])
    return drawn


def draw_scene(
    looks: Sequence[Look], *, size: int, sided: Sequence[bool], rng: np.random.Generator
) -> Scene:
    """Draws one to three looks over a background.

    Args:
      looks: as in records.
      size: pixels a side.
      sided: which of them must not be mirrored.
      rng: of everything else.
    """
    background = draw_background(size, rng)
    picture = background.picture.astype(np.float32)
    instance = np.zeros((size, size), np.uint8)
    places = place(len(looks), rng) * size
    for number, (look, fixed, (side, x, y)) in enumerate(
        zip(looks, sided, places, strict=True), start=1
    ):
        drawn = draw_look(
            look,
            size=size,
            side=side,
            centre=(x, y),
            turn=rng.uniform(-SCENE_TURN, SCENE_TURN),
            mirrored=bool(rng.random() < 0.5) and not fixed,
            rng=rng,
        )
        alpha = drawn[..., 3:]
        picture = picture * (1 - alpha / 255) + drawn[..., :3]
        instance[alpha[..., 0] >= 127.5] = number
    drawn = np.rint(picture).astype(np.uint8)
    return Scene(drawn, instance, background.words, background.picture)


def draw_asset(
    look: Look, *, size: int, sided: bool, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """A look alone on white, larger than in any scene.

    Args:
      look: as in records.
      size: pixels a side.
      sided: it must not be mirrored.
      rng: of size, turn, mirroring and light.
    """
    drawn = draw_look(
        look,
        size=size,
        side=size * rng.uniform(*ASSET_SIDES),
        centre=(size / 2, size / 2),
        turn=rng.uniform(-ASSET_TURN, ASSET_TURN),
        mirrored=bool(rng.random() < 0.5) and not sided,
        rng=rng,
    )
    return np.rint(255 - drawn[..., 3:] + drawn[..., :3]).astype(np.uint8)
