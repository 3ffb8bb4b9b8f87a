"""Which shape a verified object has: the nearest training objects vote.

A detector gives boxes of one colour (`metrics.detect_objects`). What is inside tells a sphere from
a cube: the outline and the shading. Both are compared after a square crop is drawn at one small
size, so that place, scale and colour do not count. The verifier learns from true pictures of the
training split alone, and every report prints what it makes of the true test pictures: the ceiling.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Integer
from PIL import Image

from unidiff_jax.evals.metrics import DetectedObject, Images, Palette, color_labels, detect_objects

CROP = 12
"""Side of a crop in pixels."""

NUM_NEIGHBOURS = 11


class ShapeVerifier:
    """k nearest neighbours over crops of training objects.

    Example:
      >>> verifier = ShapeVerifier.fit(images, instances=instances, shapes=shapes, palette=PALETTE,
      ...                              min_pixels=4)
      >>> verifier(images[:1], detect_objects(images[:1], palette=PALETTE))
      [['cube', 'sphere']]
    """

    def __init__(
        self,
        crops: Float[np.ndarray, "n d"],
        shapes: Integer[np.ndarray, "n"],
        *,
        names: Sequence[str],
        palette: Palette,
    ):
        """Keeps the training crops; `shapes` index `names`."""
        self._crops = np.asarray(crops, np.float32)
        self._norms = np.square(self._crops).sum(axis=1)
        self._shapes = np.asarray(shapes)
        self._names = tuple(names)
        self._palette = palette

    @classmethod
    def fit(
        cls,
        images: Images,
        *,
        instances: Integer[np.ndarray, "b h w"],
        shapes: Sequence[Sequence[str]],
        palette: Palette,
        min_pixels: int,
    ) -> "ShapeVerifier":
        """Learns from true pictures.

        Args:
          images: the pictures.
          instances: instance ids, 0 is background.
          shapes: `shapes[i][k]` is the shape of instance k + 1 of picture i.
          palette: colours that the detector looks for.
          min_pixels: of an object that the detector reports.

        Raises:
          ValueError: nothing is detected in any picture.
        """
        names = sorted({name for row in shapes for name in row})
        crops, found = [], []
        detections = detect_objects(images, palette=palette, min_pixels=min_pixels)
        labels = color_labels(images, palette=palette)
        for i, objects in enumerate(detections):
            for item in objects:
                y0, x0, y1, x1 = item.box
                ids = instances[i, y0:y1, x0:x1][
                    labels[i, y0:y1, x0:x1] == _label(item.color, palette)
                ]
                owner = int(np.bincount(ids).argmax())
                if owner:
                    crops.append(_crop(images[i], labels[i], item, palette))
                    found.append(names.index(shapes[i][owner - 1]))
        if not crops:
            raise ValueError("no object is detected in the training pictures")
        return cls(np.stack(crops), np.asarray(found), names=names, palette=palette)

    def __call__(
        self, images: Images, detections: Sequence[Sequence[DetectedObject]]
    ) -> list[list[str]]:
        """The shape of each detection, in its order."""
        labels = color_labels(images, palette=self._palette)
        crops = [
            _crop(images[i], labels[i], item, self._palette)
            for i, objects in enumerate(detections)
            for item in objects
        ]
        if not crops:
            return [[] for _ in detections]
        named = iter(self._classify(np.stack(crops)))
        return [[next(named) for _ in objects] for objects in detections]

    def _classify(self, crops: Float[np.ndarray, "m d"]) -> list[str]:
        distance = self._norms - 2.0 * crops.astype(np.float32) @ self._crops.T
        count = min(NUM_NEIGHBOURS, len(self._crops))
        nearest = np.argpartition(distance, count - 1, axis=1)[:, :count]
        votes = [np.bincount(row, minlength=len(self._names)) for row in self._shapes[nearest]]
        return [self._names[int(vote.argmax())] for vote in votes]


def _label(color: str, palette: Palette) -> int:
    return 1 + list(palette).index(color)


def _crop(
    image: np.ndarray, labels: np.ndarray, item: DetectedObject, palette: Palette
) -> Float[np.ndarray, "d"]:
    """Outline and shading inside the box, centred in a square, at `CROP` pixels a side."""
    y0, x0, y1, x1 = item.box
    mask = (labels[y0:y1, x0:x1] == _label(item.color, palette)).astype(np.float32)
    value = image[y0:y1, x0:x1].astype(np.float32).max(axis=-1) * mask
    side = max(mask.shape)
    square = np.zeros((2, side, side), np.float32)
    top, left = (side - mask.shape[0]) // 2, (side - mask.shape[1]) // 2
    place = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
    square[0][place] = mask
    square[1][place] = value / max(float(value.max()), 1e-6)
    small = [
        np.asarray(Image.fromarray(plane).resize((CROP, CROP), Image.Resampling.BILINEAR))
        for plane in square
    ]
    return np.concatenate([plane.ravel() for plane in small])
