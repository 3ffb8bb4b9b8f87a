"""MOVi: simulated videos with masks, depth and cameras (Greff et al. 2022, "Kubric").

What its features mean is said in Kubric's `challenges/movi`, not in the files:

- ids in `segmentations` are the places in `instances` and one more;
- `depth` is the distance d to the camera, from the least (0) to the largest (65535) of a video,
  which are in `metadata.depth_range`; z-depth is d / |ray|, with rays of z = 1;
- cameras are Blender's: they look along -z, quaternions are (w, x, y, z) from camera to world, the
  world's z is up, and `focal_length` and `sensor_width` are in one unit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.sources.base import SampleError, SourceError, check_index, draw_some
from data_pipelines.sources.depths import draw_nearness
from data_pipelines.sources.prepared import PreparedTable
from data_pipelines.sources.referring import draw_thing
from data_pipelines.sources.scenes import SCALE, seen_from_first
from unidiff_jax import cameras
from unidiff_jax.cameras import Cameras
from unidiff_jax.outside import InputError, decode_values

RATE = 12.0
"""Frames a second."""

COLUMNS = (
    "video",
    "segmentations",
    "depth",
    "metadata.depth_range",
    "metadata.height",
    "metadata.width",
    "camera.focal_length",
    "camera.sensor_width",
    "camera.positions",
    "camera.quaternions",
    "instances.visibility",
)
"""Columns that every variant has."""

LABELS = (
    "instances.size_label",
    "instances.color_label",
    "instances.material_label",
    "instances.shape_label",
    "instances.category",
)
"""Columns whose words make up the name of an instance; a variant has some of them."""


def movi_shot(example: Mapping[str, Any], *, places: Sequence[int] | None = None) -> Shot:
    """A video as a shot, with ids, names and z-depth in the units of its world.

    Args:
      example: `COLUMNS` and those of `LABELS` that there are (`PreparedTable.values`).
      places: frames; None for all.

    Raises:
      ClipError: a picture is damaged or has another size.
    """
    if places is None:
        places = range(len(example["video"]))
    size = (int(example["metadata.height"]), int(example["metadata.width"]))
    layers = {
        key: np.stack([_decode(example[key][i], size=size, name=f"{key} {i}") for i in places])
        for key in ("video", "segmentations", "depth")
    }
    least, largest = np.asarray(example["metadata.depth_range"], np.float64)
    distance = least + layers["depth"] / 65535.0 * (largest - least)
    return Shot(
        frames=layers["video"],
        times=np.asarray(places, np.float64) / RATE,
        masks=layers["segmentations"].astype(np.uint8),
        names=movi_names(example),
        depth=(distance / _ray_lengths(example, size)).astype(np.float32),
    )


def movi_names(example: Mapping[str, Any]) -> dict[int, str]:
    """Names of ids, such as "small blue metal cube" or "shoe"; without those that have no words."""
    columns = [example[key] for key in LABELS if key in example]
    names = {}
    for number, words in enumerate(zip(*columns, strict=True), start=1):
        name = " ".join(word.replace("_", " ") for word in words if word not in (None, "None"))
        if name:
            names[number] = name.lower()
    return names


def movi_cameras(example: Mapping[str, Any], *, places: Sequence[int] | None = None) -> Cameras:
    """Cameras of some frames, or of all, in the video's world as `from_opengl` turns it."""
    positions = np.asarray(example["camera.positions"], np.float64)
    places = range(len(positions)) if places is None else places
    chosen = list(places)
    c2w = np.tile(np.eye(4), (len(chosen), 1, 1))
    turns = np.asarray(example["camera.quaternions"], np.float64)[chosen]
    c2w[:, :3, :3] = Rotation.from_quat(turns, scalar_first=True).as_matrix()
    c2w[:, :3, 3] = positions[chosen]
    size = np.array([example["metadata.width"], example["metadata.height"]], np.float64)
    focal = np.full((len(chosen), 2), _focal(example))
    return cameras.from_opengl(
        c2w, focal=focal, principal=np.tile(size / 2, (len(chosen), 1)), size=tuple(size)
    )


class MoviSource:
    """Samples from frames of one video.

    | field | what |
    |---|---|
    | `views` | some frames, in random order |
    | `cameras` | one a view, seen from the first, at the scale that rays have |
    | `image` | the first of the views |
    | `depth` | nearness in `image`, see `depths` |
    | `mask`, `expression` | an instance in `image` and its name, which no other in it has |
    | `caption` | names of what `image` shows, the largest first |
    """

    FIELDS = ("views", "cameras", "image", "depth", "mask", "expression", "caption")

    def __init__(
        self,
        table: PreparedTable,
        *,
        fields: Sequence[str] | None = None,
        num_views: tuple[int, int] = (2, 6),
    ):
        """Takes a table that has `COLUMNS`.

        Args:
          table: the prepared data set.
          fields: of a sample, all by default. With `mask` a video is no use where every name is
            that of several instances, so leave out what a task does not need.
          num_views: the least and the largest number.

        Raises:
          SourceError: no such field.
        """
        self.fields = self.FIELDS if fields is None else tuple(fields)
        unknown = [name for name in self.fields if name not in self.FIELDS]
        if unknown:
            raise SourceError(f"no field {unknown[0]!r} in MOVi, it has: {', '.join(self.FIELDS)}")
        self._table, self._num_views = table, num_views
        self._columns = (*COLUMNS, *(name for name in LABELS if name in table.features))

    def __len__(self) -> int:
        return len(self._table)

    def shot(self, index: int) -> Shot:
        """One video whole; raises SampleError or ClipError."""
        return movi_shot(self._table.values(index, self._columns))

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Frames of one video; see `RawSource.sample`."""
        check_index(index, len(self))
        name = self._table.name(index)
        example = self._table.values(index, self._columns)
        num_views = self._num_views if {"views", "cameras"} & set(self.fields) else (1, 1)
        places = draw_some(len(example["video"]), num_views, rng, name=f"{name}: frames")
        try:
            shot = movi_shot(example, places=places)
        except ClipError as error:
            raise SampleError(f"{name}: {error}") from None
        sample: dict[str, Any] = {"views": [Image.fromarray(frame) for frame in shot.frames]}
        sample["image"] = sample["views"][0]
        if "cameras" in self.fields:
            posed = movi_cameras(example, places=places)
            sample["cameras"] = seen_from_first(posed, scale=SCALE, name=name)
        if "depth" in self.fields:
            sample["depth"] = draw_nearness(np.asarray(shot.depth)[0], name=name)
        if {"mask", "expression"} & set(self.fields):
            mask, thing = draw_thing(np.asarray(shot.masks)[0], shot.names, rng, name=name)
            sample |= {"mask": mask, "expression": f"the {thing}"}
        if "caption" in self.fields:
            sample["caption"] = _caption(shot, example["instances.visibility"][:, places[0]])
        return {field: sample[field] for field in self.fields}


def _caption(shot: Shot, pixels: np.ndarray) -> str:
    order = np.argsort(-pixels.astype(np.int64), kind="stable")
    seen = [shot.names.get(int(i) + 1) for i in order if pixels[i]]
    return ", ".join(dict.fromkeys(name for name in seen if name))


def _decode(data: bytes, *, size: tuple[int, int], name: str) -> np.ndarray:
    """A picture as it is stored: RGB, or (h, w) of ids or 16 bits."""
    try:
        found = decode_values(data, name=name)
    except InputError as error:
        raise ClipError("corrupt", str(error)) from None
    if found.shape[:2] != size:
        raise ClipError("frame size", f"{name} has {found.shape[:2]} pixels, not {size}")
    return found


def _focal(example: Mapping[str, Any]) -> float:
    """In pixels, which are square."""
    share = float(example["camera.focal_length"]) / float(example["camera.sensor_width"])
    return share * float(example["metadata.width"])


def _ray_lengths(example: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Lengths (h, w) of the rays through the pixels' centres, whose z is 1."""
    y, x = (np.arange(n) + 0.5 - n / 2 for n in size)
    return np.sqrt(1 + (x[None] ** 2 + y[:, None] ** 2) / _focal(example) ** 2)
