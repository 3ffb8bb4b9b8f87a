"""Captions of shots, and boxes of the things that they name."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from data_pipelines.curate.clips import Shot


@dataclasses.dataclass(frozen=True)
class Entity:
    """A thing in a shot.

    Attributes:
      name: words that mean it, such as "a red ball".
      box: left, top, right, bottom as shares of the picture, in [0, 1].
      frame: of which frame of the shot.
    """

    name: str
    box: tuple[float, float, float, float]
    frame: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """What is said of a shot.

    Attributes:
      caption: of the shot as a video; what happens.
      entities: the things in it.
    """

    caption: str
    entities: Sequence[Entity] = ()


class Describer(Protocol):
    """Describes shots; can be pickled, and loads its weights when first called."""

    def describe(self, shot: Shot) -> Description: ...
