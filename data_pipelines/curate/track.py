"""Mask trajectories: where each entity is in every frame of a shot."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.describe import Entity

MAX_THINGS = 255
"""Ids are uint8, and 0 is nothing."""


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


@dataclasses.dataclass(frozen=True)
class GivenTracker:
    """Takes the masks and names that the data have; their ids stay, and entities say nothing new.

    Example:
      tracks = GivenTracker().track(shot)
    """

    def track(self, shot: Shot, entities: Sequence[Entity] = ()) -> Tracks:
        """The shot's own trajectories.

        Raises:
          ClipError: a shot without masks, or with masks of another size than its frames.
        """
        del entities
        if shot.masks is None:
            raise ClipError("no masks", "the data have no masks for this shot; use another tracker")
        if shot.masks.shape != shot.frames.shape[:3]:
            raise ClipError(
                "mask size",
                f"masks are {shot.masks.shape}, frames are {shot.frames.shape[:3]} (T, H, W)",
            )
        return Tracks(masks=shot.masks, names=dict(shot.names))


def check_count(num_things: int) -> None:
    """Raises ClipError for more things than ids."""
    if num_things > MAX_THINGS:
        raise ClipError("too many things", f"{num_things} things; ids go to {MAX_THINGS}")
