"""Pictures with masks of named things, from a folder in the layout of DAVIS.

The layout is in `curate.mask_folders`. Names come from `davis_semantics.json`, which can be written
for a folder of one's own: {"VIDEO": {"1": "the red car"}}.
"""

import concurrent.futures
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.curate.clips import ClipError
from data_pipelines.curate.mask_folders import (
    davis_frames,
    list_davis,
    read_davis_names,
    read_ids,
)
from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError, check_index, read_picture
from data_pipelines.sources.referring import draw_thing


class DavisSource:
    """Samples of one thing in one frame.

    | field | what |
    |---|---|
    | `image` | the frame |
    | `mask` | one of its things, white on black |
    | `expression` | its name, which no other thing in the frame has |
    """

    fields = ("image", "mask", "expression")

    def __init__(self, root: str, *, image_set: str | None = None, resolution: str = "480p"):
        """Lists the frames that are marked, in videos whose things have names.

        Args:
          root: folder of DAVIS.
          image_set: file of `ImageSets` without its ending; None takes all videos.
          resolution: folder of `JPEGImages`.

        Raises:
          SourceError: no such folder or set, no names, or videos whose frames do not fit.
        """
        names = read_davis_names(root)
        videos = list_davis(root, image_set=image_set, resolution=resolution)
        named = [video for video in videos if names.get(video)]

        def list_frames(video: str) -> list[tuple[epath.Path, epath.Path, str]]:
            pairs = davis_frames(root, video, resolution=resolution)
            return [(picture, ids, video) for picture, ids in pairs if ids is not None]

        try:
            with concurrent.futures.ThreadPoolExecutor(files.NUM_READERS) as pool:
                found = list(pool.map(list_frames, named))
        except ClipError as error:
            raise SourceError(str(error)) from None
        self._names = names
        self._frames = [frame for frames in found for frame in frames]
        if not self._frames:
            raise SourceError(
                f"{root}: no frames of the {len(videos)} videos have masks and names; names are in "
                'davis_semantics.json: {"VIDEO": {"1": "the red car"}}'
            )

    def __len__(self) -> int:
        return len(self._frames)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One frame; see `RawSource.sample`."""
        check_index(index, len(self))
        path, ids_path, video = self._frames[index]
        image = read_picture(files.read_bytes(path), name=str(path))
        try:
            ids = read_ids(ids_path)
        except ClipError as error:
            raise SampleError(str(error)) from None
        mask, thing = draw_thing(ids, self._names[video], rng, name=str(ids_path))
        if mask.size != image.size:
            raise SampleError(f"{path} has {image.size} pixels, its mask {mask.size}")
        return {"image": image, "mask": mask, "expression": thing}
