"""What a source of raw data is: samples of fields by index, and errors that say which file.

A sample is a dict of the fields that tasks name (`unidiff_jax.tasks`):

| field | value |
|---|---|
| pictures, such as `image`, `source`, `edited` | RGB `PIL.Image.Image` of any size |
| `views`, `assets` | list of such pictures |
| `cameras` | `unidiff_jax.cameras.Cameras`, one a view |
| texts, such as `caption`, `instruction` | str |
| `tags` | list of str: context tags of the sample's own; may be missing |

Nothing is encoded, cropped or resized here.
"""

from typing import Any, Protocol

import numpy as np
from PIL import Image

from unidiff_jax.frames import CODECS
from unidiff_jax.outside import InputError, decode_picture


class SourceError(ValueError):
    """Data that cannot be opened as described; the message says what is there."""


class SampleError(ValueError):
    """One sample cannot be used. The message names the file or key and the reason.

    The caller counts it and takes the next one: no source puts another sample in its place.
    """


class UnsuitableError(SampleError):
    """A sound sample that has nothing for the task, such as a pair of frames without a named thing.

    The message is the reason alone, so that it can be counted.
    """


class RawSource(Protocol):
    """Samples by index. Sources can be pickled and read from several threads."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that every sample has."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample; the same index and state of `rng` give the same one.

        Raises:
          SampleError: the sample cannot be used.
          IndexError: no such index.
        """
        ...


def read_picture(data: bytes, *, name: str) -> Image.Image:
    """An RGB picture from a file's bytes.

    Raises:
      SampleError: no PNG, JPEG or WebP, damaged or too large.
    """
    try:
        return decode_picture(data, name=name)
    except InputError as error:
        raise SampleError(str(error)) from None


def draw_field(value: Any, *, codec: str) -> Any:
    """A frame's value as a picture, drawn by its codec; of a list of values, a list of pictures.

    Raises:
      SampleError: a value is no number.
    """
    if isinstance(value, list):
        return [draw_field(one, codec=codec) for one in value]
    drawn = CODECS[codec].draw(value)
    if not np.isfinite(drawn).all():
        raise SampleError(f"its {codec} has values that are not finite")
    return Image.fromarray(CODECS["rgb"].read(drawn))


def check_index(index: int, count: int) -> None:
    """Raises IndexError unless 0 <= index < count."""
    if not 0 <= index < count:
        raise IndexError(f"no sample {index}: there are {count}, counted from 0")


def check_bounds(bounds: int | tuple[int, int]) -> tuple[int, int]:
    """Least and largest count from either form; a single number is both.

    Raises:
      ValueError: not 1 <= least <= largest.
    """
    least, largest = (bounds, bounds) if isinstance(bounds, int) else bounds
    if not 1 <= least <= largest:
        raise ValueError(f"a count or (least, largest), from 1 up, got {bounds}")
    return least, largest


def draw_some(
    available: int, bounds: tuple[int, int], rng: np.random.Generator, *, name: str
) -> list[int]:
    """Different indices below `available` in random order.

    Their number is uniform between the bounds, where the upper one is at most `available`.

    Raises:
      SampleError: fewer are available than the lower bound.
    """
    least, largest = bounds
    if available < least:
        raise SampleError(f"{name}: {available} usable, {least} needed")
    count = int(rng.integers(least, min(largest, available) + 1))
    return rng.choice(available, count, replace=False).tolist()
