"""Frames made smaller to find masks in, and the masks brought back to the frames' size."""

import cv2
import numpy as np


def shrink_frames(frames: np.ndarray, *, short_side: int) -> np.ndarray:
    """Frames, uint8 (T, H, W, 3), with at most `short_side` pixels on the shorter side."""
    height, width = frames.shape[1:3]
    scale = short_side / min(height, width)
    if scale >= 1:
        return frames
    size = round(width * scale), round(height * scale)
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask, bool (H, W), at a smaller size (h, w); a thing that has pixels keeps one or more."""
    share = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    # Of a thing smaller than a pixel, the pixel that shows most of it.
    return (share > 0) & (share >= min(0.5, float(share.max())))


def enlarge_masks(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Ids, uint8 (T, h, w), at a larger size (H, W).

    Every id is enlarged linearly and cut at one half, so that edges are smooth and no pixel has
    two ids.
    """
    if masks.shape[1:] == size:
        return masks
    result = np.zeros((len(masks), *size), np.uint8)
    for small, large in zip(masks, result, strict=True):
        for i in np.unique(small[small > 0]):
            share = (small == i).astype(np.float32)
            large[cv2.resize(share, size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5] = i
    return result
