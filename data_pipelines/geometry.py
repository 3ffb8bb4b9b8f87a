"""How a frame comes to its size: one placement for all frames of an example that belong together.

Output pixel j of a row shows the source at left + (j + 1/2) (right - left) / width. A photograph is
sampled there with an antialiasing filter. A map (ids, masks, depth, flat colours) takes the value
of the source pixel that holds this point, so that it has no value that its source lacks. Both use
the same points: a map lies on its photograph to half a source pixel.

The filter reaches 2 pixels of the coarser of source and output. So two photographs that are equal
outside a mask are, once placed, equal outside the mask grown by that; where a placement only crops
and flips, outside the mask itself.
"""

import dataclasses

import numpy as np
from jaxtyping import Int, Shaped, UInt8
from PIL import Image

WHITE = (255, 255, 255)


class MisalignedError(ValueError):
    """A frame whose aspect ratio is not that of the frame that it should lie on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Crop, then scale, then flip.

    Attributes:
      source: width and height of the pictures that the crop is measured on. The methods also take
        pictures of another size and the same aspect ratio, such as a map at half the resolution.
      crop: left, top, right, bottom in whole source pixels; right and bottom are outside. Whole, so
        that a picture which is a pixel too wide is cut and not resampled.
      size: width and height of what is made, in pixels.
      flipped: whether left and right are swapped.
    """

    source: tuple[int, int]
    crop: tuple[int, int, int, int]
    size: tuple[int, int]
    flipped: bool = False

    def __post_init__(self):
        left, top, right, bottom = self.crop
        width, height = self.source
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ValueError(f"crop {self.crop} does not lie in {width}x{height} pixels")
        if min(self.size) < 1:
            raise ValueError(f"size is at least 1x1 pixels, got {self.size}")

    @classmethod
    def center(
        cls, source: tuple[int, int], *, size: tuple[int, int], flipped: bool = False
    ) -> "Placement":
        """The largest crop from the middle that has the aspect ratio of `size`."""
        scale = min(source[0] / size[0], source[1] / size[1])
        width, height = (
            min(max(round(side * scale), 1), most) for side, most in zip(size, source, strict=True)
        )
        left, top = (source[0] - width) // 2, (source[1] - height) // 2
        crop = (left, top, left + width, top + height)
        return cls(source=source, crop=crop, size=size, flipped=flipped)

    def picture(self, rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
        """A photograph, placed with antialiasing.

        Raises:
          MisalignedError: another aspect ratio than the source's.
        """
        crop = self._crop_on(rgb.shape[1], rgb.shape[0])
        placed = Image.fromarray(rgb).resize(self.size, Image.Resampling.BICUBIC, box=crop)
        return self._flip(np.asarray(placed))

    def map(self, values: Shaped[np.ndarray, "h w *c"]) -> Shaped[np.ndarray, "y x *c"]:
        """Ids, a mask, depth or flat colours, placed without a value that was not there.

        Raises:
          MisalignedError: another aspect ratio than the source's.
        """
        rows, columns = self._samples(values.shape[1], values.shape[0])
        return self._flip(values[np.ix_(rows, columns)])

    def boxes(self, boxes: Int[np.ndarray, "n 4"]) -> Int[np.ndarray, "n 4"]:
        """Boxes (left, top, right, bottom; right and bottom outside) in pixels of what is made.

        They are the boxes that `map` makes of boxes painted on the source. One that is cropped
        away, or falls between samples, has no width or height left.
        """
        rows, columns = self._samples(*self.source)
        left, right = np.searchsorted(columns, boxes[:, 0::2].T)
        top, bottom = np.searchsorted(rows, boxes[:, 1::2].T)
        if self.flipped:
            left, right = self.size[0] - right, self.size[0] - left
        return np.stack([left, top, right, bottom], axis=1)

    def _crop_on(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The crop on a picture of this size; checks its aspect ratio."""
        if not is_same_aspect((width, height), self.source):
            raise MisalignedError(
                f"{width}x{height} pixels do not lie on {self.source[0]}x{self.source[1]}"
            )
        left, top, right, bottom = self.crop
        across, down = self.source
        # products first: a crop up to the border then ends on it exactly
        return (
            left * width / across,
            top * height / down,
            right * width / across,
            bottom * height / down,
        )

    def _samples(self, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of a picture of this size that the pixels before the flip show."""
        left, top, right, bottom = self._crop_on(width, height)
        return _sample(top, bottom, self.size[1]), _sample(left, right, self.size[0])

    def _flip(self, placed: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(placed[:, ::-1] if self.flipped else placed)


def is_same_aspect(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether one (width, height) is the other scaled, its sides rounded to whole pixels."""
    # rounding moves each side of the smaller picture by less than a pixel
    return abs(first[0] * second[1] - first[1] * second[0]) < max(sum(first), sum(second))


def fit_whole(
    rgb: UInt8[np.ndarray, "h w 3"], *, size: tuple[int, int]
) -> UInt8[np.ndarray, "y x 3"]:
    """A picture scaled, with antialiasing, to fit whole into `size` (width, height), on white."""
    height, width = rgb.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    whole = Image.new("RGB", size, WHITE)
    place = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2)
    whole.paste(Image.fromarray(rgb).resize(inner, Image.Resampling.BICUBIC), place)
    return np.asarray(whole)


def _sample(start: float, end: float, count: int) -> np.ndarray:
    return np.floor(start + (np.arange(count) + 0.5) * ((end - start) / count)).astype(int)
