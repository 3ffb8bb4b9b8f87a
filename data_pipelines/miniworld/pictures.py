"""MiniWorld as a raw data set of pictures, like a user's own: for trying recipes on latents."""

import os
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.miniworld.items import CAMERA_CLIPS, TASK_NAMES, MiniWorldSource
from data_pipelines.miniworld.records import Record
from data_pipelines.sources.base import check_index
from unidiff_jax import cameras
from unidiff_jax.frames import CODECS
from unidiff_jax.tasks import TASKS

SHOWN_TASKS = (*TASK_NAMES, "customize", "insert", "edit_with_mask")
"""Tasks whose fields a scene can have."""

_SCENE_SCALE = 1.7
"""Distance from the first camera to the point that all look at, as in nerfstudio scenes."""


class MiniWorldPictures:
    """Samples with the fields of one task, or of several together; a `sources.RawSource`."""

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        split: str = "train",
        only_views: bool = False,
        fields_of: str | None = None,
    ):
        """Opens a split.

        Args:
          folder: made by `launch.miniworld`.
          split: of the records.
          only_views: scenes of whose clip only the camera moves; their samples have `views` and
            `cameras`.
          fields_of: the one task whose fields samples have, and the item's tags; None is those of
            `TASK_NAMES` together.

        Raises:
          RecordsError: no such folder or split.
        """
        self._source, self._only_views = MiniWorldSource(folder, split=split), only_views
        self._tasks = [TASKS[name] for name in ([fields_of] if fields_of else TASK_NAMES)]
        self._indices = range(len(self._source))
        if only_views:
            self._indices = [i for i in self._indices if _has_views(self._source[i])]

    @property
    def fields(self) -> tuple[str, ...]:
        if self._only_views:
            return ("views", "cameras", "caption")
        frames = [frame.field for task in self._tasks for frame in task.frames]
        texts = [field for task in self._tasks for field in task.prompt_fields]
        return tuple(dict.fromkeys([*frames, *texts]))

    def __len__(self) -> int:
        return len(self._indices)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Pictures and texts; a scene without an edit or a clip lacks their fields."""
        check_index(index, len(self))
        record = self._source[self._indices[index]]
        if self._only_views:
            return _views(record, rng)
        sample: dict[str, Any] = {}
        for task in self._tasks:
            item = self._source.item(record, task, rng)
            if item is not None:
                sample |= {f.field: _draw(item[f.field], codec=f.codec) for f in task.frames}
                sample |= {field: item[field] for field in task.prompt_fields}
                if len(self._tasks) == 1:
                    sample["tags"] = item.get("tags", ())
        return sample


def _draw(value: Any, *, codec: str) -> Any:
    """A field as a picture, or as a list of them where the task repeats it."""
    if isinstance(value, list):
        return [_draw(one, codec=codec) for one in value]
    return Image.fromarray(CODECS["rgb"].read(CODECS[codec].draw(value)))


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
