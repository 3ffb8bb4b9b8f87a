"""Condition pictures made on the fly from another source's pictures.

| condition | what | random, uniform (* in the logarithm) |
|---|---|---|
| `blurred` | Gaussian blur | deviation of 0.4 to 2 % of the shorter side * |
| `holed` | black boxes; `hole` shows where | 1 to 3 boxes, each side 15 to 50 % of the picture's |
| `outpaint` | the same fields, black outside of one box | each side 40 to 80 % of the picture's |
| `small` | scaled down and up again | by a factor of 2 to 8 * |
| `edges` | Canny edges, white on black | lower threshold 50 to 125, upper one 1.5 to 2.5 times it |

These ranges are our choice: the papers give none. A condition has the size of its origin.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageFilter

from data_pipelines.sources.base import RawSource, SampleError, SourceError

BLUR = (0.004, 0.02)
HOLES = (1, 3)
HOLE_SIDE = (0.15, 0.5)
KEPT_SIDE = (0.4, 0.8)
SHRINK = (2.0, 8.0)
EDGE_THRESHOLD = (50.0, 125.0)
EDGE_RATIO = (1.5, 2.5)


def blur(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur of random strength."""
    deviation = _log_uniform(BLUR, rng) * min(picture.size)
    return picture.filter(ImageFilter.GaussianBlur(deviation))


def cut_holes(picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Random boxes painted black, and white boxes on black where they are."""
    hole = Image.new("RGB", picture.size)
    for _ in range(int(rng.integers(HOLES[0], HOLES[1] + 1))):
        hole.paste((255, 255, 255), _box(picture.size, HOLE_SIDE, rng))
    return _paint(picture, hole), hole


def cut_border(picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """As `cut_holes`, all but one random box."""
    hole = Image.new("RGB", picture.size, (255, 255, 255))
    hole.paste((0, 0, 0), _box(picture.size, KEPT_SIDE, rng))
    return _paint(picture, hole), hole


def _box(
    size: tuple[int, int], sides: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    width, height = (max(1, round(side * rng.uniform(*sides))) for side in size)
    left = int(rng.integers(size[0] - width + 1))
    top = int(rng.integers(size[1] - height + 1))
    return left, top, left + width, top + height


def _paint(picture: Image.Image, hole: Image.Image) -> Image.Image:
    return Image.composite(Image.new("RGB", picture.size), picture, hole.convert("L"))


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


class Condition(NamedTuple):
    """A kind of condition.

    Attributes:
      fields: of a sample, that it makes.
      make: from a picture; one picture, or one a field.
    """

    fields: tuple[str, ...]
    make: Callable[
        [Image.Image, np.random.Generator], Image.Image | tuple[Image.Image, Image.Image]
    ]

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Mapping[str, Image.Image]:
        made = self.make(picture, rng)
        return dict(zip(self.fields, made if isinstance(made, tuple) else (made,), strict=True))


CONDITIONS: dict[str, Condition] = {
    "blurred": Condition(("blurred",), blur),
    "holed": Condition(("holed", "hole"), cut_holes),
    "outpaint": Condition(("holed", "hole"), cut_border),
    "small": Condition(("small",), shrink),
    "edges": Condition(("edges",), find_edges),
}


class AddedConditions:
    """A source whose samples have condition pictures beside what another source gives."""

    def __init__(self, source: RawSource, add: Sequence[str], *, of: str = "image"):
        """Checks the names.

        Args:
          source: gives the pictures.
          add: conditions to make, of `CONDITIONS`.
          of: the field that they are made from.

        Raises:
          SourceError: no such condition, no field `of`, or a field that is there already.
        """
        fields = list(source.fields)
        for name in add:
            if name not in CONDITIONS:
                raise SourceError(f"no condition {name!r}; there are: {', '.join(CONDITIONS)}")
            for field in CONDITIONS[name].fields:
                if field in fields:
                    raise SourceError(f"the source has a field {field!r} of its own")
                fields.append(field)
        if of not in source.fields:
            raise SourceError(
                f"conditions are made from the field {of!r}; there are: {', '.join(source.fields)}"
            )
        self._source, self._add, self._of = source, tuple(add), of
        self._fields = tuple(fields)

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of the source, and the conditions."""
        return self._fields

    def __len__(self) -> int:
        return len(self._source)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A sample of the source with the conditions; see `RawSource.sample`."""
        sample = dict(self._source.sample(index, rng))
        picture = sample[self._of]
        if not isinstance(picture, Image.Image):
            raise SampleError(f"sample {index}: the field {self._of!r} is no picture")
        for name in self._add:
            sample |= CONDITIONS[name](picture, rng)
        return sample


def _log_uniform(bounds: tuple[float, float], rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(*np.log(bounds))))
