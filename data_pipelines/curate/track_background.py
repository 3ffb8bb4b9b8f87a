"""Finds what moves before a camera that stands still, and follows it by where it is.

Every pixel's background is a mixture of Gaussians (OpenCV's MOG2, Zivkovic 2004). It starts from
the median of the shot, which holds nothing that is anywhere for less than half of the time, so that
a thing in the first frame is no background, and follows slow changes of the light from there.
Patches of foreground, and where they are expected after their last step, are paired from frame to
frame by the assignment of least cost:

    cost = 1 - IoU               where a patch and an expected one overlap
           1 + distance / reach  where their centres are within reach of each other
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.resize import enlarge_masks, shrink_frames
from data_pipelines.curate.track import MAX_THINGS, Tracks, check_count

_MEDIAN_FRAMES = 20  # how long the model sees the median before the shot
_LEARNING_RATE = 0.01
# What stands still becomes background after some 50 frames; with MOG2's own .9, after 10.
_BACKGROUND_SHARE = 0.6
_NOISE_LEVELS = 4.0  # standard deviations from the background
_IMPOSSIBLE = 1e6


@dataclasses.dataclass(frozen=True)
class BackgroundTracker:
    """Trajectories of all that moves; needs no entities and no weights, but a still camera.

    Things that touch are one patch: it continues one of them, and the other is looked for again
    where its last step leads. A camera that moves is known by how much of the picture does; before
    smooth surfaces too little does, and what comes out then are their edges.

    Attributes:
      short_side: patches are found in frames of at most so many pixels on the shorter side, and
        enlarged; see `resize`.
      min_area: of a patch, as a share of the picture.
      min_frames: that a thing is seen in.
      max_gap: frames that a thing may be lost for, and still be the same.
      reach: how far a patch may be from where it is expected, in shorter sides a frame.
      max_foreground: mean share of the picture that may move.

    Example:
      tracks = BackgroundTracker().track(shot)
    """

    short_side: int = 192
    min_area: float = 0.001
    min_frames: int = 4
    max_gap: int = 3
    reach: float = 0.1
    max_foreground: float = 0.4

    def track(self, shot: Shot, entities: Sequence[Entity] = ()) -> Tracks:
        """What moves, with the names of entities whose boxes fit at their frames (IoU over .1).

        The thing that entity n names has id n + 1; those without a name follow. Of more things than
        ids, the ones with most pixels are kept.

        Raises:
          ClipError: a camera that moves, a shot of fewer than `min_frames` frames, or over 255
            entities.
        """
        check_count(len(entities))
        if len(shot.frames) < self.min_frames:
            raise ClipError(
                "too short", f"{len(shot.frames)} frames; things are seen in {self.min_frames}"
            )
        frames = shrink_frames(shot.frames, short_side=self.short_side)
        foreground = _foreground(frames)
        share = float(np.mean(foreground))
        if share > self.max_foreground:
            raise ClipError(
                "camera moves",
                f"{share:.0%} of the picture moves; a camera that stands still is needed",
            )
        things = [way for way in self._ways(foreground) if len(way) >= self.min_frames]
        fits = _fits(things, entities, frames.shape[1:3])
        ids = {thing: n + 1 for n, thing in fits.items()}
        rest = [n for n in range(len(things)) if n not in ids]
        room = MAX_THINGS - len(entities)
        kept = sorted(rest, key=lambda n: -sum(patch.area for patch in things[n]))[:room]
        ids |= {thing: len(entities) + 1 + n for n, thing in enumerate(sorted(kept))}
        masks = np.zeros(frames.shape[:3], np.uint8)
        for thing, i in ids.items():
            for patch in things[thing]:
                masks[patch.frame][patch.mask] = i
        names = {n + 1: entities[n].name for n in sorted(fits)}
        return Tracks(masks=enlarge_masks(masks, shot.frames.shape[1:3]), names=names)

    def _ways(self, foreground: np.ndarray) -> list[list["_Patch"]]:
        """Every thing's patches in time order; things in the order in which they appear."""
        height, width = foreground.shape[1:]
        least = max(1, round(self.min_area * height * width))
        reach = self.reach * min(height, width)
        ways: list[list[_Patch]] = []
        for t, moving in enumerate(foreground):
            patches = _patches(moving, t, least)
            open_ways = [way for way in ways if t - way[-1].frame <= self.max_gap + 1]
            cost = np.full((len(open_ways), len(patches)), _IMPOSSIBLE)
            for row, way in enumerate(open_ways):
                for column, patch in enumerate(patches):
                    cost[row, column] = _cost(way, patch, reach)
            joined = set()
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                if cost[row, column] < _IMPOSSIBLE:
                    open_ways[row].append(patches[column])
                    joined.add(column)
            ways += [[patch] for column, patch in enumerate(patches) if column not in joined]
        return ways


class _Patch(NamedTuple):
    """A connected patch of foreground."""

    frame: int
    mask: np.ndarray  # bool (h, w)
    area: int  # pixels
    center: np.ndarray  # x, y
    box: np.ndarray  # left, top, right, bottom in pixels


def _foreground(frames: np.ndarray) -> np.ndarray:
    """Where something is that is not background, without its shadow; bool (T, h, w)."""
    model = cv2.createBackgroundSubtractorMOG2(varThreshold=_NOISE_LEVELS**2, detectShadows=True)
    model.setBackgroundRatio(_BACKGROUND_SHARE)
    median = np.median(frames, axis=0).astype(np.uint8)
    for t in range(_MEDIAN_FRAMES):
        model.apply(median, None, 1 / (t + 1))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    result = np.zeros(frames.shape[:3], bool)
    for frame, moving in zip(frames, result, strict=True):
        certain = (model.apply(frame, None, _LEARNING_RATE) == 255).astype(np.uint8)
        clean = cv2.morphologyEx(certain, cv2.MORPH_OPEN, disk)
        moving[:] = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, disk, iterations=2) > 0
    return result


def _patches(moving: np.ndarray, frame: int, least: int) -> list[_Patch]:
    count, labels, stats, centers = cv2.connectedComponentsWithStats(moving.astype(np.uint8))
    result = []
    for n in range(1, count):
        left, top, width, height, area = stats[n].tolist()
        if area >= least:
            box = np.array((left, top, left + width, top + height))
            result.append(_Patch(frame, labels == n, area, centers[n], box))
    return result


def _cost(way: list[_Patch], patch: _Patch, reach: float) -> float:
    last = way[-1]
    elapsed = patch.frame - last.frame
    step = np.zeros(2)
    if len(way) > 1:
        step = (last.center - way[-2].center) / (last.frame - way[-2].frame) * elapsed
    dx, dy = np.round(step).astype(int).tolist()
    shared = np.count_nonzero(_shifted(last.mask, dx, dy) & patch.mask)
    if shared:
        return 1 - shared / (last.area + patch.area - shared)
    distance = float(np.linalg.norm(last.center + step - patch.center)) / elapsed
    return 1 + distance / reach if distance <= reach else _IMPOSSIBLE


def _shifted(mask: np.ndarray, dx: int, dy: int) -> np.ndarray:
    moved = np.array(((1, 0, dx), (0, 1, dy)), np.float32)
    size = mask.shape[::-1]
    return cv2.warpAffine(mask.astype(np.uint8), moved, size, flags=cv2.INTER_NEAREST) > 0


def _fits(
    things: Sequence[Sequence[_Patch]], entities: Sequence[Entity], size: tuple[int, int]
) -> dict[int, int]:
    """Which thing each entity is; entities that are none are left out."""
    height, width = size
    overlap = np.zeros((len(entities), len(things)))
    for row, entity in enumerate(entities):
        box = np.array(entity.box) * (width, height, width, height)
        for column, way in enumerate(things):
            for patch in way:
                if patch.frame == entity.frame:
                    overlap[row, column] = _box_iou(box, patch.box)
    pairs = zip(*linear_sum_assignment(overlap, maximize=True), strict=True)
    return {int(row): int(column) for row, column in pairs if overlap[row, column] > 0.1}


def _box_iou(first: np.ndarray, second: np.ndarray) -> float:
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.maximum(high - low, 0))
    total = sum(np.prod(np.maximum(box[2:] - box[:2], 0)) for box in (first, second))
    return float(shared / (total - shared)) if shared else 0.0
