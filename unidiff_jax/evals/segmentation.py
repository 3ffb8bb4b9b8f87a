"""Referring segmentation by the conventions of LAVT's test script (Yang et al. 2022).

The unit is a sentence, not an object: an object with three expressions counts three times.

    overlaps = [metrics.mask_overlap(p[None], target=t[None]) for p, t in items]
    found = scores(np.concatenate([o.intersection for o in overlaps]), ...)

Masks are compared at the picture's original size: `read_mask` brings a painted answer there.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from unidiff_jax.evals.metrics import mask_from_rgb

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Of P@k."""


class SegmentationScores(NamedTuple):
    """Scores of all sentences, in [0, 1].

    Attributes:
      ciou: sum of the intersections over sum of the unions, also "overall IoU"; large objects
        dominate it.
      miou: mean of the sentences' IoU, also "gIoU".
      precision: threshold -> share of the sentences with at least that IoU.
      iou: of each sentence.
    """

    ciou: float
    miou: float
    precision: dict[float, float]
    iou: Float[np.ndarray, "n"]


def scores(
    intersection: Float[np.ndarray, "n"], *, union: Float[np.ndarray, "n"]
) -> SegmentationScores:
    """Scores of sentences by their masks' pixel counts (`metrics.mask_overlap`).

    Two empty masks have IoU 0, as in LAVT. Empty answers to existing objects count like others.

    Raises:
      ValueError: arrays of different lengths, or no sentences.
    """
    intersection, union = np.asarray(intersection, np.float64), np.asarray(union, np.float64)
    if intersection.shape != union.shape or intersection.ndim != 1 or not len(union):
        raise ValueError(f"counts must pair: {intersection.shape} and {union.shape}")
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    total = union.sum()
    return SegmentationScores(
        ciou=float(intersection.sum() / total) if total else 0.0,
        miou=float(iou.mean()),
        precision={threshold: float((iou >= threshold).mean()) for threshold in THRESHOLDS},
        iou=iou,
    )


def read_mask(painted: Image.Image, *, size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The mask that a picture shows, at the size (width, height) of the original.

    The fixed rule: resize (bilinear, by PIL), then a pixel belongs to the object when the mean of
    its channels is above one half.
    """
    painted = painted.convert("RGB")
    if painted.size != size:
        painted = painted.resize(size, Image.Resampling.BILINEAR)
    return mask_from_rgb(np.asarray(painted)[None])[0]
