"""The sources of clips that `launch.curate` knows.

| format | `path` holds | a clip is | known beside the frames |
|---|---|---|---|
| `video` | video files | a file that FFmpeg reads | `NAME.txt` or `.json` (`describe.Sidecar`) |
| `davis` | DAVIS | a folder of pictures | masks, and names of `davis_semantics.json` |
| `youtube_vis` | YouTube-VIS | an entry of `instances.json` | masks, names |
| `movi` | prepared TensorFlow Datasets | an example of MOVi | masks, names, depth |
| `miniworld` | rendered MiniWorld | the clip of a record | masks, names, depth, what happens |

All but `video` are one take a clip.
"""

import abc
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from data_pipelines.curate import mask_folders
from data_pipelines.curate.clips import (
    ClipError,
    ClipSource,
    ReadSettings,
    Shot,
    VideoClips,
)
from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.movi import MoviSource
from data_pipelines.sources.prepared import PreparedTable, find_prepared
from unidiff_jax.paths import AnyPath, as_path


class _Given(abc.ABC):
    """Clips of a data set that names them; no two have the same content.

    What is open or large is made where it is first needed, and does not travel to workers.
    """

    def __init__(self, path: AnyPath, *, settings: ReadSettings, split: str):
        self._path, self._settings, self._split = str(path), settings, split
        self._opened: Any = None

    def __getstate__(self):
        return {**self.__dict__, "_opened": None}

    @property
    def _data(self) -> Any:
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    @abc.abstractmethod
    def _open(self) -> Any:
        """The data set."""

    @abc.abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the clips."""

    @abc.abstractmethod
    def _shot(self, name: str) -> Shot:
        """The one take of a clip."""

    def fingerprint(self, name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    def shots(self, name: str) -> Iterator[Shot]:
        try:
            yield self._shot(name)
        except SampleError as error:
            raise ClipError("corrupt", str(error)) from None


class DavisClips(_Given):
    """Videos of DAVIS; the split is a file of `ImageSets`, such as `2017/train`, or `all`."""

    def _open(self) -> dict[str, dict[int, str]]:
        return mask_folders.read_davis_names(self._path)

    def names(self) -> Sequence[str]:
        image_set = None if self._split == "all" else self._split
        return mask_folders.list_davis(self._path, image_set=image_set)

    def _shot(self, name: str) -> Shot:
        return mask_folders.davis_shot(
            self._path, name, size=self._settings.size, names=self._data.get(name)
        )


class YoutubeVisClips(_Given):
    """Videos of YouTube-VIS; the split is a folder of `path`, such as `train`, or `all`."""

    @property
    def _root(self) -> Any:
        root = as_path(self._path)
        return root if self._split == "all" else root / self._split

    def _open(self) -> dict[str, mask_folders.YoutubeVisClip]:
        return {clip.name: clip for clip in mask_folders.list_youtube_vis(self._root)}

    def names(self) -> Sequence[str]:
        return sorted(self._data)

    def _shot(self, name: str) -> Shot:
        return mask_folders.youtube_vis_shot(self._root, self._data[name], size=self._settings.size)


class _Numbered(_Given):
    """Clips of a data set that knows them by their place."""

    def names(self) -> Sequence[str]:
        return [f"{self._split}-{index:08d}" for index in range(len(self._data))]

    def _index(self, name: str) -> int:
        return int(name.rsplit("-", 1)[1])


class MoviClips(_Numbered):
    """Videos of MOVi, of the path `DATA_DIR/movi_a/128x128:1.0.0` or a part of that."""

    def _open(self) -> MoviSource:
        folder = as_path(self._path)
        parts = list(folder.parts)
        start = next((i for i, part in enumerate(parts) if part.startswith("movi_")), None)
        if start is None:
            raise SourceError(f"{self._path} is no DATA_DIR/movi_X[/CONFIG[:VERSION]]")
        root = str(self._path).split("/movi_", 1)[0]
        found = find_prepared(root, "/".join(parts[start:]))
        return MoviSource(PreparedTable(found, split=self._split))

    def _shot(self, name: str) -> Shot:
        return self._data.shot(self._index(name))


class MiniWorldClips(_Numbered):
    """The clips of a rendered MiniWorld split."""

    def _open(self) -> MiniWorldSource:
        return MiniWorldSource(self._path, split=self._split)

    def _shot(self, name: str) -> Shot:
        record = self._data[self._index(name)]
        if record.clip is None:
            raise ClipError("no video", f"record {name} has no clip")
        images = record.clip["images"]
        bodies = {b["id"]: b for i in images for b in record.scenes[i]["objects"]}
        return Shot(
            record.rgb[images],
            np.arange(len(images), dtype=float),
            masks=record.instance[images],
            names={i: f"the {b['color']} {b['shape']}" for i, b in bodies.items()},
            depth=record.depth[images].astype(np.float32),
            sidecar={"caption": record.clip["description"]},
        )


FORMATS: dict[str, Callable[..., ClipSource]] = {
    "video": VideoClips,
    "davis": DavisClips,
    "youtube_vis": YoutubeVisClips,
    "movi": MoviClips,
    "miniworld": MiniWorldClips,
}


def open_clips(
    kind: str, path: AnyPath, *, settings: ReadSettings, split: str = "all"
) -> ClipSource:
    """Clips of a format; `split` is for those that have splits."""
    options = {} if kind == "video" else {"split": split}
    return FORMATS[kind](path, settings=settings, **options)
