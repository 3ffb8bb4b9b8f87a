"""MiniWorld as a raw data set of pictures, like a user's own; for trying the recipes on latents."""

import os
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.records import Record
from data_pipelines.sources.base import SampleError
from unidiff_jax import cameras
from unidiff_jax.frames import CODECS
from unidiff_jax.tasks import Task

_CAMERA_CLIPS = ("turn", "rise")
_SCENE_SCALE = 1.7
"""Distance from the first camera to the point that all look at, as in nerfstudio scenes."""


class MiniWorldPictures:
    """Samples of one task; a `sources.RawSource`. Views of a scene are clips in which only the
    camera moves.
    """

    def __init__(self, folder: str | os.PathLike, *, task: Task, split: str = "train"):
        """Opens a split; raises RecordsError."""
        self._source, self._task, self._name = MiniWorldSource(folder, split=split), task, folder
        self._indices = range(len(self._source))
        if task.repeats:
            self._indices = [i for i in self._indices if _has_views(self._source[i])]

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Fields of the task; raises SampleError where the scene has nothing for it."""
        number = self._indices[index]
        record = self._source[number]
        if self._task.repeats:
            return _views(record, rng)
        item = self._source.item(record, self._task, rng)
        if item is None:
            raise SampleError(f"record {number} of {self._name} has no {self._task.name}")
        drawn = {
            frame.field: Image.fromarray(
                CODECS["rgb"].read(CODECS[frame.codec].draw(item[frame.field]))
            )
            for frame in self._task.frames
        }
        return drawn | {name: item[name] for name in self._task.prompt_fields}


def _has_views(record: Record) -> bool:
    return record.clip is not None and record.clip["kind"] in _CAMERA_CLIPS


def _views(record: Record, rng: np.random.Generator) -> dict[str, Any]:
    assert record.clip is not None
    images = record.clip["images"]
    intrinsics = record.intrinsics[images].astype(np.float64)
    found = cameras.from_opengl(
        record.camera_to_world[images],
        focal=intrinsics[:, (0, 1), (0, 1)],
        principal=intrinsics[:, :2, 2],
    )
    captions = record.captions[0]
    return {
        "views": [Image.fromarray(record.rgb[i]) for i in images],
        "cameras": cameras.relative_to_first(cameras.normalize(found, scale=_SCENE_SCALE)),
        "caption": captions[int(rng.integers(len(captions)))],
    }
