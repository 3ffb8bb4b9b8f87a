"""GrabCut (Rother et al. 2004): which pixels of a picture are a thing, from where it roughly is.

Colours of thing and background are mixtures of five Gaussians each, and the cut follows edges.
Every pixel comes with a label of OpenCV's: surely or probably background or thing (`cv2.GC_*`).
"""

import math

import cv2
import numpy as np

_MIN_PIXELS = 5  # a mixture of five needs as many
_MIN_FILL = 0.1  # a cut that leaves less of its box has taken the thing for background


def cut(picture: np.ndarray, labels: np.ndarray, *, num_rounds: int) -> np.ndarray:
    """The thing's pixels, bool (H, W).

    Same input gives the same output: OpenCV's random numbers are seeded, for this thread.

    Args:
      picture: uint8 (H, W, 3).
      labels: uint8 (H, W), a `cv2.GC_*` each. Where too few pixels are either thing or background
        to know colours from, the labels are the answer.
      num_rounds: how often colours are learned and the cut made; 0 gives the labels' thing.
    """
    labels = np.ascontiguousarray(labels).copy()
    num_thing = np.count_nonzero(_is_thing(labels))
    if num_rounds and _MIN_PIXELS <= num_thing <= labels.size - _MIN_PIXELS:
        cv2.setRNGSeed(0)
        background, thing = np.zeros((2, 1, 65))  # learned here
        cv2.grabCut(
            np.ascontiguousarray(picture),
            labels,
            (0, 0, 1, 1),  # not read in this mode
            background,
            thing,
            num_rounds,
            cv2.GC_INIT_WITH_MASK,
        )
    return _is_thing(labels)


def mask_in_box(
    picture: np.ndarray, box: tuple[float, float, float, float], *, num_rounds: int = 4
) -> np.ndarray:
    """The thing in a box, bool (H, W).

    What lies around the box is background. A cut that finds next to nothing, or a box of a few
    pixels, gives the ellipse in the box instead.

    Args:
      picture: uint8 (H, W, 3).
      box: left, top, right, bottom as shares of the picture; parts outside [0, 1] are ignored, and
        a box without any part inside gives an empty mask.
      num_rounds: of GrabCut.
    """
    height, width = picture.shape[:2]
    mask = np.zeros((height, width), bool)
    left, top, right, bottom = box
    if not (left < right and top < bottom):
        return mask
    x0, x1 = max(math.floor(left * width), 0), min(math.ceil(right * width), width)
    y0, y1 = max(math.floor(top * height), 0), min(math.ceil(bottom * height), height)
    if x0 >= x1 or y0 >= y1:
        return mask
    oval = _ellipse(y1 - y0, x1 - x0)
    # The corners of a box are seldom the thing; where no picture is left around the box, they are
    # all that the background's colours can be learned from.
    inside = np.where(oval, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    around = max(8, (x1 - x0) // 2, (y1 - y0) // 2)
    window = np.s_[max(y0 - around, 0) : y1 + around, max(x0 - around, 0) : x1 + around]
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[y0:y1, x0:x1] = inside
    mask[window] = cut(picture[window], labels[window], num_rounds=num_rounds)
    if np.count_nonzero(mask) < _MIN_FILL * (x1 - x0) * (y1 - y0):
        mask[:] = False
        mask[y0:y1, x0:x1] = oval
    return mask


def _ellipse(height: int, width: int) -> np.ndarray:
    y = (np.arange(height)[:, None] + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    return x * x + y * y <= 0.25


def _is_thing(labels: np.ndarray) -> np.ndarray:
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
