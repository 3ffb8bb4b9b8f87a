"""Depth maps as the pictures that tasks train on.

Depth is drawn as inverse depth, near is bright, as affine-invariant depth models have it:

    nearness = (1 / z - 1 / far) / (1 / near - 1 / far), cut to [0, 1]

Recorded depth has every scale, so `near` and `far` are the picture's own: the 2nd and the 98th of a
hundred parts of its depth, as Marigold chooses them (Ke et al. 2024, section 3.2); single wrong
pixels do not move them. MiniWorld, whose scenes have one scale, has fixed planes
(`miniworld.items`).
"""

import numpy as np
from PIL import Image

from data_pipelines.sources.base import SampleError

PERCENTILES = (2.0, 98.0)


def draw_nearness(depth: np.ndarray, *, name: str) -> Image.Image:
    """Depth as an RGB picture.

    Args:
      depth: z-depth (h, w) in any unit; pixels where it is not a number above 0 are black.
      name: what messages call it.

    Raises:
      SampleError: nothing has a depth, or all has the same.
    """
    depth = np.asarray(depth, np.float64)
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        raise SampleError(f"{name}: no pixel has a depth")
    near, far = np.percentile(depth[known], PERCENTILES)
    if not near < far:
        raise SampleError(f"{name}: all pixels have the depth {near:g}")
    nearness = (1 / np.where(known, depth, far) - 1 / far) / (1 / near - 1 / far)
    grey = np.round(255 * np.clip(nearness, 0.0, 1.0)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
