"""Mask trajectories: where each entity is in every frame of a shot."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from data_pipelines.curate.clips import Shot
from data_pipelines.curate.describe import Entity


@dataclasses.dataclass(frozen=True)
class Tracks:
    """Mask trajectories of a shot.

    Attributes:
      masks: uint8 (T, H, W), id of the entity that a pixel shows; 0 for none.
      names: name of each id; an id without a name is a thing that nobody named.
    """

    masks: np.ndarray
    names: Mapping[int, str]


class Tracker(Protocol):
    """Finds entities in all frames; can be pickled, and loads its weights when first called."""

    def track(self, shot: Shot, entities: Sequence[Entity]) -> Tracks:
        """Trajectories; entity n has id n + 1 where entities are given."""
        ...
