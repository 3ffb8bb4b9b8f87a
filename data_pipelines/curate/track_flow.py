"""Carries masks from frame to frame: dense optical flow moves them, GrabCut mends their edges.

A thing is followed from the frame that it is known in towards both ends of the shot. With b the
optical flow (OpenCV's DIS, Kroeger et al. 2016) from frame t to the frame s that came before it on
the way, and f the flow from s to t:

    prior        the mask of s, read at x + b(x); nothing comes from outside the picture
    consistent   |b(x) + f(x + b(x))|^2 < 1 + 0.01 |b(x)|^2                                    (1)
    surely it    inside the prior, further than a band from its edge, where (1) holds
    surely not   outside the prior, further than a band from its edge, or surely another thing
    mask         GrabCut of what is left, on the picture beside the frame that the thing was first
                 seen in, so that its colours do not drift

A thing has left when next to nothing of its mask remains, or when the colours in its mask are
nearer to those that were around it at first. It then stays away: nothing here knows a thing again
that comes back from outside the picture or from being wholly hidden.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.grabcut import cut, mask_in_box
from data_pipelines.curate.resize import enlarge_masks, shrink_frames, shrink_mask
from data_pipelines.curate.track import Tracks, check_count

_BAND = 1 / 32  # of the shorter side
_MARGIN = 2.5  # bands around a mask that the background's colours are learned from
_MIN_SIDE = 16  # DIS refuses pictures of 8 pixels
_MIN_AREA = 4  # pixels at the resolution that masks are followed at
_MIN_SHARE = 0.01  # of the first area
# A cut that makes a thing so much smaller or larger within a frame has mistaken its colours. This
# guard raises the mean J of things of 15 pixels in textured clips from .67 to .79.
_AREA_CHANGE = (0.7, 1.4)
_NUM_BINS = 8  # of a colour channel
# The affinity of two sets of colours is 1 for the same and 0 for disjoint ones. Exact masks of 24
# things that move, turn and hide each other kept .81 and more of the first colours.
_MIN_AFFINITY = 0.3
_MAX_AFFINITY = 0.95  # of a thing and what is around it; above, colours do not tell them apart

Window = tuple[slice, slice]


@dataclasses.dataclass(frozen=True)
class FlowTracker:
    """Follows entities by flow and GrabCut, forward and backward from their frames; no weights.

    Attributes:
      short_side: masks are followed in frames of at most so many pixels on the shorter side, and
        enlarged; see `resize`.
      num_rounds: rounds of GrabCut a frame; 0 leaves the masks to the flow alone.

    Example:
      tracks = FlowTracker().track(shot, [Entity("a dog", box=(0.2, 0.3, 0.5, 0.8), frame=7)])
    """

    short_side: int = 192
    num_rounds: int = 1

    def track(self, shot: Shot, entities: Sequence[Entity]) -> Tracks:
        """Follows what is in the entities' boxes; see `grabcut.mask_in_box`.

        Raises:
          ClipError: an entity of a frame that the shot does not have, or over 255 entities.
        """
        for entity in entities:
            if not 0 <= entity.frame < len(shot.frames):
                raise ClipError(
                    "entity frame",
                    f"{entity.name!r} is of frame {entity.frame}; the shot has {len(shot.frames)}",
                )
        small = shrink_frames(shot.frames, short_side=self.short_side)
        masks = [mask_in_box(small[entity.frame], entity.box) for entity in entities]
        found = self._follow(small, masks, [entity.frame for entity in entities])
        names = {n + 1: entity.name for n, entity in enumerate(entities)}
        return Tracks(masks=enlarge_masks(found, shot.frames.shape[1:3]), names=names)

    def propagate(self, frames: np.ndarray, mask: np.ndarray, *, start: int = 0) -> np.ndarray:
        """Masks, bool (T, H, W), of one thing whose mask in one frame is known.

        Args:
          frames: uint8 (T, H, W, 3), RGB.
          mask: bool (H, W).
          start: which frame the mask is of.
        """
        return self.propagate_all(frames, [mask], starts=[start]) > 0

    def propagate_all(
        self, frames: np.ndarray, masks: Sequence[np.ndarray], *, starts: Sequence[int]
    ) -> np.ndarray:
        """Masks, uint8 (T, H, W), of several things at once; thing n has id n + 1.

        Args:
          frames: uint8 (T, H, W, 3), RGB.
          masks: bool (H, W) each; where two of one frame overlap, the smaller thing is in front.
          starts: which frame each mask is of.

        Raises:
          ClipError: masks of another size than the frames, or over 255 of them.
        """
        size = frames.shape[1:3]
        for mask in masks:
            if mask.shape != size:
                raise ClipError("mask size", f"a mask is {mask.shape}, the frames are {size}")
        small = shrink_frames(frames, short_side=self.short_side)
        shrunk = [shrink_mask(mask, small.shape[1:3]) for mask in masks]
        return enlarge_masks(self._follow(small, shrunk, starts), size)

    def _follow(
        self, frames: np.ndarray, masks: Sequence[np.ndarray], starts: Sequence[int]
    ) -> np.ndarray:
        """Ids, uint8 (T, h, w), from masks, bool (h, w), at the resolution of the frames."""
        check_count(len(masks))
        band = max(2, round(_BAND * min(frames.shape[1:3])))
        things = {
            n + 1: _Thing.first_seen(frames[start], mask, start=start, band=band)
            for n, (mask, start) in enumerate(zip(masks, starts, strict=True))
        }
        found = np.zeros(frames.shape[:3], np.uint8)
        # Where a thing followed forward meets one followed backward, the one whose own frame is
        # nearer has drifted less.
        distance = np.full(frames.shape[:3], len(frames), np.int32)
        for order in (range(len(frames)), range(len(frames) - 1, -1, -1)):
            for t, present in self._one_way(frames, things, order, band):
                for i, mask in present.items():
                    away = abs(t - things[i].start)
                    mine = mask & (away < distance[t])
                    found[t][mine] = i
                    distance[t][mine] = away
        return found

    def _one_way(
        self,
        frames: np.ndarray,
        things: Mapping[int, "_Thing"],
        order: Iterable[int],
        band: int,
    ) -> Iterator[tuple[int, dict[int, np.ndarray]]]:
        """Frame by frame, the masks of the things that were seen by then and have not left."""
        present: dict[int, np.ndarray] = {}
        before = 0
        for t in order:
            if present:
                motion = _Motion.between(frames[before], frames[t])
                priors = {i: motion.carry(mask) for i, mask in present.items()}
                present = self._mend(frames[t], priors, motion.consistent, things, band)
            fresh = {i: thing.mask for i, thing in things.items() if thing.start == t}
            for i in sorted(fresh, key=lambda i: np.count_nonzero(fresh[i]), reverse=True):
                present = {j: mask & ~fresh[i] for j, mask in present.items()} | {i: fresh[i]}
            present = {i: mask for i, mask in present.items() if mask.any()}
            yield t, present
            before = t

    def _mend(
        self,
        frame: np.ndarray,
        priors: Mapping[int, np.ndarray],
        consistent: np.ndarray,
        things: Mapping[int, "_Thing"],
        band: int,
    ) -> dict[int, np.ndarray]:
        """Masks of the things that are still in the frame, from priors, float (h, w) in [0, 1]."""
        if not self.num_rounds:
            masks = {i: prior >= 0.5 for i, prior in priors.items()}
            return {i: mask for i, mask in masks.items() if mask.any()}
        sure = {i: _eroded(prior >= 0.5, band) & consistent for i, prior in priors.items()}
        score = np.zeros(frame.shape[:2], np.float32)
        owner = np.zeros(frame.shape[:2], np.uint8)
        for i, prior in priors.items():
            near = _dilated(prior >= 0.5, band)
            if not near.any():
                continue
            others = [other for j, other in sure.items() if j != i]
            labels = np.where(prior >= 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
            labels[sure[i]] = cv2.GC_FGD
            labels[~near | np.any(others, axis=0)] = cv2.GC_BGD
            mask = things[i].cut_out(frame, labels, _window(near, band), self.num_rounds)
            # A pixel that two things claim goes to the one that the flow brings there; what was
            # never there before scores little, and still more than nobody.
            mine = mask & (prior + 0.01 > score)
            score[mine], owner[mine] = prior[mine] + 0.01, i
        masks = {i: owner == i for i in priors}
        return {i: mask for i, mask in masks.items() if not things[i].has_left(frame, mask)}


class _Motion(NamedTuple):
    """Where the pixels of a frame were in the one before."""

    x: np.ndarray  # float32 (h, w), pixels
    y: np.ndarray
    consistent: np.ndarray  # bool (h, w), whether equation (1) holds

    @classmethod
    def between(cls, before: np.ndarray, after: np.ndarray) -> "_Motion":
        height, width = after.shape[:2]
        first, second = _grey(before), _grey(after)
        flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        # At full resolution: mean J of flow alone is .04 to .05 lower at half of it.
        flow.setFinestScale(0)
        still = np.zeros((*first.shape, 2), np.float32)
        backward = flow.calc(second, first, still.copy())[:height, :width]
        forward = flow.calc(first, second, still)[:height, :width]
        y, x = np.mgrid[:height, :width].astype(np.float32)
        x, y = x + backward[..., 0], y + backward[..., 1]
        there = cv2.remap(forward, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        gap = np.sum((backward + there) ** 2, axis=-1)
        return cls(x, y, gap < 1 + 0.01 * np.sum(backward**2, axis=-1))

    def carry(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the frame before, in this one: float32 (h, w) in [0, 1]."""
        share = mask.astype(np.float32)
        return cv2.remap(share, self.x, self.y, cv2.INTER_LINEAR, borderValue=0)


class _Thing(NamedTuple):
    """A thing as it was first seen; colours are histograms that sum to 1."""

    start: int
    mask: np.ndarray  # bool (h, w)
    picture: np.ndarray  # uint8 (m, n, 3), a window around the mask
    labels: np.ndarray  # uint8 (m, n), what of the window is surely the thing and what is not
    colors: np.ndarray
    colors_around: np.ndarray

    @classmethod
    def first_seen(cls, frame: np.ndarray, mask: np.ndarray, *, start: int, band: int) -> "_Thing":
        window = _window(mask, round(_MARGIN * band))
        picture, inside = frame[window], mask[window]
        return cls(
            start=start,
            mask=mask,
            picture=picture,
            labels=np.where(inside, cv2.GC_FGD, cv2.GC_BGD).astype(np.uint8),
            colors=_colors(picture, inside),
            colors_around=_colors(picture, ~inside),
        )

    def cut_out(
        self, frame: np.ndarray, labels: np.ndarray, window: Window, num_rounds: int
    ) -> np.ndarray:
        """The thing by GrabCut within the window, or as labelled where that fails; bool (h, w)."""
        picture, inside = frame[window], labels[window]
        height, width = inside.shape
        widest = max(width, self.labels.shape[1])
        # Mirrored to one width: a border of one colour would be learned as the background's.
        both = np.concatenate([_widened(picture, widest), _widened(self.picture, widest)])
        known = np.concatenate([_widened(inside, widest), _widened(self.labels, widest)])
        mask = np.zeros(labels.shape, bool)
        mask[window] = cut(both, known, num_rounds=num_rounds)[:height, :width]
        prior = cut(frame, labels, num_rounds=0)
        least, most = (change * np.count_nonzero(prior) for change in _AREA_CHANGE)
        return mask if least <= np.count_nonzero(mask) <= most else prior

    def has_left(self, frame: np.ndarray, mask: np.ndarray) -> bool:
        """Whether next to nothing, or something else, is in the mask."""
        area = np.count_nonzero(mask)
        if area < max(_MIN_AREA, _MIN_SHARE * np.count_nonzero(self.mask)):
            return True
        if _affinity(self.colors, self.colors_around) > _MAX_AFFINITY:
            return False
        colors = _colors(frame, mask)
        affinity = _affinity(colors, self.colors)
        return affinity < max(_MIN_AFFINITY, _affinity(colors, self.colors_around))


def _grey(frame: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    missing = [max(0, _MIN_SIDE - side) for side in grey.shape]
    return cv2.copyMakeBorder(grey, 0, missing[0], 0, missing[1], cv2.BORDER_REPLICATE)


def _colors(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Smoothed histogram of the colours in a mask; zeros for an empty one."""
    bins, span = 3 * [_NUM_BINS], 3 * [0, 256]
    counts = cv2.calcHist([picture], [0, 1, 2], mask.astype(np.uint8), bins, span)
    smooth = gaussian_filter(counts, 0.7, mode="nearest")
    return smooth / max(1.0, float(smooth.sum()))


def _affinity(first: np.ndarray, second: np.ndarray) -> float:
    """Bhattacharyya's, in [0, 1]."""
    return float(np.sqrt(first * second).sum())


def _disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _eroded(mask: np.ndarray, radius: int) -> np.ndarray:
    # A thing that the picture's border cuts goes on behind it.
    return cv2.erode(mask.astype(np.uint8), _disk(radius), borderValue=1) > 0


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), _disk(radius)) > 0


def _window(mask: np.ndarray, margin: int) -> Window:
    """The mask's bounding box with a margin, within the picture."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return np.s_[:0, :0]
    return np.s_[
        max(rows[0] - margin, 0) : rows[-1] + margin + 1,
        max(columns[0] - margin, 0) : columns[-1] + margin + 1,
    ]


def _widened(picture: np.ndarray, width: int) -> np.ndarray:
    more = [(0, 0), (0, width - picture.shape[1])] + [(0, 0)] * (picture.ndim - 2)
    return np.pad(picture, more, mode="symmetric")
