"""Measures mask trackers on drawn clips: `python -m launch.bench --tracking`.

J is the intersection over union of a thing's mask and the exact one, 1 where both are empty
(Perazzi et al. 2016), in every frame after the first. What each tracker gets of the first frame is
in its row: exact masks, or boxes around them.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping

import cv2
import numpy as np
from tqdm import tqdm

from data_pipelines.curate.clips import Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.exact_clips import rendered_clip, textured_clip
from data_pipelines.curate.track_flow import FlowTracker

CLIPS: Mapping[str, Callable[..., Shot]] = {"rendered": rendered_clip, "textured": textured_clip}


@dataclasses.dataclass(frozen=True)
class Row:
    """How one tracker did on one kind of clips.

    Attributes:
      clips: a key of `CLIPS`.
      tracker: a key of `TRACKERS`.
      mean: J, the mean over a clip's things and frames, then over clips.
      spread: its standard deviation over clips.
      num_tracks: things followed in all clips.
      frames_per_second: frames of one thing followed in a second, on one core. Things of a clip
        are followed together and share the optical flow.
    """

    clips: str
    tracker: str
    mean: float
    spread: float
    num_tracks: int
    frames_per_second: float


def first_ids(shot: Shot) -> list[int]:
    """Ids of the things that the first frame shows."""
    assert shot.masks is not None
    return [int(i) for i in np.unique(shot.masks[0]) if i]


def mean_iou(found: np.ndarray, shot: Shot) -> float:
    """J, mean over the first frame's things and all later frames.

    Args:
      found: uint8 (T, H, W); the first frame's nth id, from 1, is the nth of `first_ids`.
      shot: a shot with exact masks.
    """
    assert shot.masks is not None
    scores = []
    for n, i in enumerate(first_ids(shot)):
        for mine, exact in zip(found[1:] == n + 1, shot.masks[1:] == i, strict=True):
            union = np.count_nonzero(mine | exact)
            scores.append(np.count_nonzero(mine & exact) / union if union else 1.0)
    return float(np.mean(scores))


def _copy(shot: Shot) -> np.ndarray:
    assert shot.masks is not None
    return np.repeat(np.searchsorted([0, *first_ids(shot)], shot.masks[:1]), len(shot.frames), 0)


def _from_masks(tracker: FlowTracker) -> Callable[[Shot], np.ndarray]:
    def follow(shot: Shot) -> np.ndarray:
        assert shot.masks is not None
        masks = [shot.masks[0] == i for i in first_ids(shot)]
        return tracker.propagate_all(shot.frames, masks, starts=[0] * len(masks))

    return follow


def _from_boxes(tracker: FlowTracker) -> Callable[[Shot], np.ndarray]:
    def follow(shot: Shot) -> np.ndarray:
        assert shot.masks is not None
        height, width = shot.masks.shape[1:]
        entities = []
        for i in first_ids(shot):
            x, y, w, h = cv2.boundingRect((shot.masks[0] == i).astype(np.uint8))
            box = (x / width, y / height, (x + w) / width, (y + h) / height)
            entities.append(Entity(f"thing {i}", box))
        return tracker.track(shot, entities).masks

    return follow


TRACKERS: Mapping[str, Callable[[Shot], np.ndarray]] = {
    "copy of the first mask": _copy,
    "flow": _from_masks(FlowTracker(num_rounds=0)),
    "flow + GrabCut": _from_masks(FlowTracker()),
    "flow + GrabCut from boxes": _from_boxes(FlowTracker()),
}


FIRST_SEED = 500
"""Of the clips: none of those that the trackers' settings were chosen on (0 to 307)."""


def measure_trackers(*, num_clips: int = 10, num_frames: int = 14, size: int = 128) -> list[Row]:
    """Follows every thing of the clips with every tracker; the same clips at every call.

    Args:
      num_clips: of each kind.
      num_frames: of a clip.
      size: pixels a side.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    rows = []
    steps = len(CLIPS) * len(TRACKERS) * num_clips
    with tqdm(total=steps, desc="tracking", leave=False, disable=not sys.stderr.isatty()) as bar:
        for kind, draw in CLIPS.items():
            seeds = range(FIRST_SEED, FIRST_SEED + num_clips)
            shots = [draw(seed=seed, num_frames=num_frames, size=size) for seed in seeds]
            num_tracks = sum(len(first_ids(shot)) for shot in shots)
            for name, follow in TRACKERS.items():
                scores, seconds = [], 0.0
                for shot in shots:
                    start = time.perf_counter()
                    found = follow(shot)
                    seconds += time.perf_counter() - start
                    scores.append(mean_iou(found, shot))
                    bar.update()
                rate = num_tracks * (num_frames - 1) / seconds
                mean, spread = float(np.mean(scores)), float(np.std(scores))
                rows.append(Row(kind, name, mean, spread, num_tracks, rate))
    cv2.setNumThreads(threads)
    return rows
