"""Condition pictures made on the fly from another source's pictures.

| field | what | random, uniform (* in the logarithm) |
|---|---|---|
| `blurred` | Gaussian blur | deviation of 0.4 to 2 % of the shorter side * |
| `holed` | black boxes | 1 to 3 boxes, each side 15 to 50 % of the picture's |
| `small` | scaled down and up again | by a factor of 2 to 8 * |
| `edges` | Canny edges, white on black | lower threshold 50 to 125, upper one 1.5 to 2.5 times it |

These ranges are our choice: the papers give none. A condition has the size of its origin.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.sources.base import RawSource, SampleError, SourceError

BLUR = (0.004, 0.02)
HOLES = (1, 3)
HOLE_SIDE = (0.15, 0.5)
SHRINK = (2.0, 8.0)
EDGE_THRESHOLD = (50.0, 125.0)
EDGE_RATIO = (1.5, 2.5)


def blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur of random strength."""
    deviation = _log_uniform(BLUR, rng) * min(picture.size)
    return picture.filter(ImageFilter.GaussianBlur(deviation))


def cut_holes(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Random boxes painted black."""
    holed = picture.copy()
    width, height = picture.size
    for _ in range(int(rng.integers(HOLES[0], HOLES[1] + 1))):
        hole_width = max(1, round(width * rng.uniform(*HOLE_SIDE)))
        hole_height = max(1, round(height * rng.uniform(*HOLE_SIDE)))
        left = int(rng.integers(width - hole_width + 1))
        top = int(rng.integers(height - hole_height + 1))
        holed.paste((0, 0, 0), (left, top, left + hole_width, top + hole_height))
    return holed


def shrink(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scaled down by a random factor, then up again: what an upscaler is given."""
    factor = _log_uniform(SHRINK, rng)
    size = (max(1, round(picture.width / factor)), max(1, round(picture.height / factor)))
    small = picture.resize(size, Image.Resampling.BICUBIC)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


def find_edges(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Canny edges at random thresholds, white on black."""
    low = rng.uniform(*EDGE_THRESHOLD)
    grey = np.asarray(picture.convert("L"))
    edges = cv2.Canny(grey, low, low * rng.uniform(*EDGE_RATIO), L2gradient=True)
    return Image.fromarray(edges).convert("RGB")


CONDITIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "blurred": blur,
    "holed": cut_holes,
    "small": shrink,
    "edges": find_edges,
}


class AddedConditions:
    """A source whose samples have condition pictures beside what another source gives."""

    def __init__(self, source: RawSource, add: Sequence[str], *, of: str = "image"):
        """Checks the names.

        Args:
          source: gives the pictures.
          add: fields to make, of `CONDITIONS`.
          of: the field that they are made from.

        Raises:
          SourceError: no such condition, no field `of`, or a field that is there already.
        """
        for name in add:
            if name not in CONDITIONS:
                raise SourceError(f"no condition {name!r}; there are: {', '.join(CONDITIONS)}")
            if name in source.fields:
                raise SourceError(f"the source has a field {name!r} of its own")
        if of not in source.fields:
            raise SourceError(
                f"conditions are made from the field {of!r}; there are: {', '.join(source.fields)}"
            )
        self._source, self._add, self._of = source, tuple(add), of

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of the source, and the conditions."""
        return (*self._source.fields, *self._add)

    def __len__(self) -> int:
        return len(self._source)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A sample of the source with the conditions; see `RawSource.sample`."""
        sample = dict(self._source.sample(index, rng))
        picture = sample[self._of]
        if not isinstance(picture, Image.Image):
            raise SampleError(f"sample {index}: the field {self._of!r} is no picture")
        for name in self._add:
            sample[name] = CONDITIONS[name](picture, rng)
        return sample


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
