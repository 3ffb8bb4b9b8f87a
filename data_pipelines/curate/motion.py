"""How much moves between two frames: which pairs are taken, and whether they are static or dynamic.

Flow is OpenCV's DIS on greys of 128 pixels a shorter side, and its length is counted in picture
diagonals, so that numbers do not depend on the resolution. UniReal (section 3.2) tags pairs by flow
and pixel difference too and gives no thresholds: these are ours.
"""

import collections
import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.curate.clips import ClipError, Shot

_SIDE = 128
_STILL = 0.004
"""Flow below this length, .7 pixels of a picture of 128, is no movement."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Which pairs are taken.

    Attributes:
      per_shot: pairs of a shot, at most.
      min_gap, max_gap: seconds between the two frames.
      min_difference: mean absolute difference, of 1, from which a pair shows any change.
      max_difference: above it the frames have hardly anything in common.
      dynamic: share of the picture that moves in a "dynamic scenario": then it is the camera.
      min_sharpness: variance of the Laplacian of the grey picture, of values from 0 to 255.
      min_contrast: standard deviation of the grey picture, of 255: black frames have less.
    """

    per_shot: int = 2
    min_gap: float = 0.5
    max_gap: float = 3.0
    min_difference: float = 0.004
    max_difference: float = 0.35
    dynamic: float = 0.5
    min_sharpness: float = 20.0
    min_contrast: float = 8.0


class Motion(NamedTuple):
    """What happens between two frames: mean length of the flow in picture diagonals, share of the
    picture that moves, and mean absolute difference in [0, 1]."""

    flow: float
    moving: float
    difference: float


class Chosen(NamedTuple):
    """Two frames of a shot, by index, and what happens between them."""

    earlier: int
    later: int
    motion: Motion


def grey(frame: np.ndarray) -> np.ndarray:
    """Small grey picture of an RGB one: uint8, the shorter side at most 128 pixels."""
    small = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    scale = _SIDE / min(small.shape)
    if scale >= 1:
        return small
    return cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def measure(earlier: np.ndarray, later: np.ndarray) -> Motion:
    """Motion between two greys of one size (`grey`)."""
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST).calc(earlier, later, None)
    length = np.linalg.norm(flow, axis=-1) / np.hypot(*earlier.shape)
    difference = cv2.absdiff(earlier, later).mean() / 255
    return Motion(float(length.mean()), float((length > _STILL).mean()), float(difference))


def context_tags(motion: Motion, settings: PairSettings) -> tuple[str, ...]:
    """The tag of UniReal's context prompt that motion tells."""
    moves = motion.moving > settings.dynamic
    return ("dynamic scenario" if moves else "static scenario",)


def choose_pairs(
    shot: Shot,
    settings: PairSettings,
    rng: np.random.Generator,
    *,
    dropped: collections.Counter[str],
) -> list[Chosen]:
    """Pairs of a shot that show a change.

    Args:
      shot: frames and their times.
      settings: which ones fit.
      rng: draws them; up to four times as many are tried as are wanted.
      dropped: counts the pairs that were left out, by reason.

    Raises:
      ClipError: no two frames are as far apart as `min_gap`.
    """
    gaps = shot.times[None, :] - shot.times[:, None]
    fits = np.argwhere((gaps >= settings.min_gap) & (gaps <= settings.max_gap))
    if not len(fits):
        length = shot.times[-1] - shot.times[0]
        raise ClipError("too short", f"a shot of {length:.2f} s has no gap that fits")
    greys: dict[int, np.ndarray] = {}
    found: list[Chosen] = []
    for ends in rng.permutation(fits)[: 4 * settings.per_shot].tolist():
        if len(found) == settings.per_shot:
            break
        for index in ends:
            if index not in greys:
                greys[index] = grey(shot.frames[index])
        earlier, later = (greys[index] for index in ends)
        fault = _fault(earlier, later, settings)
        if fault:
            dropped[fault] += 1
        else:
            found.append(Chosen(*ends, measure(earlier, later)))
    return found


def _fault(earlier: np.ndarray, later: np.ndarray, settings: PairSettings) -> str | None:
    """Why two grey frames make no pair."""
    if min(earlier.std(), later.std()) < settings.min_contrast:
        return "no contrast"
    sharpness = [cv2.Laplacian(picture, cv2.CV_64F).var() for picture in (earlier, later)]
    if min(sharpness) < settings.min_sharpness:
        return "blurred"
    difference = cv2.absdiff(earlier, later).mean() / 255
    if difference < settings.min_difference:
        return "no motion"
    return "too different" if difference > settings.max_difference else None
