"""MiniWorld as a raw data set of pictures, like a user's own: for trying recipes on latents."""

from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.miniworld.items import CAMERA_CLIPS, MiniWorldSource
from data_pipelines.miniworld.records import Record
from data_pipelines.sources.base import UnsuitableError, check_index, draw_field
from unidiff_jax import cameras
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import Task

_FIELDS = frozenset(
    "image caption depth mask expression source edited instruction earlier later change layout "
    "holed hole assets references canvas changed slots entity_masks".split()
)
_VIEW_FIELDS = ("views", "cameras", "caption")

_SCENE_SCALE = 1.7
"""Distance from the first camera to the point that all look at, as in nerfstudio scenes."""


class MiniWorldPictures:
    """Samples with those fields of a task that scenes can fill; a `sources.RawSource`.

    For `multiview` they are of the scenes of whose clip only the camera moves.
    """

    def __init__(self, folder: AnyPath, *, task: Task, split: str = "train"):
        """Opens a split.

        Args:
          folder: made by `launch.miniworld`.
          task: what samples are for.
          split: of the records.

        Raises:
          RecordsError: no such folder or split.
        """
        self._source, self._task = MiniWorldSource(folder, split=split), task
        self._codecs = {frame.field: frame.codec for frame in task.frames}
        self._codecs["entity_masks"] = "mask"
        if task.region:
            self._codecs[task.region] = "mask"
        self._indices = range(len(self._source))
        if "cameras" in self._codecs:
            self._indices = [i for i in self._indices if _has_views(self._source[i])]

    @property
    def fields(self) -> tuple[str, ...]:
        frames = (frame.field for frame in self._task.frames)
        masks = "entity_masks" if self._task.optional else ""
        wanted = (*frames, *self._task.prompt_fields, self._task.region, masks)
        known = _VIEW_FIELDS if "cameras" in self._codecs else _FIELDS
        return tuple(field for field in wanted if field in known)

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Pictures, texts and tags; a scene without an edit or a clip is unsuitable for theirs."""
        check_index(index, len(self))
        record = self._source[self._indices[index]]
        if "cameras" in self._codecs:
            return _views(record, rng)
        item = self._source.item(record, self._task, rng)
        if item is None:
            raise UnsuitableError("a scene without an edit, clip or object for the task")
        sample = {field: item[field] for field in self.fields}
        sample |= {
            field: draw_field(sample[field], codec=codec)
            for field, codec in self._codecs.items()
            if field in sample
        }
        return sample | {"tags": list(item.get("tags", ()))}


def _has_views(record: Record) -> bool:
    return record.clip is not None and record.clip["kind"] in CAMERA_CLIPS


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
