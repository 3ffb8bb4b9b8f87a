"""Clips: where video comes from. Every format gives shots, single camera takes at the stored size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


class ClipError(ValueError):
    """A clip that cannot be used.

    Attributes:
      reason: one of a few words to count by, such as `corrupt` or `too short`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Shot:
    """One take: frames of a clip without a cut between them.

    Attributes:
      frames: uint8 (T, H, W, 3), RGB.
      times: float (T,), seconds from the clip's start, increasing; not always evenly.
      masks: uint8 (T, H, W), ids of the things that the data know, 0 for none; None without.
      names: what the id is called, where the data know.
      depth: float32 (T, H, W), z-depth in the data's units; None without.
      sidecar: what was written beside the clip: {"caption": str, "entities": [...]}, see
        `describe.Sidecar`.
    """

    frames: np.ndarray
    times: np.ndarray
    masks: np.ndarray | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    depth: np.ndarray | None = None
    sidecar: Mapping[str, Any] = dataclasses.field(default_factory=dict)
